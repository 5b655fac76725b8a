"""Rotations, a weak-perspective camera, and the outlines that figures consist of.

Axes of a figure: x to the image's right, y down, z towards the camera; a figure at yaw 0 faces the camera,
so its own left is at +x. Lengths are in figure units (a person is about 1 unit tall); `View.project` converts to
pixels.

Shape letters: N points, 2 = (x, y) in pixels, 3 = (x, y, z) in figure units.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_TURN_12 = np.linspace(0.0, 2.0 * math.pi, 12, endpoint=False)
_CIRCLE_12x2: Floats = np.stack([np.cos(_TURN_12), np.sin(_TURN_12)], axis=1)
_HALF_TURN_7 = np.linspace(-math.pi / 2, math.pi / 2, 7)


def rotation(yaw: float, pitch: float, roll: float) -> Floats:
    """[3, 3] rotation, radians: yaw about the vertical, then the camera's pitch (positive looks down), then roll."""
    cy, sy = math.cos(yaw), math.sin(yaw)
    cp, sp = math.cos(pitch), math.sin(pitch)
    cr, sr = math.cos(roll), math.sin(roll)
    about_y = np.array([[cy, 0.0, sy], [0.0, 1.0, 0.0], [-sy, 0.0, cy]])
    about_x = np.array([[1.0, 0.0, 0.0], [0.0, cp, sp], [0.0, -sp, cp]])
    about_z = np.array([[cr, -sr, 0.0], [sr, cr, 0.0], [0.0, 0.0, 1.0]])
    turned: Floats = about_z @ about_x @ about_y
    return turned


@dataclass(frozen=True)
class View:
    """Position and orientation of a figure in front of the camera.

    Attributes:
        rotation_33: figure axes to camera axes.
        scale_px: pixels per figure unit at the figure's centre.
        centre_px: image position (x, y) of the figure's origin.
        distance: distance of the camera in figure units. A smaller one gives stronger perspective.
    """

    rotation_33: Floats
    scale_px: float
    centre_px: tuple[float, float]
    distance: float

    def project(self, points_N3: Floats) -> tuple[Floats, Floats]:
        """Return pixels_N2 and depth_N (figure units; larger is nearer to the camera)."""
        turned_N3 = points_N3 @ self.rotation_33.T
        depth_N = turned_N3[:, 2]
        zoom_N = self.scale_px * self.distance / np.maximum(self.distance - depth_N, 0.3 * self.distance)
        return turned_N3[:, :2] * zoom_N[:, None] + np.asarray(self.centre_px), depth_N


def circle(centre_2: Floats, radius_px: float) -> Floats:
    """Outline of a disc, [12, 2]."""
    outline: Floats = centre_2 + _CIRCLE_12x2 * radius_px
    return outline


def capsule(start_2: Floats, end_2: Floats, start_radius_px: float, end_radius_px: float) -> Floats:
    """Outline of a limb: two half discs joined by straight sides, [14, 2]."""
    along = math.atan2(float(end_2[1] - start_2[1]), float(end_2[0] - start_2[0]))
    end_turn = _HALF_TURN_7 + along
    end_12 = np.stack([np.cos(end_turn), np.sin(end_turn)], axis=1)
    outline: Floats = np.concatenate([end_2 + end_12 * end_radius_px, start_2 - end_12 * start_radius_px])
    return outline


def hull(centres_N2: Floats, radii_px: list[float]) -> Floats:
    """Convex outline around discs."""
    points = np.concatenate([circle(centre, radius) for centre, radius in zip(centres_N2, radii_px, strict=True)])
    outline: Floats = cv2.convexHull(points.astype(np.float32))[:, 0].astype(np.float64)
    return outline


def smooth_closed(points_N2: Floats, steps: int = 4) -> Floats:
    """Catmull-Rom curve through the points of a closed outline, [N * steps, 2]."""
    count = len(points_N2)
    around = np.arange(count)
    before, after, later = (points_N2[(around + shift) % count][:, None] for shift in (-1, 1, 2))
    here = points_N2[:, None]
    t = np.linspace(0.0, 1.0, steps, endpoint=False)[None, :, None]
    cubic = (3 * here - before - 3 * after + later) * t**3
    curve: Floats = 0.5 * (2 * here + (after - before) * t + (2 * before - 5 * here + 4 * after - later) * t**2 + cubic)
    return curve.reshape(-1, 2)
