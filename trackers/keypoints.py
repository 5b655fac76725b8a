"""The keypoints of all tracks: gates, learned noise, and the estimates that are published.

Legend: T tracks, M measured tracks, K keypoints. Filters hold P = 2 + K points; keypoint k is point 2 + k.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trackers.calibration import CovarianceScale, DriftLearner
from trackers.config import TrackerConfig
from trackers.kalman import ACCELERATION, ConstantVelocityFilters
from trackers.noise import NoiseLearner
from trackers.smoothing import Smoothing
from trackers.types import Booleans, Floats, Integers, Rows

_TORN_SHARE = 0.25  # when this share of a detection's keypoints is rejected, it straddles two objects
_TORN_KEYPOINTS = 3  # fewer rejected keypoints than this are single outliers


@dataclass(slots=True)
class KeypointCorrection:
    """The measured keypoints of one update, after the gates."""

    noise_MK: Floats  # px²
    squared_MK: Floats  # distance² from the prediction, px²
    accepted_MK: Booleans  # they correct their filters
    restart_MK: Booleans  # they start afresh where they are measured
    torn_M: Booleans  # so many keypoints are rejected that the box is rejected, too


class Keypoints:
    """What a tracker stores of keypoints, besides the states of the filters."""

    def __init__(self, config: TrackerConfig) -> None:
        self.config = config.noise
        self.learner = NoiseLearner(config.noise, 0)
        self.smoothing = Smoothing(config.smoothing, config.smoothing_groups)
        self.scale = CovarianceScale()
        self.drift = DriftLearner(config.coasting, 0)
        self.raw_TK2: Floats = np.empty((0, 0, 2))
        self.accepted_TK: Booleans = np.empty((0, 0), np.bool_)
        self._rejected_TK: Integers = np.empty((0, 0), np.int64)

    @property
    def count(self) -> int:
        return int(self.raw_TK2.shape[1])

    def sort_out(
        self, residual_MK2: Floats, variance_MK: Floats, rows: Rows, keypoints_MK2: Floats, reach_M1: Floats
    ) -> KeypointCorrection:
        """Gate each keypoint by itself, so that an outlier of one changes nothing else.

        Args:
            residual_MK2: measured less predicted, NaN where either is unknown.
            variance_MK: of the prediction, px².
            reach_M1: a keypoint at most this far from its prediction is never rejected, px.
        """
        config = self.config
        noise_MK = self.learner.noise_TK[rows]
        squared_MK = np.einsum("mka,mka->mk", residual_MK2, residual_MK2)
        expected_MK = variance_MK + noise_MK
        limit_MK = np.maximum((2.0 * config.gate_sigma**2 * self.scale.of(rows)) * expected_MK, np.square(reach_M1))
        accepted_MK = squared_MK <= limit_MK  # False for NaN
        self.scale.learn(rows, squared_MK, expected_MK, accepted_MK)
        measured_MK = ~np.isnan(keypoints_MK2[..., 0])
        odd_MK = measured_MK & ~accepted_MK
        if not odd_MK.any():
            self._rejected_TK[rows] = 0
            return KeypointCorrection(noise_MK, squared_MK, accepted_MK, odd_MK, odd_MK.any(axis=1))
        known_MK = ~np.isnan(squared_MK)
        rejected_MK = np.where(odd_MK & known_MK, self._rejected_TK[rows] + 1, 0)
        restart_MK = odd_MK & (~known_MK | (rejected_MK > config.gate_patience))
        rejected_MK[restart_MK] = 0
        self._rejected_TK[rows] = rejected_MK
        count_M = (rejected_MK > 0).sum(axis=1)
        torn_M = count_M >= np.maximum(_TORN_SHARE * measured_MK.sum(axis=1), _TORN_KEYPOINTS)
        return KeypointCorrection(noise_MK, squared_MK, accepted_MK, restart_MK, torn_M)

    def accept(
        self,
        filters: ConstantVelocityFilters,
        rows: Rows,
        keypoints_MK2: Floats,
        correction: KeypointCorrection,
        time_s: float,
    ) -> None:
        """Restart and learn. Call this after the filters were updated."""
        used_MK = correction.accepted_MK | correction.restart_MK
        self.learner.learn(rows, keypoints_MK2, used_MK, time_s)
        filters.variance_5TP[ACCELERATION, rows, 2:] = self.learner.acceleration_TK[rows]
        for one_euro in self.smoothing.one_euro:
            one_euro.update(rows, keypoints_MK2, used_MK, time_s)
        self.accepted_TK[rows] = used_MK
        self.raw_TK2[rows] = keypoints_MK2
        if correction.restart_MK.any():
            match, keypoint = correction.restart_MK.nonzero()
            tracks = match if isinstance(rows, slice) else rows[match]
            filters.restart(
                tracks,
                2 + keypoint,
                keypoints_MK2[match, keypoint],
                filters.velocity_TP2[tracks, 0],  # as fast as its box
                self.learner.noise_TK[tracks, keypoint],
                self.learner.speed_variance()[tracks, keypoint],
            )

    def append(self, keypoints_MK2: Floats, area_M1: Floats, time_s: float, interval_s: float) -> None:
        """Add tracks."""
        measured_MK = ~np.isnan(keypoints_MK2[..., 0])
        self.learner.append(keypoints_MK2, area_M1, time_s, interval_s)
        self.scale.append(len(keypoints_MK2))
        self.drift.append(len(keypoints_MK2))
        for one_euro in self.smoothing.one_euro:
            one_euro.append(keypoints_MK2, time_s)
        self.raw_TK2 = np.concatenate((self.raw_TK2, keypoints_MK2))
        self.accepted_TK = np.concatenate((self.accepted_TK, measured_MK))
        self._rejected_TK = np.concatenate((self._rejected_TK, np.zeros(measured_MK.shape, np.int64)))

    def keep(self, kept_T: Booleans) -> None:
        """Delete the tracks that are not kept."""
        self.learner.keep(kept_T)
        self.scale.keep(kept_T)
        self.drift.keep(kept_T)
        for one_euro in self.smoothing.one_euro:
            one_euro.keep(kept_T)
        self.raw_TK2 = self.raw_TK2[kept_T]
        self.accepted_TK = self.accepted_TK[kept_T]
        self._rejected_TK = self._rejected_TK[kept_T]

    def widen(self, keypoints: int, area_T1: Floats, time_s: float, interval_s: float) -> None:
        """Make room for skeletons of `keypoints` keypoints."""
        extra = keypoints - self.count
        self.learner.widen(keypoints, area_T1, time_s, interval_s)
        self.drift.widen(keypoints)
        for one_euro in self.smoothing.one_euro:
            one_euro.widen(keypoints)
        self.raw_TK2 = np.pad(self.raw_TK2, ((0, 0), (0, extra), (0, 0)), constant_values=np.nan)
        self.accepted_TK = np.pad(self.accepted_TK, ((0, 0), (0, extra)))
        self._rejected_TK = np.pad(self._rejected_TK, ((0, 0), (0, extra)))
