"""Backgrounds, clutter and photographic defects (blur, noise, light) of a synthetic scene."""

from __future__ import annotations

import functools
import math
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.synthetic.figure import Colour, Part, draw_colour, shaded
from pipeline.synthetic.geometry import Floats, capsule, circle, hull

Image = NDArray[np.uint8]

_NOISE_TILE = 1024


def _as_image(values: NDArray[Any]) -> Image:
    """Clip to 0..255, in place."""
    clipped: Image = np.clip(values, 0, 255, out=values).astype(np.uint8)
    return clipped


def paint_background(rng: np.random.Generator, height: int, width: int) -> Image:
    """Draw a gradient, room, landscape, tiling or cloud texture, uint8 [height, width, 3]."""
    kind = int(rng.choice(5, p=(0.15, 0.3, 0.2, 0.2, 0.15)))
    canvas = _gradient(rng, height, width)
    if kind == 1:
        _paint_floor(rng, canvas)
    elif kind == 2:
        _paint_tiling(rng, canvas)
    if kind >= 3 or rng.random() < 0.5:
        canvas = _add_clouds(rng, canvas, rng.uniform(10.0, 60.0 if kind >= 3 else 22.0))
    return canvas


def _gradient(rng: np.random.Generator, height: int, width: int) -> Image:
    corners = np.array([[draw_colour(rng), draw_colour(rng)], [draw_colour(rng), draw_colour(rng)]], dtype=np.float32)
    corners = corners.mean((0, 1)) + (corners - corners.mean((0, 1))) * np.float32(rng.uniform(0.0, 0.8))
    return _as_image(cv2.resize(np.clip(corners, 0, 255), (width, height), interpolation=cv2.INTER_LINEAR))


