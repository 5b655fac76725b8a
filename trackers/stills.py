"""Tracks for still pictures: every detection is an object of its own.

Legend: N detections, T tracks, K keypoints.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from trackers.intake import take_in
from trackers.types import Detections, Tracks, TrackState


class StillTracker:
    """A tracker for pictures that do not follow each other in time, with the interface of `Tracker`.

    Each detection starts a track of its own, which ends with the update. Identities count up from 1 and are never used
    again. One picture says nothing about motion: velocities and covariances are NaN.

    Args:
        score_threshold: detections at or below this score are dropped; assign it to change it.
        max_detections: the best detections of a picture, by score, are kept.
    """

    def __init__(self, score_threshold: float = 0.0, max_detections: int = 1000) -> None:
        self.score_threshold = score_threshold
        self._max_detections = max_detections
        self._next_id = 1
        self._last = self.update(Detections.of(np.empty((0, 4))), 0.0)

    def reset(self) -> None:
        """Do nothing: no track outlives its update."""

    def set_classes(self, keep: Mapping[int, int], sigmas: Mapping[int, NDArray[np.floating]]) -> None:
        """Do nothing: no track outlives its update."""

    def predict_to(self, time_s: float) -> Tracks:
        """Return the tracks of the last update: a still does not move."""
        return self._last

    def update(self, detections: Detections, time_s: float = 0.0) -> Tracks:
        """Return a track for each valid detection, in the order given.

        Bad values are handled as `Tracker` handles them; see trackers/README.md.
        """
        keypoints = 0 if detections.keypoints_NK2 is None else detections.keypoints_NK2.shape[1]
        valid = take_in(detections, keypoints, 0.0, self._max_detections)
        rows = (valid.scores_N > self.score_threshold).nonzero()[0]
        count = len(rows)
        points_TK2 = valid.keypoints_NK2[rows]
        unknown_TK3 = np.full((count, keypoints, 3), np.nan)
        self._last = Tracks(
            time_s=time_s if math.isfinite(time_s) else 0.0,
            ids_T=np.arange(self._next_id, self._next_id + count),
            classes_T=valid.classes_N[rows],
            states_T=np.full(count, int(TrackState.CONFIRMED)),
            scores_T=valid.scores_N[rows],
            measured_T=np.ones(count, np.bool_),
            detection_T=valid.rows_N[rows],
            age_s_T=np.zeros(count),
            since_measured_s_T=np.zeros(count),
            boxes_T4=valid.boxes_N4[rows],
            keypoints_raw_TK2=points_TK2,
            keypoints_TK2=points_TK2,
            keypoints_predicted_TK2=points_TK2,
            velocity_TK2=unknown_TK3[..., :2],
            covariance_TK3=unknown_TK3,
            measured_TK=~np.isnan(points_TK2[..., 0]),
        )
        self._next_id += count
        return self._last
