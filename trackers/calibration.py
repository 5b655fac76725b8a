"""Keeps the published covariances honest: each track compares what its filters claim with what is measured.

Two things are learned. `CovarianceScale` corrects the filters' covariances while a track is measured: it counts how
many measurements fall outside the ellipse that should hold 90 % of them. `DriftLearner` measures how far keypoints
drift from a coasting prediction: every `check_s` it compares where the keypoints are with where the prediction would
have put them.

Legend: T tracks, M measured tracks, K keypoints, P = 2 + K points (box centre, box size, keypoints).
"""

from __future__ import annotations

import math

import numpy as np

from trackers.coasting import certainty, coast, settle
from trackers.config import CoastingConfig
from trackers.types import Booleans, Floats, Rows

_FIRST_KEYPOINT = 2
_ELLIPSE = -2.0 * math.log(0.1)  # squared radius, in standard deviations, of the 90 % ellipse of two axes
_OUTSIDE = 0.12  # share of measurements outside their ellipse for which 90 % of the truth is inside its own (tuned)
_FIRST_GAIN, _LEAST_GAIN = 4.0, 0.5  # of the logarithm of the scale, in the first update and after many
_SCALE_LIMIT = (0.02, 150.0)
_LONGEST_CHECK_S = 1.0  # a prediction over a longer time says nothing about coasting
_OUTLIER = 25.0  # squared drifts above this many times the mean count as this large
_POOLED_CHECKS = 4.0  # the mean of all keypoints of a track counts as so many checks of each of them
_LEAST_DRIFT = 0.05  # of the measurement noise
_DRIFT_MARGIN = 2.4  # of the mean squared drift: drifts have heavy tails (tuned)
_MEMORY_CHECKS = 20.0  # older checks are forgotten


class CovarianceScale:
    """A factor for each track's keypoint covariances, such that 90 % of the measurements are inside their ellipse."""

    def __init__(self) -> None:
        self._scale_T1: Floats = np.empty((0, 1))
        self._updates_T: Floats = np.empty(0)

    def of(self, rows: Rows) -> Floats:
        """The factor, as scale_M1."""
        return self._scale_T1[rows]

    def learn(self, rows: Rows, squared_MK: Floats, expected_MK: Floats, accepted_MK: Booleans) -> None:
        """Take this update's residuals.

        Args:
            squared_MK: distance² of a measurement from its prediction, px².
            expected_MK: the variance per axis that the filter expects of it, px².
            accepted_MK: keypoints that count.
        """
        scale_M1 = self._scale_T1[rows]
        outside_MK = (squared_MK > (_ELLIPSE * scale_M1) * expected_MK) & accepted_MK
        count_M = np.add.reduce(accepted_MK, axis=1, dtype=np.float64)
        excess_M = np.add.reduce(outside_MK, axis=1, dtype=np.float64) - _OUTSIDE * count_M
        updates_M = self._updates_T[rows] + 1.0
        gain_M = np.maximum(_FIRST_GAIN / updates_M, _LEAST_GAIN) / np.maximum(count_M, 1.0)
        scale_M1 = scale_M1 * np.exp(gain_M * excess_M)[:, None]
        self._scale_T1[rows] = np.minimum(np.maximum(scale_M1, _SCALE_LIMIT[0]), _SCALE_LIMIT[1])
        self._updates_T[rows] = updates_M

    def append(self, count: int) -> None:
        """Add tracks of which nothing is known."""
        self._scale_T1 = np.concatenate((self._scale_T1, np.ones((count, 1))))
        self._updates_T = np.concatenate((self._updates_T, np.zeros(count)))

    def keep(self, kept_T: Booleans) -> None:
        """Forget every track that is not kept."""
        self._scale_T1 = self._scale_T1[kept_T]
        self._updates_T = self._updates_T[kept_T]


