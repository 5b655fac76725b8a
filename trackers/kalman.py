"""Constant-velocity Kalman filters of many points in one batch of arrays.

A track has P = 2 + K points: its box's centre, its box's size, and each keypoint. Every point is its own filter, so one
wild keypoint can move nothing else; its two axes share one covariance, since they share their noises. The algebra of
the state (position, velocity) has a closed form that numpy runs over all tracks and points at once. Each axis equals
`filterpy.kalman.KalmanFilter` with

    F = [[1, dt], [0, 1]],  H = [[1, 0]],
    Q = walk * [[dt, 0], [0, 0]] + acceleration * [[dt^3 / 3, dt^2 / 2], [dt^2 / 2, dt]]

(white acceleration: Bar-Shalom, Li, Kirubarajan, "Estimation with Applications to Tracking and Navigation", 6.2.2).
`lagged_TP2` is the fixed-lag estimate of one update ago (Rauch-Tung-Striebel over one step, same book, 8.6).

Legend: T tracks, M measured tracks, P points.
"""

from __future__ import annotations

import numpy as np

from trackers.types import Booleans, Floats, Integers


class ConstantVelocityFilters:
    """T × P filters: positions in px, velocities in px/s, and the covariance's pp, pv, vv."""

    def __init__(self, points: int) -> None:
        self.position_TP2: Floats = np.empty((0, points, 2))
        self.velocity_TP2: Floats = np.empty((0, points, 2))
        self.lagged_TP2: Floats = np.empty((0, points, 2))
        self.covariance_3TP: Floats = np.empty((3, 0, points))  # pp, pv, vv
        self._cross_TP: Floats = np.empty((0, points))  # covariance of the lagged and the predicted position

    def predict(self, dt_s: float, walk_TP: Floats, acceleration_TP: Floats) -> None:
        """Move every filter `dt_s` ahead; the noise densities are px²/s and px²/s³."""
        pp, pv, vv = self.covariance_3TP
        self.lagged_TP2 = self.position_TP2
        self.position_TP2 = self.position_TP2 + dt_s * self.velocity_TP2
        self._cross_TP = pp + dt_s * pv
        spread = dt_s * vv
        gained = acceleration_TP * dt_s
        pp += dt_s * (2.0 * pv + spread + walk_TP + gained * (dt_s / 3.0))
        pv += spread + gained * (dt_s / 2.0)
        vv += gained

    def update(self, rows_M: Integers, measured_MP2: Floats, noise_MP: Floats, valid_MP: Booleans | None) -> None:
        """Correct the filters of `rows_M` by measurements of variance `noise_MP` (px²), where `valid_MP` says so."""
        covariance = self.covariance_3TP[:, rows_M]
        pp, pv, vv = covariance
        weight = 1.0 / (pp + noise_MP)
        position = self.position_TP2[rows_M]
        residual = measured_MP2 - position
        if valid_MP is not None:
            weight = np.where(valid_MP, weight, 0.0)
            residual = np.where(valid_MP[..., None], residual, 0.0)
        gain = pp * weight
        velocity_gain = pv * weight
        self.lagged_TP2[rows_M] += (self._cross_TP[rows_M] * weight)[..., None] * residual
        self.position_TP2[rows_M] = position + gain[..., None] * residual
        self.velocity_TP2[rows_M] += velocity_gain[..., None] * residual
        vv -= velocity_gain * pv
        kept = 1.0 - gain
        pv *= kept
        pp *= kept
        self.covariance_3TP[:, rows_M] = covariance

    def append(self, position_MP2: Floats, velocity_MP2: Floats, covariance_3MP: Floats) -> None:
        """Add tracks, given their whole state."""
        self.position_TP2 = np.concatenate((self.position_TP2, position_MP2))
        self.velocity_TP2 = np.concatenate((self.velocity_TP2, velocity_MP2))
        self.lagged_TP2 = np.concatenate((self.lagged_TP2, position_MP2))
        self.covariance_3TP = np.concatenate((self.covariance_3TP, covariance_3MP), axis=1)
        self._cross_TP = np.concatenate((self._cross_TP, covariance_3MP[0]))

    def restart(self, rows_M: Integers, point_M: Integers, position_M2: Floats, velocity_M2: Floats,
                variance_M: Floats, velocity_variance_M: Floats) -> None:  # fmt: skip
        """Begin single points anew."""
        at = (rows_M, point_M)
        self.position_TP2[at] = position_M2
        self.lagged_TP2[at] = position_M2
        self.velocity_TP2[at] = velocity_M2
        self.covariance_3TP[0][at] = variance_M
        self.covariance_3TP[1][at] = 0.0
        self.covariance_3TP[2][at] = velocity_variance_M
        self._cross_TP[at] = variance_M

    def keep(self, kept_T: Booleans) -> None:
        """Forget every track that is not kept."""
        self.position_TP2 = self.position_TP2[kept_T]
        self.velocity_TP2 = self.velocity_TP2[kept_T]
        self.lagged_TP2 = self.lagged_TP2[kept_T]
        self.covariance_3TP = self.covariance_3TP[:, kept_T]
        self._cross_TP = self._cross_TP[kept_T]

    def widen(self, points: int) -> None:
        """Make room for `points` points per track; the new ones are unknown (NaN)."""
        extra = points - self.position_TP2.shape[1]
        for name in ("position_TP2", "velocity_TP2", "lagged_TP2"):
            padded = np.pad(getattr(self, name), ((0, 0), (0, extra), (0, 0)), constant_values=np.nan)
            setattr(self, name, padded)
        self.covariance_3TP = np.pad(self.covariance_3TP, ((0, 0), (0, 0), (0, extra)), constant_values=np.nan)
        self._cross_TP = np.pad(self._cross_TP, ((0, 0), (0, extra)), constant_values=np.nan)
