"""Loss of frame rate by the monitor, and the delay of its pictures.

    python -m benchmarks.monitor [--pairs 10] [--seconds 6] [--record]

One pipeline with nano reads frames from memory as fast as it can. Its rate is measured in rounds of three periods: no
monitor, a monitor without viewers, a monitor with one viewer. The viewer is a minimal WebSocket client in its own
process on the same cores. The order of the periods changes from round to round, and each period is compared with the
one without a monitor in the same round. The goal is a loss of at most 5 % with a viewer, and no loss without.

The delay is the time from making a message until its picture and message have reached the viewer. This is the time that
the page adds to the message's own age. The goal is at most 100 ms.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Generator
from contextlib import closing, nullcontext

import numpy as np

from benchmarks._monitor_viewer import view
from benchmarks._record import record
from engines.engine import Engine
from engines.prompts import parse_prompt
from pipeline.config import load_config
from pipeline.flow.pipeline import Pipeline
from pipeline.frames import Frame, now_ns
from pipeline.service.access import listen
from pipeline.service.monitor import Monitor
from pipeline.service.operations import Operations, describe
from pipeline.sources import Source
from pipeline.synthetic import SceneConfig, SceneVideo

COST_GOAL = 0.05
DELAY_GOAL_MS = 100.0
_SETTLE_S = 1.0
_WARM_FRAMES = 20
_KINDS = ("none", "idle", "viewer")
_WHAT = {"idle": "a monitor without viewers", "viewer": "a monitor with one viewer"}


class Endless(Source):
    """A source of drawn frames from memory, repeated without end; no frame is lost."""

    def __init__(self, count: int = 60) -> None:
        super().__init__("drawn")
        video = SceneVideo(seed=0, config=SceneConfig(categories=("person",)), size_hw=(480, 640), rate=30)
        self._frames = [video.frame(index).rgb_HW3 for index in range(count)]

    def __iter__(self) -> Generator[Frame]:
        index = 0
        while not self._stopped.is_set():
            yield Frame(self.name, index, self._frames[index % len(self._frames)].copy(), index / 30, *now_ns(), "file")
            index += 1


def main() -> None:
    """Measure, print, and record if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/monitor.json")
    options = parser.parse_args()
    rows = measure(options.pairs, options.seconds)
    for row in rows:
        print(row)
    if options.record:
        print(record("monitor", rows))


def measure(rounds: int, period_s: float) -> list[dict[str, object]]:
    """Return the rows: the cost of each kind of period, and the delay."""
    config = load_config(overrides=["monitor.address=127.0.0.1:0"])
    pipeline = Pipeline(config)
    pipeline.add(Endless())
    rates: dict[str, list[float]] = {kind: [] for kind in _KINDS}
    delays_ms: list[float] = []
    with closing(Engine(config.engine_of_pipeline)) as engine:
        pipeline.start(engine, parse_prompt("person", max_classes=8, max_keypoints=68))
        operations = Operations(pipeline, describe(engine))
        try:
            while pipeline.metrics.frames_out("publish") < _WARM_FRAMES:
                time.sleep(0.1)
            for number in range(rounds):
                for kind in (_KINDS, _KINDS[::-1])[number % 2]:
                    rate, found_ms = period(pipeline, operations, kind, period_s)
                    rates[kind].append(rate)
                    delays_ms += found_ms
        finally:
            pipeline.stop()
            while not pipeline.wait(1.0):
                pass
    return [*(cost_row(kind, rates) for kind in ("idle", "viewer")), delay_row(delays_ms)]


def period(pipeline: Pipeline, operations: Operations, kind: str, period_s: float) -> tuple[float, list[float]]:
    """Return the rate of one period, in frames a second, and the viewer's delays."""
    monitor = nullcontext() if kind == "none" else Monitor(pipeline, operations, listen("127.0.0.1:0"))
    receiving, sending = multiprocessing.Pipe()
    with monitor as running:
        process = None
        if kind == "viewer":
            assert running is not None
            process = multiprocessing.get_context("spawn").Process(
                target=view, args=(running.address, sending), daemon=True
            )
            process.start()
            receiving.recv()  # it looks
        time.sleep(_SETTLE_S)
        before, begun_s = pipeline.metrics.frames_out("publish"), time.perf_counter()
        time.sleep(period_s)
        rate = (pipeline.metrics.frames_out("publish") - before) / (time.perf_counter() - begun_s)
        if process is None:
            return rate, []
        receiving.send("end")
        delays_ms: list[float] = receiving.recv()
        process.join(10)
        return rate, delays_ms


def cost_row(kind: str, rates: dict[str, list[float]]) -> dict[str, object]:
    """Return by how much the pipeline was slower than without a monitor."""
    costs = [1 - rate / free for rate, free in zip(rates[kind], rates["none"], strict=True)]
    return {
        "what": f"cost of {_WHAT[kind]}, as a share of the pipeline's rate",
        "pairs": len(costs),
        "rate_without": round(statistics.median(rates["none"]), 2),
        "rate_with": round(statistics.median(rates[kind]), 2),
        "cost": round(statistics.median(costs), 4),
        "cost_quartiles": [round(float(np.percentile(costs, percent)), 4) for percent in (25, 75)],
        **({"goal_cost": COST_GOAL} if kind == "viewer" else {}),
    }


def delay_row(delays_ms: list[float]) -> dict[str, object]:
    """Return the delay that the page adds to a message's age."""
    p50, p95, p99 = (round(float(np.percentile(delays_ms, percent)), 1) for percent in (50, 95, 99))
    return {
        "what": "from the message to the viewer, beyond the message's own age, 640 x 480",
        "pictures": len(delays_ms),
        "p50_ms": p50,
        "p95_ms": p95,
        "p99_ms": p99,
        "max_ms": round(max(delays_ms), 1),
        "goal_ms": DELAY_GOAL_MS,
    }


if __name__ == "__main__":
    main()