class DriftLearner:
    """Learns how far keypoints drift from a coasting prediction: a variance in px² after `check_s`.

    The variance grows with time as (t / check_s) ^ growth.
    """

    def __init__(self, config: CoastingConfig, keypoints: int) -> None:
        self.config = config
        self._checked_s = 0.0
        self._checks_TK: Floats = np.empty((0, keypoints))
        self._drift_TK: Floats = np.empty((0, keypoints))  # running mean of a keypoint's squared drift per axis
        self._pooled_T1: Floats = np.empty((0, 1))  # the same of all keypoints of a track
        self._position_TP2: Floats = np.empty((0, _FIRST_KEYPOINT + keypoints, 2))  # at the last check; NaN: not known
        self._velocity_TP2: Floats = np.empty((0, _FIRST_KEYPOINT + keypoints, 2))
        self._certainty_TK: Floats = np.empty((0, keypoints))

    def variance(self, rows: Rows, acceleration_MK: Floats, noise_MK: Floats) -> Floats:
        """Variance of the drift after `check_s`, px² per axis.

        Until a track has been checked, this is what the keypoint's acceleration density (px²/s³) would give. It is
        never less than a share of the measurement noise (px²), since a small drift is hidden by noise.
        """
        checks_MK = self._checks_TK[rows]
        pooled_M1 = self._pooled_T1[rows]
        learned_MK = (checks_MK * self._drift_TK[rows] + _POOLED_CHECKS * pooled_M1) / (checks_MK + _POOLED_CHECKS)
        expected_MK = acceleration_MK * (self.config.check_s**3 / 3.0)
        drift_MK = np.where(np.isnan(pooled_M1), expected_MK, _DRIFT_MARGIN * learned_MK)
        return np.maximum(drift_MK, _LEAST_DRIFT * noise_MK)

    def growth(self, time_s: Floats | float) -> Floats:
        """Share of `variance` that a drift has after `time_s`."""
        return np.asarray((np.maximum(time_s, 0.0) / self.config.check_s) ** self.config.growth)

    def check(
        self, position_TP2: Floats, velocity_TP2: Floats, speed_variance_TK: Floats, noise_TK: Floats,
        measured_TK: Booleans, now_s: float,
    ) -> None:  # fmt: skip
        """Compare the tracks with their prediction from the last check, when that is `check_s` old.

        Args:
            position_TP2, velocity_TP2: the filters' states after this update.
            speed_variance_TK: of their velocities, px²/s².
            noise_TK: variance of their positions, px².
            measured_TK: keypoints that this update measured.
        """
        elapsed_s = now_s - self._checked_s
        if elapsed_s < self.config.check_s * 0.999:
            return
        if elapsed_s <= _LONGEST_CHECK_S:
            self._learn(position_TP2, noise_TK, measured_TK, elapsed_s)
        self._checked_s = now_s
        self._position_TP2 = position_TP2.copy()
        self._position_TP2[:, _FIRST_KEYPOINT:][~measured_TK] = np.nan
        self._velocity_TP2 = velocity_TP2.copy()
        self._certainty_TK = certainty(position_TP2, velocity_TP2, speed_variance_TK, self.config)

    def _learn(self, position_TP2: Floats, noise_TK: Floats, measured_TK: Booleans, elapsed_s: float) -> None:
        config = self.config
        moved = coast(self._position_TP2, self._velocity_TP2, self._certainty_TK, elapsed_s, config)
        predicted_TP2, _ = settle(*moved, np.full(len(position_TP2), elapsed_s), config)
        drift_TK2 = position_TP2[:, _FIRST_KEYPOINT:] - predicted_TP2[:, _FIRST_KEYPOINT:]
        squared_TK = 0.5 * np.einsum("tka,tka->tk", drift_TK2, drift_TK2) - 2.0 * noise_TK
        squared_TK /= self.growth(elapsed_s)
        used_TK = measured_TK & ~np.isnan(squared_TK)
        count_T1 = used_TK.sum(axis=1, keepdims=True)
        known_T1 = ~np.isnan(self._pooled_T1)
        limit_TK = _OUTLIER * (np.maximum(self._pooled_T1, 0.0) + noise_TK)
        squared_TK = np.where(known_T1, np.minimum(squared_TK, limit_TK), squared_TK)
        mean_T1 = np.where(used_TK, squared_TK, 0.0).sum(axis=1, keepdims=True) / np.maximum(count_T1, 1)
        rate_T1 = np.where(
            known_T1, 1.0 / (np.minimum(self._checks_TK.max(axis=1, keepdims=True), _MEMORY_CHECKS) + 1.0), 1.0
        )
        before_T1 = np.where(known_T1, self._pooled_T1, 0.0)
        self._pooled_T1 = np.where(count_T1 > 0, before_T1 + rate_T1 * (mean_T1 - before_T1), self._pooled_T1)
        rate_TK = 1.0 / (np.minimum(self._checks_TK, _MEMORY_CHECKS) + 1.0)
        self._drift_TK += np.where(used_TK, rate_TK * (squared_TK - self._drift_TK), 0.0)
        self._checks_TK += used_TK

    def append(self, count: int) -> None:
        """Add tracks of which nothing is known."""
        points = self._position_TP2.shape[1]
        unknown_NP2 = np.full((count, points, 2), np.nan)
        zeros_NK = np.zeros((count, points - _FIRST_KEYPOINT))
        self._checks_TK = np.concatenate((self._checks_TK, zeros_NK))
        self._drift_TK = np.concatenate((self._drift_TK, zeros_NK))
        self._pooled_T1 = np.concatenate((self._pooled_T1, np.full((count, 1), np.nan)))
        self._position_TP2 = np.concatenate((self._position_TP2, unknown_NP2))
        self._velocity_TP2 = np.concatenate((self._velocity_TP2, unknown_NP2))
        self._certainty_TK = np.concatenate((self._certainty_TK, zeros_NK))

    def keep(self, kept_T: Booleans) -> None:
        """Forget every track that is not kept."""
        self._checks_TK = self._checks_TK[kept_T]
        self._drift_TK = self._drift_TK[kept_T]
        self._pooled_T1 = self._pooled_T1[kept_T]
        self._position_TP2 = self._position_TP2[kept_T]
        self._velocity_TP2 = self._velocity_TP2[kept_T]
        self._certainty_TK = self._certainty_TK[kept_T]

    def widen(self, keypoints: int) -> None:
        """Make room for more keypoints per track."""
        extra = keypoints - self._checks_TK.shape[1]
        self._checks_TK = np.pad(self._checks_TK, ((0, 0), (0, extra)))
        self._drift_TK = np.pad(self._drift_TK, ((0, 0), (0, extra)))
        self._certainty_TK = np.pad(self._certainty_TK, ((0, 0), (0, extra)))
        wider = ((0, 0), (0, extra), (0, 0))
        self._position_TP2 = np.pad(self._position_TP2, wider, constant_values=np.nan)
        self._velocity_TP2 = np.pad(self._velocity_TP2, wider, constant_values=np.nan)
