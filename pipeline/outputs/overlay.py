"""Boxes, identities and skeletons drawn on a frame.

Legend: H, W = size of the canvas in px; K keypoints. Colours are RGB; each identity keeps its own.
Measured keypoints are light and coasting ones dark. A track that coasts as a whole shows only the corners of its box.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError
from xpose_client.messages import PoseMessage, SkeletonMessage, TrackMessage

Canvas = NDArray[np.uint8]
Colour = tuple[int, int, int]
Point = tuple[int, int]

_GOLDEN_RATIO = 0.618034
_INK: Colour = (18, 20, 24)
_PAPER: Colour = (250, 250, 248)
_BRIGHT = 140  # luma (ITU-R BT.601); on brighter colours, dark letters are easier to read
_SUBPIXEL_BITS = 3
_REFERENCE_SIDE = 480  # px; on larger canvases, lines and letters are scaled up


@dataclass(frozen=True)
class OverlayConfig:
    """Settings of the drawing.

    Attributes:
        boxes: draw the box of each track.
        labels: draw the class, number and score of each track.
        caption: draw a line at the bottom with source, time, frame and number of objects.
        scale: factor on the size of lines and letters, which otherwise follows the size of the canvas.
    """

    boxes: bool = True
    labels: bool = True
    caption: bool = True
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not 0.1 <= self.scale <= 10:
            raise ConfigError(f"video.overlay.scale is {self.scale}: give 0.1 to 10")


def colour_of(track_id: int) -> Colour:
    """Return a bright colour. The colours of consecutive ids are far apart on the colour circle."""
    red, green, blue = colorsys.hsv_to_rgb((track_id * _GOLDEN_RATIO + 0.12) % 1.0, 0.72, 1.0)
    return round(red * 255), round(green * 255), round(blue * 255)


def draw(
    canvas_HW3: Canvas, message: PoseMessage, skeletons: SkeletonMessage, config: OverlayConfig, zoom: float = 1.0
) -> None:
    """Draw a message onto `canvas_HW3` in place.

    Args:
        canvas_HW3: uint8 RGB, writable; the frame, scaled by `zoom`.
        zoom: pixels of the canvas per pixel of the source.
    """
    unit = max(1.0, min(canvas_HW3.shape[:2]) / _REFERENCE_SIDE) * config.scale
    classes = {entry.name: entry for entry in skeletons.classes}
    for track in message.tracks:
        colour = colour_of(track.id)
        if config.boxes:
            _draw_box(canvas_HW3, track, colour, unit, zoom)
        _draw_skeleton(canvas_HW3, track, list(classes[track.class_name].edges), colour, unit, zoom)
    for track in message.tracks:  # after all skeletons, so that no limb hides a label
        if config.labels:
            _draw_label(canvas_HW3, track, unit, zoom)
    if config.caption:
        _draw_caption(canvas_HW3, message, unit)


def draw_notice(canvas_HW3: Canvas, text: str) -> None:
    """Darken the canvas and write one line into its middle, in place. It shows that the picture is not live.

    Args:
        canvas_HW3: uint8 RGB, writable.
    """
    height, width = canvas_HW3.shape[:2]
    _shade(canvas_HW3, (0, 0), (width, height), _INK, 0.7)
    size = max(9, round(min(height, width) / 14))
    text_width, _ = _text_size(text, size)
    if text_width > 0.9 * width:
        size = max(9, int(size * 0.9 * width / text_width))
        text_width, _ = _text_size(text, size)
    _text(canvas_HW3, text, (max(0, (width - text_width) // 2), (height + size) // 2), size, _PAPER)


def _draw_box(canvas_HW3: Canvas, track: TrackMessage, colour: Colour, unit: float, zoom: float) -> None:
    """A thin rectangle with strong corners."""
    left, top, right, bottom = (value * zoom for value in track.box_xyxy)
    thin, strong = max(1, round(unit)), max(2, round(2.5 * unit))
    if track.measured:
        _rectangle(canvas_HW3, (left, top), (right, bottom), colour, thin)
    arm = 0.18 * min(right - left, bottom - top)
    for x, inward_x in ((left, arm), (right, -arm)):
        for y, inward_y in ((top, arm), (bottom, -arm)):
            _line(canvas_HW3, (x, y), (x + inward_x, y), colour, strong)
            _line(canvas_HW3, (x, y), (x, y + inward_y), colour, strong)


def _draw_skeleton(
    canvas_HW3: Canvas, track: TrackMessage, edges: list[tuple[int, int]], colour: Colour, unit: float, zoom: float
) -> None:
    points = [None if x is None or y is None else (x * zoom, y * zoom) for x, y in track.keypoints]
    # Limbs get thinner with the size of the box, so that the skeleton does not cover a person of 60 px.
    left, top, right, bottom = track.box_xyxy
    figure = min(1.0, max(0.35, max(right - left, bottom - top) * zoom / (220 * unit))) * unit
    limb, halo = max(1, round(2.6 * figure)), max(2, round(4.6 * figure))
    for width, paint in ((halo, _INK), (limb, colour)):
        for start, end in edges:
            a, b = points[start], points[end]
            if a is not None and b is not None:
                _line(canvas_HW3, a, b, paint, width)
    radius = max(1.5, 3.2 * figure)
    for point, measured in zip(points, track.keypoints_measured, strict=True):
        if point is not None:
            _disc(canvas_HW3, point, radius + max(0.8, figure), _INK)
            _disc(canvas_HW3, point, radius, _PAPER if measured else _INK)
            _disc(canvas_HW3, point, 0.6 * radius, colour)


def _draw_label(canvas_HW3: Canvas, track: TrackMessage, unit: float, zoom: float) -> None:
    """A label above the box, or inside the box where there is no room above."""
    text = f"{track.class_name} {track.id}  {track.score:.2f}" + ("" if track.measured else "  coasting")
    size = max(9, round(11 * unit))
    width, height = _text_size(text, size)
    pad = round(0.35 * size)
    left = round(min(max(track.box_xyxy[0] * zoom, 0), max(0, canvas_HW3.shape[1] - width - 2 * pad)))
    bottom = round(track.box_xyxy[1] * zoom) - max(1, round(unit))
    if bottom - height - 2 * pad < 0:
        bottom = max(0, bottom) + height + 2 * pad
    colour = colour_of(track.id)
    _shade(canvas_HW3, (left, bottom - height - 2 * pad), (left + width + 2 * pad, bottom), colour, 0.88)
    bright = 0.30 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2] > _BRIGHT
    _text(canvas_HW3, text, (left + pad, bottom - pad), size, _INK if bright else _PAPER)


def _draw_caption(canvas_HW3: Canvas, message: PoseMessage, unit: float) -> None:
    size = max(9, round(11 * unit))
    when = f"{message.pts_s:.2f} s" if message.pts_s is not None else (message.file or "")
    count = len(message.tracks)
    text = f"{message.source}   {when}   frame {message.frame}   {count} object{'' if count == 1 else 's'}"
    height, width = canvas_HW3.shape[:2]
    band = round(1.9 * size)
    _shade(canvas_HW3, (0, height - band), (width, height), _INK, 0.55)
    _text(canvas_HW3, text, (round(0.7 * size), height - round(0.6 * size)), size, _PAPER)


def _shade(canvas_HW3: Canvas, start: Point, end: Point, colour: Colour, strength: float) -> None:
    part = canvas_HW3[max(0, start[1]) : max(0, end[1]), max(0, start[0]) : max(0, end[0])]
    if part.size:
        tint = np.full_like(part, colour)
        cv2.addWeighted(tint, strength, part, 1 - strength, 0.0, dst=part)


def _subpixel(point: tuple[float, float]) -> Point:
    """Convert to OpenCV's fixed point, clamped far below its overflow. OpenCV's pixel centres are at whole numbers,
    ours are at halves.
    """
    x, y = ((min(max(value, -1e5), 1e5) - 0.5) * (1 << _SUBPIXEL_BITS) for value in point)
    return round(x), round(y)


def _line(canvas_HW3: Canvas, a: tuple[float, float], b: tuple[float, float], colour: Colour, width: int) -> None:
    cv2.line(canvas_HW3, _subpixel(a), _subpixel(b), colour, width, cv2.LINE_AA, _SUBPIXEL_BITS)


def _rectangle(canvas_HW3: Canvas, a: tuple[float, float], b: tuple[float, float], colour: Colour, width: int) -> None:
    cv2.rectangle(canvas_HW3, _subpixel(a), _subpixel(b), colour, width, cv2.LINE_AA, _SUBPIXEL_BITS)


def _disc(canvas_HW3: Canvas, centre: tuple[float, float], radius: float, colour: Colour) -> None:
    fixed = round(radius * (1 << _SUBPIXEL_BITS))
    cv2.circle(canvas_HW3, _subpixel(centre), fixed, colour, cv2.FILLED, cv2.LINE_AA, _SUBPIXEL_BITS)


@cache
def _font() -> cv2.FontFace:
    return cv2.FontFace("sans")


def _text_size(text: str, size: int) -> tuple[int, int]:
    _, _, width, height = cv2.getTextSize((10_000, 10_000), text, (0, 0), _font(), size)
    return width, max(height, round(0.72 * size))


def _text(canvas_HW3: Canvas, text: str, origin: Point, size: int, colour: Colour) -> None:
    cv2.putText(canvas_HW3, text, origin, colour, _font(), size)
