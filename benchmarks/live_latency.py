"""One camera with nano: from capture to publishing.

    python -m benchmarks.live_latency [--rates 10,15,30] [--seconds 20]

The camera hands over drawn pictures of 640 x 480 at a steady rate; its capture time is the moment of that. Messages are
published over ZeroMQ and nobody subscribes. Before, the engine alone infers one picture after another. The goal is a
95th percentile of at most one inference, plus one frame interval, plus 20 ms.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Generator
from contextlib import closing

import numpy as np
from numpy.typing import NDArray

from benchmarks._record import record
from engines.config import EngineConfig
from engines.engine import Engine
from engines.prompts import PromptClass, parse_prompt
from pipeline.config import PipelineConfig
from pipeline.flow.metrics import Metrics
from pipeline.flow.pipeline import Pipeline
from pipeline.frames import Frame, now_ns
from pipeline.outputs.publisher import PublishConfig
from pipeline.sources import Source
from pipeline.synthetic import SceneConfig, SceneVideo

MARGIN_MS = 20.0
_PICTURES = 10
_INFERENCES = 30


class Camera(Source):
    """Pictures in turn, `rate` a second."""

    live = True

    def __init__(self, pictures: list[NDArray[np.uint8]], rate: float) -> None:
        super().__init__("camera")
        self._pictures = pictures
        self._rate = rate

    def __iter__(self) -> Generator[Frame]:
        begun_s = time.monotonic()
        index = 0
        while not self._stopped.wait(max(0.0, begun_s + index / self._rate - time.monotonic())):
            picture = self._pictures[index % len(self._pictures)]
            yield Frame(self.name, index, picture, index / self._rate, *now_ns(), "receipt")
            index += 1


def drawn_pictures() -> list[NDArray[np.uint8]]:
    """Return drawn pictures of people, RGB [480, 640, 3]."""
    scenes = SceneVideo(seed=0, config=SceneConfig(categories=("person",)), size_hw=(480, 640), rate=30.0)
    return [scenes.frame(index).rgb_HW3 for index in range(_PICTURES)]


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", default="10,15,30")
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    pictures = drawn_pictures()
    config = EngineConfig()
    prompts = parse_prompt("person", max_classes=config.max_classes, max_keypoints=config.max_keypoints)
    with closing(Engine(config)) as engine:
        inference_ms = one_inference_ms(engine, prompts, pictures)
        rows = [measure(engine, prompts, Camera(pictures, float(rate)), float(rate), inference_ms, options.seconds)
                for rate in options.rates.split(",")]  # fmt: skip
    for row in rows:
        print(row)
    print(record("live_latency", rows))


def one_inference_ms(engine: Engine, prompts: tuple[PromptClass, ...], pictures: list[NDArray[np.uint8]]) -> float:
    """Return the median time of one inference."""
    engine.set_prompts(prompts)
    times_ms = []
    for index in range(_INFERENCES):
        start_s = time.perf_counter()
        engine.infer([pictures[index % len(pictures)]])
        times_ms.append((time.perf_counter() - start_s) * 1000)
    return statistics.median(times_ms)


def measure(
    engine: Engine, prompts: tuple[PromptClass, ...], camera: Camera, rate: float, inference_ms: float, seconds: float
) -> dict[str, object]:
    """Run the pipeline on one camera for a while; return a row."""
    pipeline = Pipeline(PipelineConfig(publish=PublishConfig("tcp://127.0.0.1:*")))
    pipeline.add(camera)
    pipeline.start(engine, prompts)
    time.sleep(seconds)
    pipeline.stop()
    while not pipeline.wait(1.0):
        pass
    pipeline.finish()
    age = next(stage.took for stage in pipeline.metrics.report() if stage.name == Metrics.CAPTURE_TO_PUBLISH)
    p50_ms, p95_ms = (round(1000 * (age.percentile_s(percent) or 0.0), 1) for percent in (50, 95))
    return {
        "what": f"one camera of 640 x 480 at {rate:g} frames/s, nano: capture to publishing",
        "published": pipeline.metrics.frames_out("publish"),
        "drops": dict(pipeline.metrics.drops()),
        "inference_ms": round(inference_ms, 1),
        "p50_ms": p50_ms,
        "p95_ms": p95_ms,
        "goal_p95_ms": round(inference_ms + 1000 / rate + MARGIN_MS, 1),
    }


if __name__ == "__main__":
    main()
