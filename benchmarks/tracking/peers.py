"""Runs the peers. This script is run in an environment of its own and is never imported.

    PEERS_PYTHON benchmarks/tracking/peers.py track JOB.npz OUT.npz
    PEERS_PYTHON benchmarks/tracking/peers.py time JOB.npz OUT.npz

The PyPI package `trackers` 2.6.1 has the import name of our own folder, so it needs a second process. JOB has the
detections of all frames as one table (sequence, frame, x1, y1, x2, y2, score); OUT gets one table per tracker:
(sequence, frame, id, x1, y1, x2, y2) or microseconds per update.
"""

from __future__ import annotations

import sys
import time
from importlib import import_module
from typing import Any

import numpy as np


def makers() -> dict[str, Any]:
    """Fresh trackers with the defaults of their constructors (BoT-SORT without images, hence without its CMC)."""
    package = import_module("trackers")
    return {
        "SORT": package.SORTTracker,
        "ByteTrack": package.ByteTrackTracker,
        "OC-SORT": package.OCSORTTracker,
        "BoT*": lambda: package.BoTSORTTracker(enable_cmc=False),
        "C-BIoU": package.CBIoUTracker,
    }


def frames_of(job: Any) -> dict[int, list[tuple[int, np.ndarray]]]:
    """sequence -> [(frame, rows)], with the frames that have no detection."""
    table, shown = job["detections"], job["shown"]
    sequences: dict[int, list[tuple[int, np.ndarray]]] = {}
    order = np.lexsort((table[:, 1], table[:, 0]))
    table = table[order]
    keys = table[:, 0] * 1e6 + table[:, 1]
    for sequence, frame in shown:
        first, last = np.searchsorted(keys, (sequence * 1e6 + frame, sequence * 1e6 + frame + 1))
        sequences.setdefault(int(sequence), []).append((int(frame), table[first:last]))
    return sequences


def to_detections(rows: np.ndarray) -> Any:
    sv = import_module("supervision")
    if not len(rows):
        empty = sv.Detections.empty()
        empty.confidence = np.empty(0)
        return empty
    return sv.Detections(xyxy=rows[:, 2:6].copy(), confidence=rows[:, 6].copy(), class_id=np.zeros(len(rows), int))


def track(job: Any) -> dict[str, np.ndarray]:
    outputs: dict[str, np.ndarray] = {}
    for name, maker in makers().items():
        tables = [np.empty((0, 7))]
        for sequence, frames in frames_of(job).items():
            tracker = maker()
            for frame, rows in frames:
                result = tracker.update(to_detections(rows))
                ids = np.asarray(result.tracker_id if result.tracker_id is not None else [], float)
                kept = ids >= 0
                boxes = np.asarray(result.xyxy, float).reshape(-1, 4)[kept]
                head = np.broadcast_to([float(sequence), float(frame)], (len(boxes), 2))
                tables.append(np.concatenate((head, ids[kept, None], boxes), axis=1))
        outputs[name] = np.concatenate(tables)
    return outputs


def clock(job: Any) -> dict[str, np.ndarray]:
    outputs: dict[str, np.ndarray] = {}
    for name, maker in makers().items():
        samples = []
        for frames in frames_of(job).values():
            tracker = maker()
            inputs = [to_detections(rows) for _, rows in frames]
            for detections in inputs:
                start = time.perf_counter()
                tracker.update(detections)
                samples.append((time.perf_counter() - start) * 1e6)
        outputs[name] = np.array(samples)
    return outputs


if __name__ == "__main__":
    action, job_path, out_path = sys.argv[1:]
    tables: dict[str, Any] = {"track": track, "time": clock}[action](np.load(job_path))
    np.savez_compressed(out_path, **tables)
