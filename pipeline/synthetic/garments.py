"""Garments with their DeepFashion2 landmarks. Their outlines bend and sway.

A garment is seen from the front, so its wearer's right is on the left of the image. It is flat, so yaw foreshortens it.
"""

from __future__ import annotations

import math

import numpy as np

from pipeline.synthetic.figure import Figure, Part, draw_colour, draw_pattern, shaded
from pipeline.synthetic.geometry import Floats, View, capsule, smooth_closed

# The right half (image left) of each garment, as (x, y) with x < 0; the left half is its mirror image.
_SHIRT_RIGHT = {
    1: (-0.115, -0.40), 2: (-0.075, -0.33), 6: (-0.25, -0.34), 7: (-0.345, -0.24), 8: (-0.43, -0.12),
    9: (-0.33, -0.05), 10: (-0.275, -0.11), 11: (-0.215, -0.16),
    12: (-0.21, 0.02), 13: (-0.21, 0.20), 14: (-0.22, 0.40),
}  # fmt: skip
_SHIRT_MIRROR = {1: 5, 2: 4, 6: 24, 7: 23, 8: 22, 9: 21, 10: 20, 11: 19, 12: 18, 13: 17, 14: 16}
_SHIRT_MIDDLE = {0: (0.0, -0.385), 3: (0.0, -0.29), 15: (0.0, 0.41)}
_TROUSERS_RIGHT = {
    0: (-0.16, -0.48),
    3: (-0.205, -0.16),
    4: (-0.20, 0.16),
    5: (-0.19, 0.48),
    6: (-0.07, 0.48),
    7: (-0.05, 0.14),
}
_TROUSERS_MIRROR = {0: 2, 3: 13, 4: 12, 5: 11, 6: 10, 7: 9}
_TROUSERS_MIDDLE = {1: (0.0, -0.465), 8: (0.0, -0.14)}
_SKIRT_RIGHT = {0: (-0.15, -0.36), 3: (-0.23, 0.0), 4: (-0.31, 0.36)}
_SKIRT_MIRROR = {0: 2, 3: 7, 4: 6}
_SKIRT_MIDDLE = {1: (0.0, -0.345), 5: (0.0, 0.38)}

_Landmarks = dict[int, tuple[float, float]]
_CUTS: dict[str, tuple[_Landmarks, dict[int, int], _Landmarks, tuple[int, ...]]] = {
    "short sleeve top": (_SHIRT_RIGHT, _SHIRT_MIRROR, _SHIRT_MIDDLE, (1, *range(6, 25), 5, 4, 3, 2)),
    "trousers": (_TROUSERS_RIGHT, _TROUSERS_MIRROR, _TROUSERS_MIDDLE, (0, *range(3, 14), 2, 1)),
    "skirt": (_SKIRT_RIGHT, _SKIRT_MIRROR, _SKIRT_MIDDLE, (0, 3, 4, 5, 6, 7, 2, 1)),
}
"""For each garment: right half, numbers of the mirrored landmarks, middle points, and order around the outline."""

GARMENTS = tuple(_CUTS)


class Garment:
    """One garment; see `pipeline.synthetic.figure.Model`."""

    yaw_range_deg = (-35.0, 35.0)
    pitch_range_deg = (-10.0, 25.0)
    max_roll_deg = 45.0

    def __init__(self, rng: np.random.Generator, name: str) -> None:
        self._name = name
        right, mirror, middle, self._contour = _CUTS[name]
        width, height = rng.uniform(0.85, 1.2), rng.uniform(0.9, 1.1)
        count = len(right) * 2 + len(middle)
        self._rest_K2 = np.zeros((count, 2))
        for number, (x, y) in right.items():
            moved = np.array([x * width, y * height]) + rng.normal(0.0, 0.008, 2)
            self._rest_K2[number] = moved
            self._rest_K2[mirror[number]] = moved * [-1.0, 1.0] + rng.normal(0.0, 0.008, 2)
        for number, (x, y) in middle.items():
            self._rest_K2[number] = np.array([x, y * height]) + rng.normal(0.0, 0.006, 2)
        self._colour = draw_colour(rng)
        self._inside = shaded(self._colour, rng.uniform(0.4, 0.7))
        self._print = draw_pattern(rng) if rng.random() < 0.5 else None
        self._trim = draw_colour(rng) if rng.random() < 0.4 else shaded(self._colour, 0.75)
        self._bend = rng.uniform(0.01, 0.045)
        self._wave = rng.uniform(3.0, 8.0, 2)
        self._phase = rng.uniform(0.0, 2.0 * math.pi, 2)
        self._sway_hz = rng.uniform(0.15, 0.6)
        self._folds = [
            (int(a), int(b), rng.uniform(0.2, 0.8), rng.uniform(0.82, 1.15)) for a, b in rng.integers(0, count, (5, 2))
        ]

    def _bent(self, points_K2: Floats, time_s: float) -> Floats:
        """Return the deformation: two standing waves that change with time, in figure units."""
        sway = 2.0 * math.pi * self._sway_hz * time_s
        x = points_K2[:, 0] + self._bend * np.sin(self._wave[0] * points_K2[:, 1] + self._phase[0] + sway)
        y = points_K2[:, 1] + self._bend * np.sin(self._wave[1] * points_K2[:, 0] + self._phase[1] + 0.7 * sway)
        return np.stack([x, y], axis=1)

    def figure(self, view: View, time_s: float) -> Figure:
        bent_K2 = self._bent(self._rest_K2, time_s)
        depth_K = 0.04 * np.cos(8.0 * bent_K2[:, 0] + self._phase[0])
        pixels_K2, _ = view.project(np.concatenate([bent_K2, depth_K[:, None]], axis=1))
        cloth = Part("cloth", smooth_closed(pixels_K2[list(self._contour)]), self._colour, 0.1)
        cloth.pattern = self._print.scaled(view.scale_px) if self._print is not None else None
        centre = pixels_K2.mean(0)
        width = 0.012 * view.scale_px
        for first, second, reach, gain in self._folds:
            start, end = pixels_K2[first] * 0.8 + centre * 0.2, pixels_K2[second] * 0.5 + centre * 0.5
            cloth.marks.append(
                (capsule(start, start + (end - start) * reach, width * 1.5, width * 0.4), shaded(self._colour, gain))
            )
        self._hems(cloth, pixels_K2, width)
        parts = [cloth]
        if self._name == "short sleeve top":
            collar = pixels_K2[[1, 0, 5, 4, 3, 2]]
            parts.insert(0, Part("collar", smooth_closed(collar), self._inside, 0.0))
        hosts: list[tuple[str, ...]] = [("cloth", "collar")] * len(pixels_K2)
        return Figure(parts, pixels_K2, hosts, np.ones(len(pixels_K2), dtype=bool))

    def _hems(self, cloth: Part, pixels_K2: Floats, width: float) -> None:
        """Draw trim along cuffs, waist and collar. It distinguishes the landmarks, as on real clothes."""
        edges = {
            "short sleeve top": ((8, 9), (21, 22), (14, 15), (15, 16), (1, 2), (2, 3), (3, 4), (4, 5)),
            "trousers": ((0, 1), (1, 2), (5, 6), (10, 11), (1, 8)),
            "skirt": ((0, 1), (1, 2), (4, 5), (5, 6)),
        }[self._name]
        centre = pixels_K2.mean(0)
        for first, second in edges:
            start, end = (pixels_K2[number] * 0.97 + centre * 0.03 for number in (first, second))
            cloth.marks.append((capsule(start, end, width, width), self._trim))
