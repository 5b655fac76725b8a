"""Paints figures into an image and stores, for every pixel, the number of the part that is visible there."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.synthetic.figure import Figure, Part, Pattern
from pipeline.synthetic.geometry import Floats

_SUBPIXEL_BITS = 4
_FAR_PX = 16_000.0  # outlines are clipped to this before the conversion to fixed-point numbers


class Painter:
    """An image being painted, back to front.

    Attributes:
        rgb_HW3: uint8 colours.
        owner_HW: int32 number of the part that is visible at each pixel; 0 is background.
    """

    def __init__(self, background_HW3: NDArray[np.uint8]) -> None:
        self.rgb_HW3 = background_HW3
        height, width = background_HW3.shape[:2]
        self.owner_HW: NDArray[np.int32] = np.zeros((height, width), np.int32)
        self._count = 0

    def paint(self, parts: list[Part], anchor_2: Floats) -> tuple[int, tuple[int, int, int, int]]:
        """Paint parts in order. Return the number of the first and the window (x0, y0, x1, y1) in pixels that they
        cover.

        `anchor_2` is the origin of the patterns, in pixels.
        """
        first = self._count + 1
        corners = []
        for part in parts:
            self._count += 1
            fixed = self._fill(self.rgb_HW3, part.outline_N2, part.colour, cv2.LINE_AA)
            cv2.fillPoly(self.owner_HW, [fixed], (self._count,), cv2.LINE_8, _SUBPIXEL_BITS)
            corners.append(part.outline_N2)
            for outline_N2, colour in part.marks:
                fixed = self._fill(self.rgb_HW3, outline_N2, colour, cv2.LINE_AA)
                cv2.fillPoly(self.owner_HW, [fixed], (self._count,), cv2.LINE_8, _SUBPIXEL_BITS)
                corners.append(outline_N2)
        window = self._window(np.concatenate(corners))
        self._print(parts, first, window, anchor_2)
        return first, window

    @staticmethod
    def _fill(
        image: NDArray[np.uint8], outline_N2: Floats, colour: tuple[float, float, float], line: int
    ) -> NDArray[np.int32]:
        fixed = np.rint(np.clip(outline_N2, -_FAR_PX, _FAR_PX) * (1 << _SUBPIXEL_BITS)).astype(np.int32)
        cv2.fillPoly(image, [fixed], colour, line, _SUBPIXEL_BITS)
        return fixed

    def _window(self, points_N2: Floats) -> tuple[int, int, int, int]:
        height, width = self.rgb_HW3.shape[:2]
        low, high = np.floor(points_N2.min(0)), np.ceil(points_N2.max(0)) + 1
        x0, x1 = (int(np.clip(x, 0, width)) for x in (low[0], high[0]))
        y0, y1 = (int(np.clip(y, 0, height)) for y in (low[1], high[1]))
        return x0, y0, x1, y1

    def _print(self, parts: list[Part], first: int, window: tuple[int, int, int, int], anchor_2: Floats) -> None:
        """Draw each pattern on the pixels of its parts."""
        numbers: dict[Pattern, list[int]] = {}
        for number, part in enumerate(parts, start=first):
            if part.pattern is not None:
                numbers.setdefault(part.pattern, []).append(number)
        x0, y0, x1, y1 = window
        if x1 <= x0 or y1 <= y0:
            return
        for pattern, wanted in numbers.items():
            carried = np.zeros(len(parts) + 1, dtype=bool)
            carried[[number - first for number in wanted]] = True
            owner = self.owner_HW[y0:y1, x0:x1] - first
            inside = np.where(owner >= 0, carried[np.clip(owner, 0, len(parts))], False)
            inked = inside & _ink(pattern, window, anchor_2)
            region = self.rgb_HW3[y0:y1, x0:x1]
            region[inked] = (region[inked] * 0.25 + np.array(pattern.colour) * 0.75).astype(np.uint8)

    def covered(self, first: int, count: int, window: tuple[int, int, int, int]) -> NDArray[np.bool_]:
        """Return which pixels of the window show one of the `count` parts that start at number `first`."""
        x0, y0, x1, y1 = window
        owner = self.owner_HW[y0:y1, x0:x1]
        shown: NDArray[np.bool_] = (owner >= first) & (owner < first + count)
        return shown

    def flags(self, figure: Figure, first: int) -> NDArray[np.int64]:
        """Return for each keypoint: 2 visible, 1 hidden by the figure or by something in front, 0 outside or absent."""
        height, width = self.rgb_HW3.shape[:2]
        last_of = {part.name: number for number, part in enumerate(figure.parts, start=first)}
        flags_K = np.zeros(len(figure.hosts_K), np.int64)
        for k in range(len(flags_K)):
            x, y = float(figure.keypoints_K2[k, 0]), float(figure.keypoints_K2[k, 1])
            inside = 0.0 <= x < width and 0.0 <= y < height
            if not inside or not figure.hosts_K[k]:
                continue
            hosts = [last_of[name] for name in figure.hosts_K[k] if name in last_of]
            shown = int(self.owner_HW[int(y), int(x)])
            seen = bool(hosts) and shown <= max(hosts) and bool(figure.facing_K[k])
            flags_K[k] = 2 if seen else 1
        return flags_K


def _ink(pattern: Pattern, window: tuple[int, int, int, int], anchor_2: Floats) -> NDArray[np.bool_]:
    x0, y0, x1, y1 = window
    x = (np.arange(x0, x1) - anchor_2[0]) / pattern.period_px
    y = (np.arange(y0, y1) - anchor_2[1]) / pattern.period_px
    cos, sin = np.cos(pattern.turn_rad), np.sin(pattern.turn_rad)
    stripes = np.asarray((x[None, :] * cos + y[:, None] * sin) % 1.0 < 0.45, dtype=np.bool_)
    if pattern.kind == "stripes":
        return stripes
    if pattern.kind == "checks":
        return np.asarray(stripes ^ ((y[:, None] * cos - x[None, :] * sin) % 1.0 < 0.45), dtype=np.bool_)
    phases = np.random.default_rng(pattern.seed).uniform(0.0, 2.0 * np.pi, 4)
    wave_x = np.sin(2.1 * x + phases[0])[None, :] + np.sin(3.7 * y + phases[1])[:, None]
    wave_d = np.sin(2.9 * (x[None, :] + y[:, None]) + phases[2]) + np.sin(2.3 * (x[None, :] - y[:, None]) + phases[3])
    return np.asarray(wave_x + wave_d > 0.35, dtype=np.bool_)
