"""Constant-velocity Kalman filters of many points in one batch of arrays.

A track has P = 2 + K points: its box's centre, its box's size, and each keypoint. Every point has its own filter, so an
outlier of one keypoint cannot move the others. Both axes of a point share one covariance because they have the same
noises. The update of the state (position, velocity) has a closed form, which numpy computes for all tracks and points
at once. Each axis equals `filterpy.kalman.KalmanFilter` with

    F = [[1, dt], [0, 1]],  H = [[1, 0]],
    Q = walk * [[dt, 0], [0, 0]] + acceleration * filterpy.common.Q_continuous_white_noise(2, dt)

(white acceleration: Bar-Shalom, Li, Kirubarajan, "Estimation with Applications to Tracking and Navigation", 6.2.2).
`lagged_TP2` is the fixed-lag estimate of one update ago (Rauch-Tung-Striebel over one step, same book, 8.6).

Legend: T tracks, M measured tracks, P points. Rows are an index array, or slice(None) for all tracks in order. The
slice avoids copies in the usual case that an update measures every track.
"""

from __future__ import annotations

import numpy as np
from filterpy.common import Q_continuous_white_noise

from trackers.types import Booleans, Floats, Rows

PP, PV, VV, WALK, ACCELERATION = range(5)


class ConstantVelocityFilters:
    """T × P filters.

    position_TP2 in px, velocity_TP2 in px/s; variance_5TP holds the covariance's pp, pv, vv (px², px²/s, px²/s²) and
    the densities of the process noise, walk (px²/s) and acceleration (px²/s³). Prediction is then one matrix product.
    """

    def __init__(self, points: int) -> None:
        self.position_TP2: Floats = np.empty((0, points, 2))
        self.velocity_TP2: Floats = np.empty((0, points, 2))
        self.lagged_TP2: Floats = np.empty((0, points, 2))
        self.variance_5TP: Floats = np.empty((5, 0, points))
        self._transition_35: Floats = np.eye(3, 5)
        self._unit_noise: list[list[float]] = Q_continuous_white_noise(dim=2, dt=1.0).tolist()  # scaled to each step
        self._cross_TP: Floats = np.empty((0, points))  # covariance of the lagged and the predicted position
        # The state before the last prediction: points that are not measured then are predicted in another way.
        self.before_position_TP2: Floats = self.position_TP2
        self.before_velocity_TP2: Floats = self.velocity_TP2
        self.before_variance_TP: Floats = np.empty((0, points))

    def predict(self, dt_s: float) -> None:
        """Predict every filter `dt_s` ahead."""
        self.before_position_TP2, self.before_velocity_TP2 = self.position_TP2, self.velocity_TP2.copy()
        if self.position_TP2.shape[1] > 2:  # only keypoints need the lagged estimate
            self._cross_TP = self.variance_5TP[PP] + dt_s * self.variance_5TP[PV]
            self.lagged_TP2 = self.position_TP2.copy()
            self.before_variance_TP = self.variance_5TP[PP].copy()
        self.position_TP2 = self.position_TP2 + dt_s * self.velocity_TP2
        square = dt_s * dt_s
        (noise_pp, noise_pv), (_, noise_vv) = self._unit_noise
        moving = self._transition_35
        moving[0, 1:] = 2.0 * dt_s, square, dt_s, noise_pp * square * dt_s
        moving[1, 2], moving[1, 4] = dt_s, noise_pv * square
        moving[2, 4] = noise_vv * dt_s
        shape = self.variance_5TP.shape
        moved = moving @ self.variance_5TP.reshape(5, shape[1] * shape[2])
        self.variance_5TP[:3] = moved.reshape(3, *shape[1:])

    def update(self, rows: Rows, measured_MP2: Floats, noise_MP: Floats, valid_MP: Booleans | None) -> None:
        """Correct the filters of `rows` by measurements of variance `noise_MP` (px²), where `valid_MP` says so."""
        variance = self.variance_5TP[:3, rows]
        pp, pv, vv = variance
        weight = 1.0 / (pp + noise_MP)
        residual = measured_MP2 - self.position_TP2[rows]
        if valid_MP is not None:
            weight = np.where(valid_MP, weight, 0.0)
            residual[~valid_MP] = 0.0
        gain = pp * weight
        velocity_gain = pv * weight
        if valid_MP is not None:
            self.lagged_TP2[rows] += (self._cross_TP[rows] * weight)[..., None] * residual
        self.position_TP2[rows] += gain[..., None] * residual
        self.velocity_TP2[rows] += velocity_gain[..., None] * residual
        vv -= velocity_gain * pv
        gain = 1.0 - gain
        pv *= gain
        pp *= gain
        if not isinstance(rows, slice):
            self.variance_5TP[:3, rows] = variance

    def append(self, position_MP2: Floats, velocity_MP2: Floats, variance_5MP: Floats) -> None:
        """Add tracks, given their whole state."""
        self.position_TP2 = np.concatenate((self.position_TP2, position_MP2))
        self.velocity_TP2 = np.concatenate((self.velocity_TP2, velocity_MP2))
        self.lagged_TP2 = np.concatenate((self.lagged_TP2, position_MP2))
        self.variance_5TP = np.concatenate((self.variance_5TP, variance_5MP), axis=1)
        self._cross_TP = np.concatenate((self._cross_TP, variance_5MP[PP]))

    def restart(self, rows_M: Rows, point_M: Rows, position_M2: Floats, velocity_M2: Floats, variance_M: Floats,
                velocity_variance_M: Floats) -> None:  # fmt: skip
        """Set the states of single points."""
        at = (rows_M, point_M)
        self.position_TP2[at] = position_M2
        self.lagged_TP2[at] = position_M2
        self.velocity_TP2[at] = velocity_M2
        self.variance_5TP[PP][at] = variance_M
        self.variance_5TP[PV][at] = 0.0
        self.variance_5TP[VV][at] = velocity_variance_M
        self._cross_TP[at] = variance_M

    def keep(self, kept_T: Booleans) -> None:
        """Delete the tracks that are not kept."""
        self.position_TP2 = self.position_TP2[kept_T]
        self.velocity_TP2 = self.velocity_TP2[kept_T]
        self.lagged_TP2 = self.lagged_TP2[kept_T]
        self.variance_5TP = self.variance_5TP[:, kept_T]
        self._cross_TP = self._cross_TP[kept_T]

    def resized(self, points: int) -> ConstantVelocityFilters:
        """The same tracks with more points (unknown: NaN) or fewer."""
        result = ConstantVelocityFilters(points)
        extra = max(points - self.position_TP2.shape[1], 0)

        def fitted(values: Floats, axis: int) -> Floats:
            padding = [(0, 0)] * values.ndim
            padding[axis] = (0, extra)
            padded = np.pad(values, padding, constant_values=np.nan)
            return np.ascontiguousarray(padded[:, :points] if axis == 1 else padded[:, :, :points])

        result.position_TP2 = fitted(self.position_TP2, 1)
        result.velocity_TP2 = fitted(self.velocity_TP2, 1)
        result.lagged_TP2 = fitted(self.position_TP2, 1)
        result.variance_5TP = fitted(self.variance_5TP, 2)
        result._cross_TP = result.variance_5TP[PP].copy()
        return result
