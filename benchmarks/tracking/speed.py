"""Microseconds per update and memory over time. The peers run in another process, in the same run."""

from __future__ import annotations

import gc
import time
import tracemalloc
from collections.abc import Iterator, Sequence

import numpy as np

from benchmarks.tracking.boxes import run_peers
from benchmarks.tracking.data import BoxSequence, Floats, box_sequences
from trackers import Detections, Tracker, TrackerConfig

BUCKETS = ((6, 10), (21, 40), (41, 80))
_COCO_SIGMAS = np.array(
    [0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072, 0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089,
     0.089]
)  # fmt: skip
_TIMED = ("dancetrack0004", "dancetrack0019", "dancetrack0030", "MOT17-02")
_FRAMES = 400
_WARM_UP = 20


def people(count: int, keypoints: int, frames: int, seed: int = 0) -> Iterator[Detections]:
    """Make people who walk on a grid, with noise, in random order; only boxes if `keypoints` is 0."""
    rng = np.random.default_rng(seed)
    side = int(np.ceil(np.sqrt(count)))
    grid_N2 = np.stack(np.meshgrid(np.arange(side), np.arange(side)), axis=-1).reshape(-1, 2)[:count] * 70.0 + 100.0
    pose_NK2 = rng.uniform(-0.5, 0.5, (count, keypoints, 2)) * (40.0, 100.0)
    speed_N2 = rng.normal(0.0, 0.5, (count, 2))
    half_2 = np.array((20.0, 50.0))
    for frame in range(frames):
        centre_N2 = grid_N2 + speed_N2 * frame + 3.0 * np.sin(frame / 10 + np.arange(count))[:, None]
        boxes_N4 = np.concatenate((centre_N2 - half_2, centre_N2 + half_2), axis=1)
        boxes_N4 += rng.normal(0.0, 1.0, boxes_N4.shape)
        keypoints_NK2 = centre_N2[:, None] + pose_NK2 + rng.normal(0.0, 1.0, pose_NK2.shape)
        order = rng.permutation(count)
        yield Detections(
            boxes_N4[order],
            rng.uniform(0.75, 1.0, count),
            np.zeros(count, np.int64),
            keypoints_NK2[order] if keypoints else None,
        )


def time_updates(
    inputs: Sequence[Detections], config: TrackerConfig, fps: float, sigmas: dict[int, Floats] | None = None
) -> Floats:
    """Microseconds of each update; the inputs are built beforehand."""
    tracker, samples = Tracker(config, sigmas), []
    for index, detections in enumerate(inputs):
        start = time.perf_counter()
        tracker.update(detections, index / fps)
        samples.append((time.perf_counter() - start) * 1e6)
    return np.array(samples)


def pose_times(config: TrackerConfig) -> Iterator[tuple[int, Floats]]:
    """Yield people, microseconds; 17 keypoints each."""
    for count in (10, 100):
        inputs = list(people(count, 17, 300))
        yield count, time_updates(inputs, config, 30.0, {0: _COCO_SIGMAS})[_WARM_UP:]


def box_times(config: TrackerConfig, peers_python: str | None) -> Iterator[tuple[str, tuple[int, int], Floats]]:
    """Yield tracker, range of detections per frame, microseconds; real detections, boxes alone."""
    known = {s.name: s for a in ("dancetrack_open.zip", "mot17_open.zip") for s in box_sequences(a)}
    timed = [_beginning(known[name]) for name in _TIMED]
    counts = np.array([len(s.detections(frame)[1]) for s in timed for frame in s.frames])
    samples = {} if peers_python is None else run_peers("time", timed, peers_python)
    ours = []
    for sequence in timed:
        inputs = []
        for frame in sequence.frames:
            boxes_N4, scores_N = sequence.detections(frame)
            inputs.append(Detections(boxes_N4, scores_N, np.zeros(len(scores_N), np.int64)))
        ours.append(time_updates(inputs, config, sequence.fps))
    samples["ours"] = np.concatenate(ours)
    for bucket in BUCKETS:
        chosen = (counts >= bucket[0]) & (counts <= bucket[1])
        for name, values in samples.items():
            yield name, bucket, values[chosen]


def _beginning(sequence: BoxSequence) -> BoxSequence:
    return BoxSequence(sequence.name, sequence.fps, sequence.frames[:_FRAMES], sequence.truth_R, sequence.detections_R)


def memory_kib(config: TrackerConfig, frames: int = 100_000, every: int = 20_000) -> list[tuple[int, float]]:
    """Traced memory of a tracker with constant births and deaths: (frame, KiB)."""
    rng = np.random.default_rng(0)
    tracker, result = Tracker(config), []
    corner_N2 = np.zeros((3, 2))
    tracemalloc.start()
    for frame in range(1, frames + 1):
        if frame % 5 == 1:  # all three objects leave, three others come
            corner_N2 = rng.uniform(0.0, 1000.0, (3, 2))
        keypoints_NK2 = corner_N2[:, None] + rng.uniform(0.0, 50.0, (3, 5, 2))
        boxes_N4 = np.concatenate((corner_N2, corner_N2 + 50.0), axis=1)
        tracker.update(Detections(boxes_N4, np.full(3, 0.9), np.zeros(3, np.int64), keypoints_NK2), frame / 30.0)
        if frame % every == 0 or frame == 2000:
            gc.collect()  # empties the interpreter's own lists of spare tuples, too
            result.append((frame, tracemalloc.get_traced_memory()[0] / 1024.0))
    tracemalloc.stop()
    return result
