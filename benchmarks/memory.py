"""Memory over 10,000 frames of the whole pipeline. It must not grow, or long runs would run out of memory.

    python -m benchmarks.memory [--frames 10000]

The run has an engine that finds ten people who come and go, a tracker, a publisher with a subscriber, and a pose file.
Resident memory is read every 500 frames. The result is its growth from the first fifth of the run to its end.
"""

import argparse
import contextlib
import ctypes
import os
import tempfile
import threading
from collections.abc import Generator, Sequence
from pathlib import Path

import numpy as np

from benchmarks._record import record
from benchmarks.line import Finished
from engines.detections import Detections
from engines.nv12 import Image
from engines.prompts import PromptClass, parse_prompt
from pipeline.config import PipelineConfig
from pipeline.flow.pipeline import Pipeline
from pipeline.frames import Frame, now_ns
from pipeline.outputs.publisher import PublishConfig
from pipeline.sources import Source
from xpose_client.subscriber import PoseSubscriber

PEOPLE = 10
EVERY = 500
ENDPOINT = "ipc:///tmp/xpose-memory-benchmark"


class Pixels(Source):
    """Frames of 640 x 480 px; each has its own array."""

    def __init__(self, frames: int) -> None:
        super().__init__("pixels")
        self.frame_count = frames
        self._frames = frames

    def __iter__(self) -> Generator[Frame]:
        for index in range(self._frames):
            yield Frame(self.name, index, np.zeros((480, 640, 3), np.uint8), index / 30, *now_ns(), "file")


class Crowd:
    """An engine that finds ten people who walk, jitter, and are sometimes replaced; it also reads the memory."""

    batch = in_flight = 1
    on_gpu = takes_nv12 = False

    def __init__(self) -> None:
        self.resident_mib: list[float] = []
        self._prompts: tuple[PromptClass, ...] = ()
        self._seen = 0
        self._rng = np.random.default_rng(0)
        self._pose_K2 = self._rng.uniform(0, 50, (17, 2))

    def set_prompts(self, classes: Sequence[PromptClass]) -> int:
        self._prompts = tuple(classes)
        return 1

    def set_thresholds(self, score_threshold: float, nms_iou: float) -> None:
        """The detections are fixed."""

    def submit(self, images: Sequence[Image]) -> Finished:
        return Finished([self._next() for _ in images])

    def _next(self) -> Detections:
        if self._seen % EVERY == 0:
            self.resident_mib.append(resident_mib())
        places_N2 = np.array([[60 * person, 40 * ((self._seen // 90 + person) % 9)] for person in range(PEOPLE)])
        self._seen += 1
        noise_NK2 = self._rng.normal(0, 1, (PEOPLE, 17, 2))
        keypoints_NK2 = (places_N2[:, None] + self._pose_K2 + noise_NK2).astype(np.float32)
        boxes_N4 = np.concatenate([keypoints_NK2.min(axis=1), keypoints_NK2.max(axis=1)], axis=1)
        classes_N = np.zeros(PEOPLE, np.int64)
        return Detections(boxes_N4, np.full(PEOPLE, 0.9, np.float32), classes_N, keypoints_NK2, 1, self._prompts)


def main() -> None:
    """Run, print and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=10_000)
    options = parser.parse_args()
    crowd = Crowd()
    prompts = parse_prompt("person", max_classes=8, max_keypoints=68)
    config = PipelineConfig(publish=PublishConfig(ENDPOINT))
    with tempfile.TemporaryDirectory() as folder, PoseSubscriber(ENDPOINT) as subscriber:
        pipeline = Pipeline(config, poses=Path(folder) / "poses.jsonl")
        pipeline.add(Pixels(options.frames))
        pipeline.start(crowd, prompts)
        while not pipeline.wait(0):
            subscriber.receive(0.05)
        pipeline.finish()
    settled = crowd.resident_mib[len(crowd.resident_mib) // 5 :]
    row: dict[str, object] = {
        "what": f"resident memory over {options.frames} frames, {PEOPLE} people who come and go",
        "settled_mib": round(settled[0], 1),
        "end_mib": round(settled[-1], 1),
        "growth_mib": round(settled[-1] - settled[0], 1),
        "highest_mib": round(max(settled), 1),
        "messages_received": subscriber.received,
        "threads_left": threading.active_count(),
    }
    print(row)
    print(record("memory", [row]))


def give_back_unused() -> None:
    """Make glibc return freed memory to the system, so that only memory in use counts as resident."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def resident_mib() -> float:
    """Resident memory of this process, from /proc."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    main()
