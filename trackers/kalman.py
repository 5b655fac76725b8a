"""Constant-velocity Kalman filters of many scalar coordinates in one batch of arrays.

Every coordinate (box centre and size, each keypoint's x and y) is its own filter with state (position, velocity), so
one wild keypoint can move nothing else, and the 2 × 2 algebra has a closed form that numpy runs over all tracks and
coordinates at once. Equal to `filterpy.kalman.KalmanFilter` with

    F = [[1, dt], [0, 1]],  H = [[1, 0]],
    Q = walk * [[dt, 0], [0, 0]] + acceleration * [[dt^3 / 3, dt^2 / 2], [dt^2 / 2, dt]]

(white acceleration: Bar-Shalom, Li, Kirubarajan, "Estimation with Applications to Tracking and Navigation", 6.2.2).

Legend: T tracks, M measured tracks, D coordinates.
"""

from __future__ import annotations

import numpy as np

from trackers.types import Booleans, Floats, Integers

POSITION, VELOCITY, VARIANCE, COVARIANCE, VELOCITY_VARIANCE = range(5)


class ConstantVelocityFilters:
    """T × D filters; `state_5TD` holds position, velocity, and the covariance's pp, pv, vv."""

    def __init__(self, coordinates: int) -> None:
        self.state_5TD: Floats = np.empty((5, 0, coordinates))

    def predict(self, dt_s: float, walk_TD: Floats, acceleration_TD: Floats) -> None:
        """Move every filter `dt_s` ahead; the noise densities are px²/s and px²/s³."""
        position, velocity, pp, pv, vv = self.state_5TD
        position += dt_s * velocity
        spread = dt_s * vv
        pp += dt_s * (2.0 * pv + spread + walk_TD) + acceleration_TD * (dt_s**3 / 3.0)
        pv += spread + acceleration_TD * (dt_s * dt_s / 2.0)
        vv += acceleration_TD * dt_s

    def update(self, rows_M: Integers, measured_MD: Floats, noise_MD: Floats, valid_MD: Booleans | None = None) -> None:
        """Correct the filters of `rows_M` by a measurement of variance `noise_MD` (px²) where `valid_MD` says so."""
        state = self.state_5TD[:, rows_M]
        position, velocity, pp, pv, vv = state
        total = pp + noise_MD
        gain = pp / total
        velocity_gain = pv / total
        residual = measured_MD - position
        if valid_MD is not None:
            gain = np.where(valid_MD, gain, 0.0)
            velocity_gain = np.where(valid_MD, velocity_gain, 0.0)
            residual = np.where(valid_MD, residual, 0.0)
        position += gain * residual
        velocity += velocity_gain * residual
        vv -= velocity_gain * pv
        pv *= 1.0 - gain
        pp *= 1.0 - gain
        self.state_5TD[:, rows_M] = state

    def append(self, state_5MD: Floats) -> None:
        """Add filters, given their whole state."""
        self.state_5TD = np.concatenate((self.state_5TD, state_5MD), axis=1)

    def keep(self, kept_T: Booleans) -> None:
        """Forget every track that is not kept."""
        self.state_5TD = self.state_5TD[:, kept_T]
