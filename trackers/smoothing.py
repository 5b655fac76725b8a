"""Chooses the published estimate of each keypoint: measured, filtered or smoothed.

Legend: T tracks, M measured tracks, K keypoints.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trackers.config import SmoothingConfig, SmoothingGroup
from trackers.types import Booleans, Floats, Integers, Rows


class OneEuroFilters:
    """One-Euro filters in true time (Casiez, Roussel, Vogel, CHI 2012), one per track and keypoint axis."""

    def __init__(self, config: SmoothingConfig, keypoints: int) -> None:
        self.config = config
        self.smoothed_TK2: Floats = np.empty((0, keypoints, 2))
        self._speed_TK2: Floats = np.empty((0, keypoints, 2))
        self._time_s_TK: Floats = np.empty((0, keypoints))

    def update(self, rows: Rows, keypoints_MK2: Floats, used_MK: Booleans, time_s: float) -> None:
        """Update with the accepted measurements; other keypoints keep their last value."""
        config = self.config
        before, speed = self.smoothed_TK2[rows], self._speed_TK2[rows]
        dt = np.maximum(time_s - self._time_s_TK[rows], 1e-6)[..., None]
        rate = (keypoints_MK2 - before) / dt
        speed_after = speed + _blend(config.derivative_cutoff_hz, dt) * (rate - speed)
        cutoff = config.min_cutoff_hz + config.beta * np.abs(speed_after)
        after = before + _blend(cutoff, dt) * (keypoints_MK2 - before)
        fresh = np.isnan(before)
        after = np.where(fresh, keypoints_MK2, after)
        speed_after = np.where(fresh, 0.0, speed_after)
        self.smoothed_TK2[rows] = np.where(used_MK[..., None], after, before)
        self._speed_TK2[rows] = np.where(used_MK[..., None], speed_after, speed)
        self._time_s_TK[rows] = np.where(used_MK, time_s, self._time_s_TK[rows])

    def append(self, keypoints_MK2: Floats, time_s: float) -> None:
        self.smoothed_TK2 = np.concatenate((self.smoothed_TK2, keypoints_MK2))
        self._speed_TK2 = np.concatenate((self._speed_TK2, np.zeros_like(keypoints_MK2)))
        self._time_s_TK = np.concatenate((self._time_s_TK, np.full(keypoints_MK2.shape[:2], time_s)))

    def keep(self, kept_T: Booleans) -> None:
        self.smoothed_TK2 = self.smoothed_TK2[kept_T]
        self._speed_TK2 = self._speed_TK2[kept_T]
        self._time_s_TK = self._time_s_TK[kept_T]

    def widen(self, keypoints: int) -> None:
        extra = keypoints - self.smoothed_TK2.shape[1]
        self.smoothed_TK2 = np.pad(self.smoothed_TK2, ((0, 0), (0, extra), (0, 0)), constant_values=np.nan)
        self._speed_TK2 = np.pad(self._speed_TK2, ((0, 0), (0, extra), (0, 0)))
        self._time_s_TK = np.pad(self._time_s_TK, ((0, 0), (0, extra)))


def _blend(cutoff_hz: Floats | float, dt_s: Floats) -> Floats:
    ratio = 2.0 * np.pi * cutoff_hz * dt_s
    return np.asarray(ratio / (ratio + 1.0))


class Smoothing:
    """Chooses the smoothed estimate per class and keypoint."""

    def __init__(self, default: SmoothingConfig, groups: Sequence[SmoothingGroup]) -> None:
        self._default = default
        self._groups = groups
        self._one_euro = [
            (config, OneEuroFilters(config, 0))
            for config in dict.fromkeys((default, *(group.smoothing for group in groups)))
            if config.mode == "one_euro"
        ]

    @property
    def one_euro(self) -> list[OneEuroFilters]:
        """The One-Euro filters in use; none by default."""
        return [filters for _, filters in self._one_euro]

    def smoothed(
        self, classes_M: Integers, shown: Rows, raw_MK2: Floats, filtered_MK2: Floats, lagged_MK2: Floats,
        step_s: float,
    ) -> Floats:  # fmt: skip
        """Return the smoothed keypoints of the tracks `shown`, given all kinds of estimates."""

        def estimate(config: SmoothingConfig) -> Floats:
            if config.mode == "raw":
                return raw_MK2
            if config.mode == "kalman":
                return filtered_MK2
            if config.mode == "fixed_lag":
                return lagged_MK2 if self.lag_s(config, step_s) else filtered_MK2
            return next(filters.smoothed_TK2[shown] for own, filters in self._one_euro if own == config)

        result = estimate(self._default)
        if self._groups:
            result = result.copy()
        for group in self._groups:
            rows = slice(None) if group.class_index is None else classes_M == group.class_index
            columns = [index for index in group.keypoints if index < result.shape[1]]
            chosen = estimate(group.smoothing)
            for column in columns:
                result[rows, column] = chosen[rows, column]
        return result

    @staticmethod
    def lag_s(config: SmoothingConfig, step_s: float) -> float:
        """Return the delay of the smoothed keypoints: one step in mode "fixed_lag" if that is short enough, else 0."""
        return step_s if config.mode == "fixed_lag" and 0.0 < step_s <= config.longest_lag_s else 0.0
