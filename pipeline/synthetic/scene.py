"""Seeded scenes with exact keypoints: single pictures and coherent video.

A scene is a pure function of (seed, config, time). So a frame of a video can be rendered by itself, in any order, and
`render_scene` returns the frame at time 0. The test source of the pipeline and training use this module.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.synthetic import backdrop
from pipeline.synthetic.animals import SPECIES, Quadruped
from pipeline.synthetic.figure import Figure, Model, Part
from pipeline.synthetic.garments import GARMENTS, Garment
from pipeline.synthetic.geometry import Floats, View, rotation
from pipeline.synthetic.hands import Hand
from pipeline.synthetic.painter import Painter
from pipeline.synthetic.people import Person
from pipeline.synthetic.rigid import Car, Chair, Table

_MODELS: dict[str, Callable[[np.random.Generator], Model]] = {
    "person": Person,
    **{name: functools.partial(Quadruped, species=species) for name, species in SPECIES.items()},
    "hand": Hand,
    "table": Table,
    "chair": Chair,
    "car": Car,
    **{name: functools.partial(Garment, name=name) for name in GARMENTS},
}

CATEGORIES: dict[str, str] = {
    "person": "person",
    "dog": "animal", "cow": "animal", "horse": "animal", "zebra": "animal",
    "hand": "hand",
    "table": "table", "chair": "chair", "car": "car",
    "short sleeve top": "short_sleeved_shirt", "trousers": "trousers", "skirt": "skirt",
}  # fmt: skip
"""Maps a category (the text of its prompt) to the name of its skeleton in configs/skeletons."""


@dataclass(frozen=True)
class SceneConfig:
    """What scenes contain. Pairs are (lowest, highest); values between them are drawn uniformly.

    Attributes:
        size_hw: height and width in pixels.
        categories: categories of the figures; each is equally likely.
        instances: number of figures; (0, 0) gives empty scenes.
        scale: nominal length of a figure as a fraction of the shorter side of the image.
        max_roll_deg: largest in-plane rotation. Each kind of figure also has a limit of its own.
        upside_down: probability that a figure ignores `max_roll_deg` and uses only the limit of its kind.
        clutter: number of random shapes behind the figures.
        occluders: number of random shapes between and in front of the figures.
        truncation: how near to the edge the centre of a figure may be: 0 (inside a margin) to 1 (on the edge).
        blur_px: standard deviation of defocus.
        smear_px: length of motion blur.
        noise_std: sensor noise in grey levels.
        min_visible: a figure is not listed if a smaller fraction of it is visible.
    """

    size_hw: tuple[int, int] = (320, 320)
    categories: tuple[str, ...] = tuple(CATEGORIES)
    instances: tuple[int, int] = (1, 4)
    scale: tuple[float, float] = (0.3, 0.95)
    max_roll_deg: float = 25.0
    upside_down: float = 0.04
    clutter: tuple[int, int] = (0, 10)
    occluders: tuple[int, int] = (0, 2)
    truncation: float = 0.6
    blur_px: tuple[float, float] = (0.0, 1.4)
    smear_px: tuple[float, float] = (0.0, 2.5)
    noise_std: tuple[float, float] = (0.0, 10.0)
    min_visible: float = 0.15

    def __post_init__(self) -> None:
        unknown = sorted(set(self.categories) - set(CATEGORIES))
        if unknown:
            raise ValueError(f"unknown categories {unknown}; the generator draws {sorted(CATEGORIES)}")
        if min(self.size_hw) < 1:
            raise ValueError(f"size_hw is {self.size_hw}; height and width must be at least 1 pixel")
        for name in ("instances", "scale", "clutter", "occluders", "blur_px", "smear_px", "noise_std"):
            low, high = getattr(self, name)
            if not 0 <= low <= high:
                raise ValueError(f"{name} is {(low, high)}; give 0 <= lowest <= highest")
        if not self.categories and self.instances[1] > 0:
            raise ValueError("no categories given; name at least one, or set instances to (0, 0)")


@dataclass(frozen=True)
class Instance:
    """One figure of a scene.

    Attributes:
        category: a key of `CATEGORIES`.
        box_xyxy: float32 pixels; the box around its part inside the image, including hidden parts.
        keypoints_K2: float32 pixels in the order of its skeleton, exact even where hidden or outside.
        visible_K: int64: 2 visible, 1 hidden by the figure or by something in front, 0 outside or not existing.
        area: number of visible pixels.
        id: number of the individual, the same in all frames of a video.
        visible_fraction: fraction of its painted pixels that is visible.
    """

    category: str
    box_xyxy: NDArray[np.float32]
    keypoints_K2: NDArray[np.float32]
    visible_K: NDArray[np.int64]
    area: float
    id: int
    visible_fraction: float


@dataclass(frozen=True)
class Scene:
    """A picture, uint8 RGB [height, width, 3], and its figures from far to near."""

    rgb_HW3: NDArray[np.uint8]
    instances: list[Instance] = field(default_factory=list)


@dataclass(frozen=True)
class _Path:
    """Position as a function of time: slow sines around a rest position, so that it never leaves the picture."""

    rest_2: Floats
    reach_2: Floats
    hz_2: Floats
    phase_2: Floats

    @classmethod
    def draw(cls, rng: np.random.Generator, rest_2: Floats, reach_px: float) -> _Path:
        reach_2 = rng.uniform(0.0, reach_px, 2) * [1.0, 0.5]
        return cls(rest_2, reach_2, rng.uniform(0.05, 0.2, 2), rng.uniform(0.0, 2.0 * math.pi, 2))

    def at(self, time_s: float) -> Floats:
        moved: Floats = self.rest_2 + self.reach_2 * np.sin(2.0 * math.pi * self.hz_2 * time_s + self.phase_2)
        return moved


@dataclass(frozen=True)
class _Actor:
    """One individual with its position, size and orientation over time."""

    category: str
    model: Model
    path: _Path
    scale_px: float
    turn_rad: tuple[float, float, float]
    yaw_swing_rad: float
    distance: float

    def figure(self, time_s: float) -> tuple[Figure, Floats]:
        """Return the projected figure and the origin of its patterns."""
        centre_2 = self.path.at(time_s)
        slow = math.sin(2.0 * math.pi * self.path.hz_2[0] * time_s + self.path.phase_2[1])
        yaw, pitch, roll = self.turn_rad
        turned_33 = rotation(yaw + self.yaw_swing_rad * slow, pitch, roll)
        view = View(
            turned_33, self.scale_px * (1.0 + 0.06 * slow), (float(centre_2[0]), float(centre_2[1])), self.distance
        )
        return self.model.figure(view, time_s), centre_2


class SceneVideo:
    """A scene that moves.

    Args:
        seed: seed of all random choices.
        config: what the scene contains.
        size_hw: height and width in pixels; replaces `config.size_hw`.
        rate: frames per second.
    """

    def __init__(self, seed: int, config: SceneConfig, size_hw: tuple[int, int], rate: float = 30.0) -> None:
        if rate <= 0.0:
            raise ValueError(f"rate is {rate}; give frames per second above 0")
        self.config = replace(config, size_hw=size_hw)
        self.rate = rate
        self._seed = seed
        rng = np.random.default_rng(seed)
        height, width = size_hw
        self._background_HW3 = backdrop.paint_background(rng, height, width)
        self._clutter = [self._draw_shape(rng) for _ in range(_between(rng, self.config.clutter))]
        self._actors: list[_Actor] = []
        for _ in range(_between(rng, self.config.instances)):
            self._actors.append(self._draw_actor(rng))
        self._occluders = [self._draw_shape(rng) for _ in range(_between(rng, self.config.occluders))]
        self._blur_px, self._noise_std = rng.uniform(*self.config.blur_px), rng.uniform(*self.config.noise_std)
        self._smear = (rng.uniform(*self.config.smear_px) if rng.random() < 0.3 else 0.0, rng.uniform(0.0, math.pi))
        gain_3 = rng.uniform(0.75, 1.2) * rng.uniform(0.92, 1.08, 3)
        self._offset = rng.uniform(-20.0, 20.0)
        self._light_HW3 = backdrop.light_field(gain_3, rng.uniform(0.7, 1.15, (2, 2)), height, width)

    def frame(self, index: int) -> Scene:
        """Return the scene at `index / rate` seconds. The order of the calls does not matter."""
        time_s = index / self.rate
        painter = Painter(self._background_HW3.copy())
        for part, path in self._clutter:
            painter.paint([_moved(part, path.rest_2)], path.rest_2)
        painted = []
        for number, actor in enumerate(self._actors):
            figure, anchor_2 = actor.figure(time_s)
            first, window = painter.paint(figure.parts, anchor_2)
            whole = painter.covered(first, len(figure.parts), window)
            painted.append((number, figure, first, window, _tight_box(whole, window), int(np.count_nonzero(whole))))
            if number % 2 == 0 and number // 2 < len(self._occluders):
                self._paint_occluder(painter, number // 2, time_s)
        for number in range((len(self._actors) + 1) // 2, len(self._occluders)):
            self._paint_occluder(painter, number, time_s)
        instances = []
        for number, figure, first, window, box_xyxy, painted_px in painted:
            area = int(np.count_nonzero(painter.covered(first, len(figure.parts), window)))
            if box_xyxy is None or area < max(1.0, self.config.min_visible * painted_px):
                continue
            keypoints_K2 = figure.keypoints_K2.astype(np.float32)
            flags_K = painter.flags(figure, first)
            instances.append(
                Instance(
                    self._actors[number].category,
                    box_xyxy,
                    keypoints_K2,
                    flags_K,
                    float(area),
                    number,
                    area / painted_px,
                )
            )
        return Scene(self._finished(painter.rgb_HW3, index), instances)

    def _paint_occluder(self, painter: Painter, number: int, time_s: float) -> None:
        part, path = self._occluders[number]
        place_2 = path.at(time_s)
        painter.paint([_moved(part, place_2)], place_2)

    def _finished(self, rgb_HW3: NDArray[np.uint8], index: int) -> NDArray[np.uint8]:
        lit = backdrop.relight(rgb_HW3, self._light_HW3, self._offset)
        blurred = backdrop.blur(lit, self._blur_px, *self._smear)
        if self._noise_std < 0.5:
            return blurred
        return backdrop.add_noise(np.random.default_rng((self._seed, index)), blurred, self._noise_std)

    def _draw_shape(self, rng: np.random.Generator) -> tuple[Part, _Path]:
        height, width = self.config.size_hw
        part = backdrop.draw_clutter(rng, min(height, width) * rng.uniform(0.05, 0.45))
        rest_2 = rng.uniform(0.0, 1.0, 2) * [width, height]
        return part, _Path.draw(rng, rest_2, 0.15 * min(height, width))

    def _draw_actor(self, rng: np.random.Generator) -> _Actor:
        config = self.config
        height, width = config.size_hw
        category = config.categories[int(rng.integers(len(config.categories)))]
        model = _MODELS[category](rng)
        scale_px = min(height, width) * rng.uniform(*config.scale)
        max_roll_deg = min(config.max_roll_deg, model.max_roll_deg)
        if rng.random() < config.upside_down:
            max_roll_deg = model.max_roll_deg
        turn_rad = tuple(
            math.radians(rng.uniform(*span))
            for span in (model.yaw_range_deg, model.pitch_range_deg, (-max_roll_deg, max_roll_deg))
        )
        path = _Path.draw(rng, self._free_place(rng, scale_px), 0.2 * min(height, width))
        swing = math.radians(rng.uniform(0.0, 30.0)) if model.yaw_range_deg[1] >= 180.0 else 0.0
        return _Actor(
            category, model, path, scale_px, (turn_rad[0], turn_rad[1], turn_rad[2]), swing, rng.uniform(2.5, 8.0)
        )

    def _free_place(self, rng: np.random.Generator, scale_px: float) -> Floats:
        """Return the best of four random positions: the one farthest from the existing figures."""
        height, width = self.config.size_hw
        size_2 = np.array([width, height], dtype=float)
        margin_2 = np.minimum(size_2 / 2, scale_px / 2 * (1.0 - self.config.truncation))
        places = [margin_2 + rng.uniform(0.0, 1.0, 2) * (size_2 - 2 * margin_2) for _ in range(4)]
        taken = [(actor.path.rest_2, actor.scale_px) for actor in self._actors]
        return max(
            places,
            key=lambda place: min((np.linalg.norm(place - rest) - size / 2 for rest, size in taken), default=0.0),
        )


def render_scene(seed: int | np.random.Generator, config: SceneConfig) -> Scene:
    """Return one picture. The same seed (or a generator in the same state) gives the same picture."""
    number = int(seed.integers(2**62)) if isinstance(seed, np.random.Generator) else int(seed)
    return SceneVideo(number, config, config.size_hw).frame(0)


def _between(rng: np.random.Generator, span: tuple[int, int]) -> int:
    return int(rng.integers(span[0], span[1] + 1))


def _moved(part: Part, by_2: Floats) -> Part:
    return replace(
        part, outline_N2=part.outline_N2 + by_2, marks=[(outline + by_2, colour) for outline, colour in part.marks]
    )


def _tight_box(shown: NDArray[np.bool_], window: tuple[int, int, int, int]) -> NDArray[np.float32] | None:
    rows, columns = np.flatnonzero(shown.any(1)), np.flatnonzero(shown.any(0))
    if rows.size == 0:
        return None
    x0, y0, _, _ = window
    return np.array([x0 + columns[0], y0 + rows[0], x0 + columns[-1] + 1, y0 + rows[-1] + 1], np.float32)
