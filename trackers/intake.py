"""Checks the input: drops invalid detections, and turns times that jump into usable steps.

Legend: N detections, K keypoints.
"""

from __future__ import annotations

import math

import numpy as np

from trackers.association import ValidDetections
from trackers.geometry import keypoint_boxes
from trackers.types import Detections, Floats, Integers, holds_for_all

LARGEST_PX = 1e7  # larger coordinates are invalid: their squares would lose precision
SMALLEST_PX = 1e-3  # thinner boxes are empty
_LONGEST_STEP_S = 60.0  # longer steps are cut to this
_LONGEST_FRAME_S = 1.0  # longer steps do not count for the usual interval


class Clock:
    """Turns the caller's times into steps that are never negative.

    A repeated time is a step of 0. A time that goes backwards (a PTS reset) or is not finite is a step of the usual
    frame interval: the clock jumped, not the scene.
    """

    def __init__(self, frame_interval_s: float) -> None:
        self.interval_s = frame_interval_s  # running mean of the steps
        self.caller_s: float | None = None  # the caller's clock at the last update
        self.now_s = 0.0  # the sum of the steps

    def advance(self, time_s: float) -> float:
        """Return the step to `time_s`."""
        finite = math.isfinite(time_s)
        if finite and self.caller_s is None:
            step_s = 0.0
        elif not finite or self.caller_s is None or time_s < self.caller_s:
            step_s = self.interval_s
        else:
            step_s = min(time_s - self.caller_s, _LONGEST_STEP_S)
            if 0.0 < step_s < _LONGEST_FRAME_S:
                self.interval_s += 0.1 * (step_s - self.interval_s)
        if finite:
            self.caller_s = float(time_s)
        self.now_s += step_s
        return step_s


def take_in(detections: Detections, keypoints: int, low_score: float, limit: int) -> ValidDetections:
    """Drop invalid detections and convert the rest to float64 arrays of one shape.

    Args:
        keypoints: K of the result; missing columns are NaN.
        low_score: detections with a lower score (or NaN) are dropped.
        limit: at most this many detections are kept, the best by score.
    """
    boxes_N4: Floats = np.array(detections.boxes_N4, np.float64)
    scores_N: Floats = np.asarray(detections.scores_N, np.float64)
    classes_N: Integers = np.asarray(detections.classes_N, np.int64)
    keypoints_NK2 = _keypoints(detections, keypoints)
    rows_N = np.arange(len(boxes_N4))
    if keypoints:
        lacking_N = ~np.isfinite(boxes_N4).all(axis=1)
        if lacking_N.any():
            boxes_N4[lacking_N] = keypoint_boxes(keypoints_NK2[lacking_N])
    bounded = holds_for_all(np.abs(boxes_N4) <= LARGEST_PX)  # False for NaN, like the comparisons below
    sizes_N2 = boxes_N4[:, 2:] - boxes_N4[:, :2] if bounded else np.zeros_like(boxes_N4[:, 2:])
    if not (
        bounded
        and len(boxes_N4) <= limit
        and holds_for_all(sizes_N2 >= SMALLEST_PX)
        and holds_for_all(scores_N >= low_score)
    ):
        rows_N = _valid_rows(boxes_N4, scores_N, low_score, limit)
        boxes_N4, scores_N, classes_N = boxes_N4[rows_N], scores_N[rows_N], classes_N[rows_N]
        keypoints_NK2 = keypoints_NK2[rows_N]
        sizes_N2 = boxes_N4[:, 2:] - boxes_N4[:, :2]
    centres_N2 = boxes_N4[:, :2] + 0.5 * sizes_N2
    return ValidDetections(rows_N, centres_N2, sizes_N2, boxes_N4, np.minimum(scores_N, 1.0), classes_N, keypoints_NK2)


def _valid_rows(boxes_N4: Floats, scores_N: Floats, low_score: float, limit: int) -> Integers:
    near_N1 = (np.abs(boxes_N4) <= LARGEST_PX).all(axis=1, keepdims=True)
    kept_N4 = np.where(near_N1, boxes_N4, 0.0)
    sizes_N2 = kept_N4[:, 2:] - kept_N4[:, :2]
    rows_N = ((sizes_N2 >= SMALLEST_PX).all(axis=1) & (scores_N >= low_score)).nonzero()[0]
    if len(rows_N) > limit:
        rows_N = np.sort(rows_N[np.argsort(-scores_N[rows_N], kind="stable")[:limit]])
    return rows_N


def _keypoints(detections: Detections, keypoints: int) -> Floats:
    count, given = len(detections.boxes_N4), detections.keypoints_NK2
    if not keypoints:
        return np.empty((count, 0, 2))
    result = np.full((count, keypoints, 2), np.nan)
    if given is not None and given.shape[1]:
        result[:, : given.shape[1]] = given
        result[~(np.abs(result) <= LARGEST_PX).all(axis=2)] = np.nan
    return result
