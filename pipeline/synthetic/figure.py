"""What a figure passes to the painter: outlines in paint order, and keypoints with the parts that they lie on."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.synthetic.geometry import Floats, View

Colour = tuple[float, float, float]
"""RGB, 0..255."""


@dataclass(frozen=True)
class Pattern:
    """A textile pattern or the pattern of a coat, drawn on some parts.

    Attributes:
        kind: "stripes", "checks" or "blotches".
        period_px: length of one repeat.
        turn_rad: direction of the stripes.
        colour: colour of the pattern.
        seed: random seed of the blotches.
    """

    kind: str
    period_px: float
    turn_rad: float
    colour: Colour
    seed: int

    def scaled(self, scale_px: float) -> Pattern:
        """Return the pattern for a figure of `scale_px` pixels per unit. Before, `period_px` is in figure units."""
        return replace(self, period_px=max(2.0, self.period_px * scale_px))


@dataclass
class Part:
    """One painted outline. `marks` (highlights, eyes, pockets) are painted right after it and count as part of it."""

    name: str
    outline_N2: Floats
    colour: Colour
    depth: float
    marks: list[tuple[Floats, Colour]] = field(default_factory=list)
    pattern: Pattern | None = None


@dataclass
class Figure:
    """A figure projected into the image.

    Attributes:
        parts: in paint order, farthest first.
        keypoints_K2: pixels (x, y), exact even outside the image.
        hosts_K: names of the parts that each keypoint lies on. A keypoint is visible unless something that is painted
            after the last of them covers its pixel. Empty: this figure has no such keypoint (flag 0).
        facing_K: False where the keypoint lies on a side that faces away from the camera.
    """

    parts: list[Part]
    keypoints_K2: Floats
    hosts_K: list[tuple[str, ...]]
    facing_K: NDArray[np.bool_]


class Model(Protocol):
    """One individual. Its appearance and motion are drawn at random once; its figure depends only on view and time."""

    yaw_range_deg: tuple[float, float]
    pitch_range_deg: tuple[float, float]
    max_roll_deg: float

    def figure(self, view: View, time_s: float) -> Figure: ...


def shaded(colour: Colour, gain: float) -> Colour:
    """Return the colour, brighter (gain > 1) or darker, clipped to 0..255."""
    red, green, blue = (min(255.0, max(0.0, channel * gain)) for channel in colour)
    return red, green, blue


def draw_colour(rng: np.random.Generator, saturation: tuple[float, float] = (0.0, 0.9)) -> Colour:
    """Return a random colour. Muted and vivid ones are equally likely."""
    value = rng.uniform(30.0, 245.0)
    tint_3 = rng.uniform(0.0, 1.0, 3)
    strength = rng.uniform(*saturation)
    mixed_3 = value * (1.0 - strength * (tint_3.max() - tint_3))
    return float(mixed_3[0]), float(mixed_3[1]), float(mixed_3[2])


def draw_pattern(rng: np.random.Generator) -> Pattern:
    """Return a random pattern for clothes. Its period is in figure units (see `Pattern.scaled`)."""
    kind = ("stripes", "checks", "blotches")[int(rng.integers(3))]
    return Pattern(kind, rng.uniform(0.03, 0.12), rng.uniform(0.0, np.pi), draw_colour(rng), int(rng.integers(2**31)))