def _paint_floor(rng: np.random.Generator, canvas: Image) -> None:
    """Draw a floor or meadow below a horizon, sometimes with a skirting board or converging boards."""
    height, width = canvas.shape[:2]
    horizon = int(height * rng.uniform(0.3, 0.85))
    floor = np.array(draw_colour(rng, (0.0, 0.5)), dtype=np.float32)
    ramp = np.linspace(0.75, 1.15, max(1, height - horizon), dtype=np.float32)[:, None, None]
    canvas[horizon:] = np.clip(floor * ramp, 0, 255).astype(np.uint8)[: height - horizon]
    if rng.random() < 0.4:
        cv2.line(canvas, (0, horizon), (width, horizon), draw_colour(rng), max(1, height // 60))
    if rng.random() < 0.4:
        vanishing = (int(width * rng.uniform(0.2, 0.8)), horizon)
        for foot in np.linspace(-width, 2 * width, 14):
            cv2.line(canvas, vanishing, (int(foot), height), shaded(tuple(floor.tolist()), 0.7), 1, cv2.LINE_AA)


def _paint_tiling(rng: np.random.Generator, canvas: Image) -> None:
    """Bricks, tiles or planks."""
    height, width = canvas.shape[:2]
    step_y, step_x = (max(4, int(min(height, width) * rng.uniform(0.06, 0.25))) for _ in range(2))
    colour = shaded(draw_colour(rng), 1.0)
    for y in range(int(rng.integers(step_y)), height, step_y):
        cv2.line(canvas, (0, y), (width, y), colour, 1 + min(height, width) // 200)
    for x in range(int(rng.integers(step_x)), width, step_x):
        cv2.line(canvas, (x, 0), (x, height), colour, 1 + min(height, width) // 200)


def _add_clouds(rng: np.random.Generator, canvas: Image, strength: float) -> Image:
    """Draw coloured noise of several octaves, which resembles foliage, plaster, fabric or blurred crowds."""
    height, width = canvas.shape[:2]
    tint = np.float32(rng.uniform(0.0, 0.5))
    texture = np.zeros((height, width, 3), np.float32)
    for cells in (3, int(rng.integers(6, 14)), int(rng.integers(20, 60))):
        shape = (cells, max(1, round(cells * width / height)))
        grey = rng.normal(0.0, 1.0, (*shape, 1)).astype(np.float32)
        coarse = grey + tint * rng.normal(0.0, 1.0, (*shape, 3)).astype(np.float32)
        texture += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR) * np.float32(strength * 0.4)
    return _as_image(cv2.add(canvas, texture, dtype=cv2.CV_32F))


def draw_clutter(rng: np.random.Generator, size_px: float) -> Part:
    """Draw one random shape around the origin, `size_px` across: a slab, disc, pole, polygon or branch."""
    colour: Colour = draw_colour(rng)
    kind = int(rng.integers(5))
    turn = rng.uniform(0.0, math.pi)
    along = np.array([math.cos(turn), math.sin(turn)]) * size_px / 2
    if kind == 0:
        outline = circle(np.zeros(2), size_px / 2) * [1.0, rng.uniform(0.4, 1.0)]
    elif kind == 1:
        outline = capsule(-along, along, size_px * rng.uniform(0.03, 0.12), size_px * rng.uniform(0.03, 0.12))
    elif kind == 2:
        across = np.array([-along[1], along[0]]) * rng.uniform(0.2, 1.0)
        outline = np.stack([along + across, along - across, -along - across, -along + across])
    elif kind == 3:
        outline = rng.uniform(-0.5, 0.5, (int(rng.integers(3, 6)), 2)) * size_px
    else:
        outline = hull(rng.uniform(-0.4, 0.4, (3, 2)) * size_px, [size_px * 0.1] * 3)
    part = Part("clutter", outline, colour, 0.0)
    if rng.random() < 0.6:
        part.marks.append((outline * rng.uniform(0.3, 0.85), shaded(colour, rng.uniform(0.6, 1.4))))
    return part


@functools.lru_cache(maxsize=2)
def _noise(down: int, across: int) -> NDArray[np.float32]:
    """A fixed tile of unit Gaussian noise, repeated. Scenes use windows of it, at a tenth of the cost of new noise."""
    tile = np.random.default_rng(20260101).normal(0.0, 1.0, (_NOISE_TILE, _NOISE_TILE, 3)).astype(np.float32)
    return np.tile(tile, (down, across, 1))


def add_noise(rng: np.random.Generator, canvas: Image, std: float) -> Image:
    """Add Gaussian sensor noise of `std` grey levels."""
    height, width = canvas.shape[:2]
    fits = height <= _NOISE_TILE and width <= _NOISE_TILE
    tile = _noise(1, 1) if fits else _noise(1 + height // _NOISE_TILE, 1 + width // _NOISE_TILE)
    top, left = int(rng.integers(tile.shape[0] - height + 1)), int(rng.integers(tile.shape[1] - width + 1))
    noise = tile[top : top + height, left : left + width]
    return _as_image(cv2.scaleAdd(noise, float(std), canvas.astype(np.float32)))


def light_field(gain_3: Floats, light_22: Floats, height: int, width: int) -> NDArray[np.float32]:
    """Return a colour cast times a gradient of light between the four corners, float32 [height, width, 3]."""
    field = cv2.resize(light_22.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(cv2.merge([field * np.float32(gain) for gain in gain_3]), dtype=np.float32)


def relight(canvas: Image, light_HW3: NDArray[np.float32], offset: float) -> Image:
    """Multiply by the light and add an offset in grey levels."""
    lit = np.asarray(cv2.multiply(canvas, light_HW3, dtype=cv2.CV_32F), dtype=np.float32)
    lit += np.float32(offset)
    return _as_image(lit)


def blur(canvas: Image, sigma_px: float, smear_px: float, smear_turn: float) -> Image:
    """Add defocus of `sigma_px` and motion blur of `smear_px` along `smear_turn` (radians)."""
    blurred = canvas
    if sigma_px > 0.25:
        blurred = cv2.GaussianBlur(blurred, (0, 0), sigma_px).astype(np.uint8, copy=False)
    length = round(smear_px)
    if length >= 2:
        kernel = np.zeros((2 * length + 1, 2 * length + 1), np.uint8)
        reach = (math.cos(smear_turn) * length / 2, math.sin(smear_turn) * length / 2)
        cv2.line(
            kernel,
            (round(length - reach[0]), round(length - reach[1])),
            (round(length + reach[0]), round(length + reach[1])),
            1,
            1,
        )
        blurred = cv2.filter2D(blurred, -1, kernel.astype(np.float32) / kernel.sum()).astype(np.uint8, copy=False)
    return blurred
