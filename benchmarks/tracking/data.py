"""The data sets of the tracking benchmark, read from the shared folder.

Legend: F frames, N detections or objects of one frame, K keypoints.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

TUNED_ON_DANCETRACK = tuple(f"dancetrack{number:04d}" for number in (4, 7, 14, 19, 25, 30, 35))


def shared_folder() -> Path:
    """XPOSE_SHARED, or the folder `shared` beside the repository."""
    beside = Path(__file__).resolve().parents[3] / "shared"
    return Path(os.environ.get("XPOSE_SHARED", beside)) / "data"


@dataclass(frozen=True, slots=True)
class BoxSequence:
    """A MOTChallenge sequence; rows as in its files, frames from 1.

    truth_R: frame, id, x, y, w, h, conf, class, visibility. detections_R: frame, -1, x, y, w, h, score, …
    """

    name: str
    fps: float
    frames: tuple[int, ...]  # the frames shown to the tracker, in order
    truth_R: Floats
    detections_R: Floats

    def detections(self, frame: int) -> tuple[Floats, Floats]:
        """boxes_N4 (x1, y1, x2, y2) and scores_N of one frame."""
        first, last = np.searchsorted(self.detections_R[:, 0], (frame, frame + 1))
        rows = self.detections_R[first:last]
        return np.concatenate((rows[:, 2:4], rows[:, 2:4] + rows[:, 4:6]), axis=1), rows[:, 6].copy()


def box_sequences(archive: str) -> list[BoxSequence]:
    """All sequences of `mot/<archive>`; of MOT17 the second halves (the detector was trained on the first)."""
    sequences = []
    with zipfile.ZipFile(shared_folder() / "mot" / archive) as files:
        for name in sorted({Path(entry).parts[0] for entry in files.namelist()}):
            info = dict(
                line.split("=", 1) for line in files.read(f"{name}/seqinfo.ini").decode().split() if "=" in line
            )
            length = int(info["seqLength"])
            start = length // 2 + 1 if name.startswith("MOT17") else 1
            sequences.append(
                BoxSequence(
                    name,
                    float(info["frameRate"]),
                    tuple(range(start, length + 1)),
                    _rows(files, f"{name}/gt/gt.txt"),
                    _rows(files, f"{name}/det/det.txt"),
                )
            )
    return sequences


def thinned(sequence: BoxSequence, column: str) -> BoxSequence:
    """The sequence with only some frames shown: "full", "half", "quarter", or "dropped" (20 % at random)."""
    frames = np.array(sequence.frames)
    if column == "dropped":
        frames = frames[np.random.default_rng(0).random(len(frames)) >= 0.2]
    else:
        frames = frames[:: {"full": 1, "half": 2, "quarter": 4}[column]]
    return BoxSequence(
        sequence.name, sequence.fps, tuple(int(f) for f in frames), sequence.truth_R, sequence.detections_R
    )


def _rows(files: zipfile.ZipFile, name: str) -> Floats:
    rows = np.loadtxt(io.StringIO(files.read(name).decode()), delimiter=",", ndmin=2)
    return np.asarray(rows[np.argsort(rows[:, 0], kind="stable")])


@dataclass(frozen=True, slots=True)
class PoseSequence:
    """A sequence with true poses: per frame ids_N and keypoints_NK2 (NaN: absent)."""

    name: str
    fps: float
    ids: tuple[NDArray[np.int64], ...]
    keypoints: tuple[Floats, ...]


def pose_sequence(path: Path, fps: float) -> PoseSequence:
    """Read one gzip JSON of `tracks/`."""
    with gzip.open(path, "rt") as file:
        content: dict[str, Any] = json.load(file)
    ids, keypoints = [], []
    count = len(content["keypoint_names"])
    for frame in content["frames"]:
        instances = frame["instances"]
        ids.append(np.array([instance["track_id"] for instance in instances], np.int64))
        values = np.array([instance["keypoints"] for instance in instances], np.float64).reshape(-1, count, 3)
        keypoints.append(np.where(values[:, :, 2:] > 0, values[:, :, :2], np.nan))
    return PoseSequence(path.name.split(".")[0], fps, tuple(ids), tuple(keypoints))


def bonn_sequences() -> list[PoseSequence]:
    """The 39 Bonn PoseTrack sequences; their frame rate is not stated, 25 is assumed."""
    return [pose_sequence(path, 25.0) for path in sorted((shared_folder() / "tracks" / "bonn").glob("*.json.gz"))]


@dataclass(frozen=True, slots=True)
class MadeDetections:
    """One frame of detections made from the truth; `source_N` is the true row, -1 for a false alarm."""

    keypoints_NK2: Floats
    source_N: NDArray[np.int64]


def made_detections(sequence: PoseSequence, rng: np.random.Generator) -> Iterator[MadeDetections]:
    """Truth with 10 px Gaussian noise, 20 % of whole persons missed, Poisson(0.3) false alarms per frame.

    A false alarm is a random pose of the frame, moved by up to the frame's extent.
    """
    for truth in sequence.keypoints:
        seen = rng.random(len(truth)) >= 0.2
        noisy = truth + rng.normal(0.0, 10.0, truth.shape)
        rows = [noisy[seen]]
        alarms = int(rng.poisson(0.3)) if len(truth) else 0
        if alarms:
            low = np.nanmin(truth, axis=(0, 1))
            high = np.nanmax(truth, axis=(0, 1))
            for _ in range(alarms):
                pose = truth[rng.integers(len(truth))]
                target = rng.uniform(low, high)
                rows.append((pose - np.nanmean(pose, axis=0) + target)[None])
        yield MadeDetections(np.concatenate(rows), np.concatenate((np.nonzero(seen)[0], np.full(alarms, -1, np.int64))))
