"""Input and output of a tracker.

Legend: N detections, T tracks, K keypoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import NamedTuple, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trackers.errors import TrackerInputError

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]
Rows = Integers | slice  # of tracks: an index array, or slice(None) for all in order


def holds_for_all(condition: Booleans) -> bool:
    """`condition.all()`, five times faster for short arrays."""
    return bool(np.count_nonzero(condition) == condition.size)


class TrackState(IntEnum):
    """States of a track: tentative -> confirmed <-> coasting <-> lost -> deleted."""

    TENTATIVE = 0  # not detected often enough to be published
    CONFIRMED = 1  # measured in this update, and published
    COASTING = 2  # not measured in this update; its prediction is published for `coast_s`
    LOST = 3  # not published, but it can be recognised again


@dataclass(frozen=True, slots=True)
class Detections:
    """One frame's detections.

    Args:
        boxes_N4: (x1, y1, x2, y2) in px; in a NaN row, the box is the extent of the keypoints.
        scores_N: 0..1.
        classes_N: class index of each detection; tracks never change class.
        keypoints_NK2: (x, y) in px, NaN where a keypoint is absent; None for boxes alone.
    Raises:
        TrackerInputError: the shapes disagree.
    """

    boxes_N4: NDArray[np.floating]
    scores_N: NDArray[np.floating]
    classes_N: NDArray[np.integer]
    keypoints_NK2: NDArray[np.floating] | None = None

    def __post_init__(self) -> None:
        count = len(self.boxes_N4)
        keypoints = self.keypoints_NK2
        keypoints_fit = keypoints is None or (
            keypoints.ndim == 3 and keypoints.shape[0] == count and keypoints.shape[2] == 2
        )
        if (
            self.boxes_N4.shape != (count, 4)
            or self.scores_N.shape != (count,)
            or self.classes_N.shape != (count,)
            or not keypoints_fit
        ):
            got = (
                f"boxes {self.boxes_N4.shape}, scores {self.scores_N.shape}, classes {self.classes_N.shape}, "
                f"keypoints {None if keypoints is None else keypoints.shape}"
            )
            raise TrackerInputError(
                f"got {got}; allowed are [N,4], [N], [N] and [N,K,2] or None with one N: reshape the detector's output"
            )

    @classmethod
    def of(
        cls,
        boxes: ArrayLike,
        scores: ArrayLike | None = None,
        classes: ArrayLike | None = None,
        keypoints: ArrayLike | None = None,
    ) -> Detections:
        """Build from anything array-like; scores default to 1, classes to 0."""
        boxes_N4 = np.asarray(boxes, np.float64).reshape(-1, 4)
        count = len(boxes_N4)
        return cls(
            boxes_N4,
            np.ones(count) if scores is None else np.asarray(scores, np.float64),
            np.zeros(count, np.int64) if classes is None else np.asarray(classes, np.int64),
            None if keypoints is None else np.asarray(keypoints, np.float64),
        )


class Track(NamedTuple):
    """One object at one time: a row of `Tracks`. Fields as there; K keypoints."""

    id: int
    class_index: int
    state: TrackState
    score: float
    measured: bool
    detection_index: int
    age_s: float
    since_measured_s: float
    box_xyxy: Floats
    keypoints_raw_K2: Floats
    keypoints_K2: Floats
    keypoints_predicted_K2: Floats
    velocity_K2: Floats
    covariance_K3: Floats
    measured_K: Booleans


@dataclass(frozen=True, slots=True, eq=False)
class Tracks(Sequence[Track]):
    """The published tracks of one update, one row each; iterating or indexing gives `Track` views.

    Arrays are read-only. Coordinates are px of the source image. Keypoint rows are NaN where nothing is known: never
    measured (predicted and smoothed), or not measured in this update (raw).

    Attributes:
        time_s: the time that boxes and predicted keypoints are for, on the caller's clock.
        ids_T: unique for the tracker's lifetime, from 1.
        classes_T: class indices of the detections; a track never changes its class.
        states_T: `TrackState` values.
        scores_T: score of the last matched detection.
        measured_T: whether a detection was matched in this update.
        detection_T: row of that detection in the update's input; -1 for a coasting track.
        age_s_T: time since the first detection.
        since_measured_s_T: time since the last detection.
        boxes_T4: (x1, y1, x2, y2): the detection's box when measured, the motion filter's when coasting.
        keypoints_raw_TK2: as measured in this update.
        keypoints_TK2: smoothed; for the time `smoothing_lag_s` before the update.
        keypoints_predicted_TK2: the motion filter's estimate for `time_s`.
        velocity_TK2: px/s.
        covariance_TK3: xx, xy, yy of the predicted keypoints, px².
        measured_TK: whether the keypoint was measured in this update and passed its gate.
        smoothing_lag_s: delay of fixed-lag smoothing; 0 where smoothing has none.
    """

    time_s: float
    ids_T: Integers
    classes_T: Integers
    states_T: Integers
    scores_T: Floats
    measured_T: Booleans
    detection_T: Integers
    age_s_T: Floats
    since_measured_s_T: Floats
    boxes_T4: Floats
    keypoints_raw_TK2: Floats
    keypoints_TK2: Floats
    keypoints_predicted_TK2: Floats
    velocity_TK2: Floats
    covariance_TK3: Floats
    measured_TK: Booleans
    smoothing_lag_s: float = 0.0

    def __post_init__(self) -> None:
        for name in _TRACK_ARRAYS:
            getattr(self, name).flags.writeable = False

    def __len__(self) -> int:
        return len(self.ids_T)

    @overload
    def __getitem__(self, index: int) -> Track: ...
    @overload
    def __getitem__(self, index: slice) -> list[Track]: ...
    def __getitem__(self, index: int | slice) -> Track | list[Track]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return Track(
            int(self.ids_T[index]),
            int(self.classes_T[index]),
            TrackState(int(self.states_T[index])),
            float(self.scores_T[index]),
            bool(self.measured_T[index]),
            int(self.detection_T[index]),
            float(self.age_s_T[index]),
            float(self.since_measured_s_T[index]),
            self.boxes_T4[index],
            self.keypoints_raw_TK2[index],
            self.keypoints_TK2[index],
            self.keypoints_predicted_TK2[index],
            self.velocity_TK2[index],
            self.covariance_TK3[index],
            self.measured_TK[index],
        )


_TRACK_ARRAYS = tuple(item.name for item in fields(Tracks) if item.name not in ("time_s", "smoothing_lag_s"))
