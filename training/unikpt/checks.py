"""Checks that an annotation must pass to become an instance, and what happens if it does not.

| found | done |
|---|---|
| keypoint numbers missing, too many, or not finite | instance skipped |
| no labelled keypoint, `iscrowd`, `ignore` | its box becomes an ignore region, counted |
| any other instance that is skipped and has a usable box | its box becomes an ignore region |
| ignore regions that cover the whole image | reported; the image is kept if it has instances |
| box without area, box wholly outside the image | instance skipped |
| box partly outside | clipped to the image |
| labelled keypoint outside the image | its label is dropped (v = 0) |
| no box at all (300W and other point files) | box of the labelled points, 8 % larger on each side |
| more instances or categories than the capacity | the smallest instances are skipped |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.data.sample import clip_boxes
from training.unikpt.schema import InstanceRecord, Report

Box = tuple[float, float, float, float]
_BOX_MARGIN = 0.08  # fraction of the extent of the points, for sources without boxes


@dataclass(frozen=True)
class Capacity:
    """Limits per image: the network returns 50 boxes and takes at most 350 categories."""

    instances: int = 50
    categories: int = 350


@dataclass(frozen=True)
class Candidate:
    """An annotation before its checks. The keypoints already have the order of `skeleton`."""

    category: str
    skeleton: str
    box_xywh: tuple[float, float, float, float] | None
    keypoints_K3: NDArray[np.float32]
    area: float | None
    id: str


def checked(candidate: Candidate, width: int, height: int, file: Path, report: Report) -> InstanceRecord | None:
    """Return the instance, repaired as in the table above, or None if it is skipped."""
    keypoints_K3 = candidate.keypoints_K3.copy()
    labelled_K = keypoints_K3[:, 2] > 0
    if not np.isfinite(keypoints_K3[labelled_K]).all():
        report.add("malformed keypoints", file, candidate.id, "a coordinate is not a number; instance skipped")
        return None
    keypoints_K3[~labelled_K] = 0.0
    x, y = keypoints_K3[:, 0], keypoints_K3[:, 1]
    outside_K = labelled_K & ((x < 0) | (y < 0) | (x > width) | (y > height))
    if outside_K.any():
        count = int(outside_K.sum())
        report.add(
            "keypoint outside the image", file, candidate.id, f"{count} of {int(labelled_K.sum())} lose their label"
        )
        keypoints_K3[outside_K] = 0.0
    if not (keypoints_K3[:, 2] > 0).any():
        report.add("no labelled keypoint", file, candidate.id, "its box becomes an ignore region")
        return None
    box = _checked_box(candidate, keypoints_K3, width, height, file, report)
    if box is None:
        return None
    area = candidate.area if candidate.area and candidate.area > 0 else (box[2] - box[0]) * (box[3] - box[1])
    return InstanceRecord(candidate.category, candidate.skeleton, box, keypoints_K3, float(area), False, candidate.id)


def _checked_box(
    candidate: Candidate, keypoints_K3: NDArray[np.float32], width: int, height: int, file: Path, report: Report
) -> tuple[float, float, float, float] | None:
    if candidate.box_xywh is None:
        points_N2 = keypoints_K3[keypoints_K3[:, 2] > 0, :2]
        low, high = points_N2.min(0), points_N2.max(0)
        margin = np.maximum((high - low) * _BOX_MARGIN, 1.0)
        box = np.concatenate([low - margin, high + margin])
    else:
        x, y, wide, tall = candidate.box_xywh
        if not np.isfinite(candidate.box_xywh).all() or wide <= 0 or tall <= 0:
            shown = [round(value, 1) for value in candidate.box_xywh]
            report.add("box without area", file, candidate.id, f"x, y, width, height are {shown}; instance skipped")
            return None
        box = np.array([x, y, x + wide, y + tall])
    clipped = np.clip(box, 0.0, [width, height, width, height])
    if clipped[2] - clipped[0] <= 0 or clipped[3] - clipped[1] <= 0:
        text = f"{np.round(box, 1).tolist()} in an image of {width} x {height}; instance skipped"
        report.add("box outside the image", file, candidate.id, text)
        return None
    if candidate.box_xywh is not None and np.abs(clipped - box).max() > 1.0:
        text = f"{np.round(box, 1).tolist()} in an image of {width} x {height}"
        report.add("box clipped to the image", file, candidate.id, text)
    x0, y0, x1, y1 = (float(value) for value in clipped)
    return x0, y0, x1, y1


def within_capacity(
    instances: list[InstanceRecord], capacity: Capacity, file: Path, image: str, report: Report
) -> tuple[InstanceRecord, ...]:
    """Keep the largest instances of the categories with the most instances, in their order."""
    sizes: dict[str, float] = {}
    for instance in instances:
        sizes[instance.category] = sizes.get(instance.category, 0.0) + instance.area
    allowed = set(sorted(sizes, key=lambda name: -sizes[name])[: capacity.categories])
    kept = [instance for instance in instances if instance.category in allowed]
    kept_ids = {id(one) for one in sorted(kept, key=lambda one: -one.area)[: capacity.instances]}
    kept = [instance for instance in kept if id(instance) in kept_ids]
    if len(kept) < len(instances):
        text = f"{len(instances)} instances of {len(sizes)} categories; the {len(kept)} largest are kept"
        report.add("over capacity", file, image, text)
    return tuple(kept)


def ignore_regions(boxes_xywh: Sequence[object], width: int, height: int) -> tuple[Box, ...]:
    """Convert boxes (x, y, width, height) to corners inside the image. Invalid boxes are dropped."""
    numbers = [box for box in boxes_xywh if isinstance(box, list | tuple) and len(box) == 4]
    try:
        boxes_R4 = np.array(numbers, np.float32).reshape(-1, 4)
    except (TypeError, ValueError):
        boxes_R4 = np.zeros((0, 4), np.float32)
    boxes_R4 = boxes_R4[np.isfinite(boxes_R4).all(1)]
    boxes_R4[:, 2:] += boxes_R4[:, :2]
    return tuple((x0, y0, x1, y1) for x0, y0, x1, y1 in clip_boxes(boxes_R4, width, height).tolist())


def cover_all(ignore: Sequence[Box], width: int, height: int, cells: int = 64) -> bool:
    """Whether ignore regions cover the image: a grid of cells has every centre inside one of them."""
    x_W, y_H = ((np.arange(cells) + 0.5) / cells * side for side in (width, height))
    open_HW = np.ones((cells, cells), bool)
    for x0, y0, x1, y1 in ignore:
        open_HW[np.ix_((y_H >= y0) & (y_H <= y1), (x_W >= x0) & (x_W <= x1))] = False
    return not open_HW.any()
