"""Learns the noise of each keypoint while it is tracked.

For a point that moves with white acceleration of density q and is measured with noise r at intervals h, the second
difference e of its measurements has

    E[e²] = 6 r + 2/3 q h³      and      E[e e'] = -4 r + 1/6 q h³

for neighbours e, e'. These two equations give r and q, so a still wrist with noisy measurements is told apart from a
fast wrist with good ones, without any knowledge of the detector. (Autocovariance least squares: Odelson, Rajamani,
Rawlings, Automatica 42, 2006, reduced to two lags.) Unequal intervals use e = d2 - d1 * h2 / h1.

Legend: T tracks, M measured tracks, K keypoints.
"""

from __future__ import annotations

import numpy as np

from trackers.config import NoiseConfig
from trackers.types import Booleans, Floats, Rows

# Channels of the memory; each has one number per track and keypoint.
_SQUARE, _NEIGHBOUR, _COUNT, _INTERVAL, _TIME, _STEP = range(6)


class NoiseLearner:
    """Running estimates of measurement noise (px²) and acceleration density (px²/s³)."""

    def __init__(self, config: NoiseConfig, keypoints: int) -> None:
        self.config = config
        self.noise_TK: Floats = np.empty((0, keypoints))
        self.acceleration_TK: Floats = np.empty((0, keypoints))
        self._memory_6TK: Floats = np.empty((6, 0, keypoints))
        self._last_3TK2: Floats = np.empty((3, 0, keypoints, 2))  # measurement, first and second difference

    def append(self, keypoints_MK2: Floats, area_M1: Floats, time_s: float, interval_s: float) -> None:
        """Add tracks with the prior noise, which is proportional to the object's size."""
        memory, last = self._prior(keypoints_MK2, area_M1, time_s, interval_s)
        noise, acceleration = self._solve(memory)
        self._memory_6TK = np.concatenate((self._memory_6TK, memory), axis=1)
        self._last_3TK2 = np.concatenate((self._last_3TK2, last), axis=1)
        self.noise_TK = np.concatenate((self.noise_TK, noise))
        self.acceleration_TK = np.concatenate((self.acceleration_TK, acceleration))

    def widen(self, keypoints: int, area_T1: Floats, time_s: float, interval_s: float) -> None:
        """Extend the arrays to `keypoints` keypoints per track; new ones get the prior."""
        extra = keypoints - self.noise_TK.shape[1]
        unknown = np.full((len(area_T1), extra, 2), np.nan)
        memory, last = self._prior(unknown, area_T1, time_s, interval_s)
        noise, acceleration = self._solve(memory)
        self._memory_6TK = np.concatenate((self._memory_6TK, memory), axis=2)
        self._last_3TK2 = np.concatenate((self._last_3TK2, last), axis=2)
        self.noise_TK = np.concatenate((self.noise_TK, noise), axis=1)
        self.acceleration_TK = np.concatenate((self.acceleration_TK, acceleration), axis=1)

    def _prior(self, keypoints_MK2: Floats, area_M1: Floats, time_s: float, interval_s: float) -> tuple[Floats, Floats]:
        config = self.config
        shape = keypoints_MK2.shape[:2]
        noise = np.broadcast_to(config.prior**2 * area_M1 + config.floor_px**2, shape)
        drive = config.prior_ratio * noise
        memory = np.empty((6, *shape))
        memory[_SQUARE] = 6.0 * noise + 2.0 / 3.0 * drive
        memory[_NEIGHBOUR] = -4.0 * noise + drive / 6.0
        memory[_COUNT] = config.prior_updates
        memory[_INTERVAL] = interval_s
        memory[_TIME] = time_s
        memory[_STEP] = np.nan
        last = np.full((3, *shape, 2), np.nan)
        last[0] = keypoints_MK2
        return memory, last

    @property
    def measured_s_TK(self) -> Floats:
        """When each keypoint was last measured; when its track began, if it never was."""
        return np.asarray(self._memory_6TK[_TIME])

    def speed_variance(self) -> Floats:
        """Variance of a new keypoint's velocity, px²/s²."""
        return np.asarray(self._memory_6TK[_SQUARE] / np.maximum(self._memory_6TK[_INTERVAL], 1e-3) ** 2)

    def learn(self, rows: Rows, keypoints_MK2: Floats, used_MK: Booleans, time_s: float) -> None:
        """Learn from the accepted measurements of this update."""
        config = self.config
        memory = self._memory_6TK[:, rows]
        square, neighbour, count, interval, last_time, last_step = memory
        last = self._last_3TK2[:, rows]
        measured, first, second = last
        step = np.maximum(time_s - last_time, 1e-6)
        ratio = step / last_step
        difference = keypoints_MK2 - measured
        limit = config.clip_sigma * np.sqrt(square)[..., None]
        bent = np.minimum(np.maximum(difference - first * ratio[..., None], -limit), limit)
        even = used_MK & (ratio > 0.5) & (ratio < 2.0) & ~np.isnan(bent[..., 0])
        paired = even & ~np.isnan(second[..., 0])
        rate = 1.0 / np.minimum(count + 1.0, config.memory_updates)
        square += np.where(even, rate * (0.5 * np.einsum("mka,mka->mk", bent, bent) - square), 0.0)
        product = 0.5 * np.einsum("mka,mka->mk", bent, second)
        neighbour += np.where(paired, rate * (product - neighbour), 0.0)
        count += even
        interval += np.where(even, 0.1 * (step - interval), 0.0)
        np.copyto(last_step, step, where=used_MK)
        np.copyto(last_time, time_s, where=used_MK)
        bent[~even] = np.nan
        used_MK1 = used_MK[..., None]
        for stored, newest in ((measured, keypoints_MK2), (first, difference), (second, bent)):
            np.copyto(stored, newest, where=used_MK1)
        if not isinstance(rows, slice):
            self._memory_6TK[:, rows] = memory
            self._last_3TK2[:, rows] = last
        self.noise_TK[rows], self.acceleration_TK[rows] = self._solve(memory)

    def _solve(self, memory: Floats) -> tuple[Floats, Floats]:
        config = self.config
        square, neighbour, interval = memory[_SQUARE], memory[_NEIGHBOUR], memory[_INTERVAL]
        drive = np.maximum((4.0 * square + 6.0 * neighbour) * (3.0 / 11.0), 0.0)
        noise = np.maximum(square / 6.0 - drive / 9.0, 0.0) + config.floor_px**2
        ratio = np.minimum(np.maximum(drive / (config.calm * noise), config.least_ratio), config.most_ratio)
        return noise, ratio * noise / np.maximum(interval, 1e-6) ** 3

    def keep(self, kept_T: Booleans) -> None:
        self._memory_6TK = self._memory_6TK[:, kept_T]
        self._last_3TK2 = self._last_3TK2[:, kept_T]
        self.noise_TK = self.noise_TK[kept_T]
        self.acceleration_TK = self.acceleration_TK[kept_T]
