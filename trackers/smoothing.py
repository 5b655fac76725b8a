"""Causal smoothing of keypoints, all tracks at once.

Legend: T tracks, M measured tracks, K keypoints.
"""

from __future__ import annotations

import numpy as np

from trackers.config import SmoothingConfig
from trackers.types import Booleans, Floats, Integers


class KeypointSmoother:
    """One-Euro smoothing (Casiez, Roussel, Vogel, CHI 2012) with true time, or none."""

    def __init__(self, config: SmoothingConfig) -> None:
        self.config = config
        self.smoothed_TK2: Floats = np.empty((0, 0, 2))
        self._speed_TK2: Floats = np.empty((0, 0, 2))
        self._time_s_TK: Floats = np.empty((0, 0))

    def update(self, rows_M: Integers, keypoints_MK2: Floats, time_s: float) -> None:
        """Take measured keypoints (NaN: not measured, which leaves the last value) of the tracks `rows_M`."""
        before = self.smoothed_TK2[rows_M]
        fresh = np.isnan(before[..., 0])
        valid = ~np.isnan(keypoints_MK2[..., 0])
        dt = np.maximum(time_s - self._time_s_TK[rows_M], 1e-6)[..., None]
        if self.config.mode == "raw":
            after, speed = keypoints_MK2, np.zeros_like(before)
        else:
            rate = (keypoints_MK2 - before) / dt
            last = self._speed_TK2[rows_M]
            speed = last + _blend(self.config.derivative_cutoff_hz, dt) * (rate - last)
            cutoff = self.config.min_cutoff_hz + self.config.beta * np.abs(speed)
            after = before + _blend(cutoff, dt) * (keypoints_MK2 - before)
        after = np.where(fresh[..., None], keypoints_MK2, after)
        speed = np.where(fresh[..., None], 0.0, speed)
        self.smoothed_TK2[rows_M] = np.where(valid[..., None], after, before)
        self._speed_TK2[rows_M] = np.where(valid[..., None], speed, self._speed_TK2[rows_M])
        self._time_s_TK[rows_M] = np.where(valid, time_s, self._time_s_TK[rows_M])

    def append(self, keypoints_MK2: Floats, time_s: float) -> None:
        self.smoothed_TK2 = np.concatenate((self.smoothed_TK2, keypoints_MK2))
        self._speed_TK2 = np.concatenate((self._speed_TK2, np.zeros_like(keypoints_MK2)))
        self._time_s_TK = np.concatenate((self._time_s_TK, np.full(keypoints_MK2.shape[:2], time_s)))

    def keep(self, kept_T: Booleans) -> None:
        self.smoothed_TK2 = self.smoothed_TK2[kept_T]
        self._speed_TK2 = self._speed_TK2[kept_T]
        self._time_s_TK = self._time_s_TK[kept_T]

    def widen(self, keypoints: int) -> None:
        """Make room for skeletons of `keypoints` keypoints."""
        extra = ((0, 0), (0, keypoints - self.smoothed_TK2.shape[1]), (0, 0))
        self.smoothed_TK2 = np.pad(self.smoothed_TK2, extra, constant_values=np.nan)
        self._speed_TK2 = np.pad(self._speed_TK2, extra)
        self._time_s_TK = np.pad(self._time_s_TK, extra[:2])

    def restart(self) -> None:
        """Forget what was smoothed: the next measurement starts afresh."""
        self.smoothed_TK2[:] = np.nan


def _blend(cutoff_hz: Floats | float, dt_s: Floats) -> Floats:
    ratio = 2.0 * np.pi * cutoff_hz * dt_s
    return np.asarray(ratio / (ratio + 1.0))
