"""Prompt changes by the control socket: how long the answer takes, and which frame is the first with the new prompt.

    python -m benchmarks.control [--changes 100] [--model nano] [--record]

A pipeline has a drawn live source, and the client runs in its own process. The time from the request to its answer is
measured for questions, for words that were encoded before, and for new words (in an empty cache). The time of the
encoding is measured separately. Goals: 5 ms with cached words, 50 ms plus the encoding with new words, and no frame
with the old prompts among the frames that were given to the engine after the answer.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from benchmarks._record import record
from benchmarks.live_latency import Camera, drawn_pictures
from engines.config import EngineConfig
from engines.engine import Engine
from engines.prompts import PromptClass, parse_prompt
from pipeline.config import PipelineConfig
from pipeline.flow.pipeline import Pipeline
from pipeline.service.config import ControlConfig
from pipeline.service.control import ControlServer
from pipeline.service.operations import Operations, describe

CACHED_GOAL_MS = 5.0
NEW_GOAL_MS = 50.0
CACHED_WORDS = ("person", "dog", "person,dog", "cow")


class TimedEngine(Engine):
    """An engine that records the duration of each change of prompts."""

    def __init__(self, config: EngineConfig) -> None:
        super().__init__(config)
        self.encoding_ms: list[float] = []

    def set_prompts(self, classes: Sequence[PromptClass]) -> int:
        """Change the prompts and note the time."""
        start_s = time.perf_counter()
        prompt_id = super().set_prompts(classes)
        self.encoding_ms.append((time.perf_counter() - start_s) * 1000)
        return prompt_id


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--changes", type=int, default=100)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--record", action="store_true", help="write the rows to benchmarks/results")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(EngineConfig(model=options.model), options.changes, Path(folder))
    for row in rows:
        print(row)
    if options.record:
        print(record("control", rows))


def measure(config: EngineConfig, changes: int, folder: Path) -> list[dict[str, object]]:
    """Run the pipeline while another process sends requests to it; return the rows."""
    prompts = parse_prompt("person", max_classes=config.max_classes, max_keypoints=config.max_keypoints)
    endpoint = f"ipc://{folder}/control"
    poses = folder / "poses.jsonl"
    pipeline = Pipeline(PipelineConfig(engine=config), poses=poses)
    pipeline.add(Camera(drawn_pictures(), 30.0))
    with closing(TimedEngine(config)) as engine, ControlServer(ControlConfig(endpoint)) as server:
        engine._encoder._texts._folder = folder / "text"  # an empty cache: no word was encoded before
        pipeline.start(engine, prompts)
        server.serve(Operations(pipeline, describe(engine)))
        new_words = _words_of(engine)
        receiving, sending = multiprocessing.Pipe(duplex=False)
        caller = multiprocessing.get_context("spawn").Process(
            target=ask, args=(endpoint, changes, new_words, sending), daemon=True
        )
        caller.start()
        sending.close()  # the caller's end alone: if it fails, `recv` does
        answers = receiving.recv()
        caller.join(30)
        assert pipeline.wait(60)
        pipeline.finish()
    encoding_ms = np.array(engine.encoding_ms[1:])  # without those of the start
    new = len(new_words)
    warming = len(CACHED_WORDS)
    overhead_ms = np.array(answers["new_ms"]) - encoding_ms[:new]
    return [
        _row("status", answers["status_ms"]),
        _row("prompt of new words", answers["new_ms"]) | {"encoding_ms": round(float(np.median(encoding_ms[:new])), 2)},
        _row("prompt of new words, without the encoding", overhead_ms) | {"goal_max_ms": NEW_GOAL_MS},
        _row("prompt of cached words", answers["cached_ms"])
        | {"encoding_ms": round(float(np.median(encoding_ms[new + warming :])), 2), "goal_p95_ms": CACHED_GOAL_MS},
        {"what": "frames with old prompts after an answer", "frames": _stale(poses, answers["after"]), "goal": 0},
    ]


def ask(endpoint: str, changes: int, new_words: Sequence[str], report: Connection) -> None:
    """Ask for the status, change the prompts, and report the times of the answers."""
    from xpose_client import Control

    found: dict[str, list[float]] = {"status_ms": [], "new_ms": [], "cached_ms": []}
    after: list[tuple[int, int]] = []  # prompt id, and the last frame before it
    with Control(endpoint, timeout_s=60.0) as control:
        control.status()

        def change(words: str, kind: str | None) -> None:
            start_s = time.perf_counter()
            answer = control.set_prompts(words)
            if kind is not None:
                found[kind].append((time.perf_counter() - start_s) * 1000)
            after.append((answer.prompts.id, answer.after_frames.get("camera", -1)))
            time.sleep(0.05)

        for words in new_words:
            change(words, "new_ms")
        for words in CACHED_WORDS:
            change(words, None)
        for number in range(changes):
            start_s = time.perf_counter()
            control.status()
            found["status_ms"].append((time.perf_counter() - start_s) * 1000)
            change(CACHED_WORDS[number % len(CACHED_WORDS)], "cached_ms")
        time.sleep(1.0)
        control.stop()
    report.send({**found, "after": after})


def _words_of(engine: Engine) -> list[str]:
    """Categories that the model knows and that were not encoded yet, one per prompt."""
    known = [name for name in engine.categories or () if name not in ("person", "dog", "cow")]
    return known[:10] or ["horse", "sheep", "cow", "hand", "face"]


def _stale(poses: Path, after: Sequence[tuple[int, int]]) -> int:
    """Count the frames that have an older prompt than the answers say."""
    import msgspec

    lines = [msgspec.json.decode(line) for line in poses.read_bytes().splitlines()]
    least: dict[int, int] = {}
    for line in lines:
        promised = [prompt_id for prompt_id, last in after if line["frame"] > last]
        least[line["frame"]] = max(promised, default=0)
    return sum(line["prompt_id"] < least[line["frame"]] for line in lines)


def _row(what: str, times_ms: Sequence[float] | np.ndarray) -> dict[str, object]:
    p50, p95 = (round(float(np.percentile(times_ms, percent)), 2) for percent in (50, 95))
    most = round(float(max(times_ms)), 2)
    return {"what": what, "times": len(times_ms), "p50_ms": p50, "p95_ms": p95, "max_ms": most}


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
