"""Draws predictions on images, for TensorBoard and for the best and worst cases of an evaluation."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from engines.skeletons import load_skeleton
from training.data.sample import Sample
from training.predict import Found

TILE_PX = 320
_COLOURS = ((255, 80, 80), (80, 220, 80), (90, 140, 255), (250, 200, 60), (230, 90, 230), (70, 220, 220))


def draw(sample: Sample, found: Found, threshold: float) -> NDArray[np.uint8]:
    """Draw the true points (white crosses) and the detections above the threshold on the image, as a square tile."""
    height, width = sample.image_HW3.shape[:2]
    scale = TILE_PX / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    tile = np.zeros((TILE_PX, TILE_PX, 3), np.uint8)
    tile[: size[1], : size[0]] = cv2.resize(sample.image_HW3, size, interpolation=cv2.INTER_AREA)
    skeletons = {instance.category: instance.skeleton for instance in sample.instances}
    for instance in sample.instances:
        for x, y, v in instance.keypoints_K3 * (scale, scale, 1):
            if v > 0:
                cv2.drawMarker(tile, (int(x), int(y)), (255, 255, 255), cv2.MARKER_CROSS, 6, 1)
    for n, category in enumerate(found.category_N):
        if found.score_N[n] >= threshold:
            _draw_one(tile, found, n, category, skeletons.get(category), scale)
    return tile


def _draw_one(tile: NDArray[np.uint8], found: Found, n: int, category: str, skeleton: str | None, scale: float) -> None:
    colour = _COLOURS[n % len(_COLOURS)]
    x0, y0, x1, y1 = (int(value) for value in found.box_N4[n] * scale)
    cv2.rectangle(tile, (x0, y0), (x1, y1), colour, 1)
    cv2.putText(tile, f"{category} {found.score_N[n]:.2f}", (x0 + 2, y0 + 12), cv2.FONT_HERSHEY_SIMPLEX, 0.4, colour, 1)
    if skeleton is None:
        return
    lines = load_skeleton(skeleton)
    points = [(int(x), int(y)) for x, y in found.keypoints_NK2[n, : len(lines.keypoints)] * scale]
    for a, b in lines.edges:
        cv2.line(tile, points[a], points[b], colour, 1, cv2.LINE_AA)
    for point in points:
        cv2.circle(tile, point, 2, colour, -1)


def sheet(samples: Sequence[Sample], found: Sequence[Found], columns: int, threshold: float) -> NDArray[np.uint8]:
    """Arrange tiles in a grid with `columns` per row. Empty places are black."""
    tiles = [draw(sample, result, threshold) for sample, result in zip(samples, found, strict=True)]
    tiles += [np.zeros((TILE_PX, TILE_PX, 3), np.uint8)] * (-len(tiles) % columns)
    rows = [np.concatenate(tiles[start : start + columns], 1) for start in range(0, len(tiles), columns)]
    return np.concatenate(rows, 0)
