"""Augmentation by one affine warp per source image: flip, rotation, scale, translation, several sources on one canvas.

All random choices use the generator that the caller passes, so a batch is a function of (seed, step) only. A canvas
with two or four sources shows several smaller objects at the cost of one image.

Legend: H, W canvas; K keypoints.
"""

from collections.abc import Sequence
from dataclasses import replace

import cv2
import msgspec
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from engines.skeletons import load_skeleton
from training.data.sample import Instance, Sample, clip_boxes, clip_instance

LAYOUTS = ((1, 1), (1, 2), (2, 1), (2, 2))  # rows, columns
BORDER_RGB = (124, 116, 104)  # the mean of ImageNet, as in the bars of letterboxing


class AugmentConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Strengths of the augmentation; every `*_probability` is in 0..1.

    Args:
        flip_probability: horizontal mirror with left and right keypoints exchanged.
        rotation_degrees: the angle is uniform between minus and plus this.
        scale_range: factor on the scale at which the source just fits its cell; above 1 it is cropped.
        shift: the centre moves by up to this fraction of the cell.
        layout_weights: relative frequency of 1, 2 side by side, 2 stacked and 4 sources on a canvas.
        colour_probability: random brightness, contrast and channel gains.
        grey_probability: the colour is removed.
        blur_probability: Gaussian blur of up to 1.2 px.
        occlusion_probability: one to three filled rectangles of up to a quarter of the canvas side.
        mirrored_probability: a source that fills a row of the canvas is repeated next to its mirror images, two or
            three in all, so that several objects share one background without an edge between them.
        least_px: an instance whose box is smaller than this on both sides becomes an ignore region.
    """

    flip_probability: float = 0.5
    rotation_degrees: float = 25.0
    scale_range: tuple[float, float] = (0.65, 1.3)
    shift: float = 0.12
    layout_weights: tuple[float, float, float, float] = (0.55, 0.1, 0.1, 0.25)
    colour_probability: float = 0.8
    grey_probability: float = 0.08
    blur_probability: float = 0.1
    occlusion_probability: float = 0.25
    mirrored_probability: float = 0.0
    least_px: float = 0.0


def draw_layout(config: AugmentConfig, rng: Generator) -> tuple[int, int]:
    """Draw the numbers of rows and columns of the next canvas."""
    weights = np.asarray(config.layout_weights, np.float64)
    return LAYOUTS[int(rng.choice(len(LAYOUTS), p=weights / weights.sum()))]


def compose(
    samples: Sequence[Sample],
    layout: tuple[int, int],
    height: int,
    width: int,
    config: AugmentConfig,
    rng: Generator,
    backdrop: Sample | None = None,
) -> Sample:
    """Warp each sample into its cell of a height x width canvas and join their labels.

    The rest of the canvas shows `backdrop`, a picture without objects, or the border colour.
    """
    rows, columns = layout
    cell_height, cell_width = height // rows, width // columns
    canvas = np.empty((height, width, 3), np.uint8)
    canvas[:] = BORDER_RGB if backdrop is None else _cover(backdrop.image_HW3, height, width)
    instances: list[Instance] = []
    ignored: list[NDArray[np.float32]] = []
    for index, sample in enumerate(samples):
        top, left = (index // columns) * cell_height, (index % columns) * cell_width
        if columns == 1 and config.mirrored_probability and rng.random() < config.mirrored_probability:
            sample = beside_mirror_images(sample, rng)
        cell_HW3 = canvas[top : top + cell_height, left : left + cell_width]
        found, ignored_R4 = _warp_into_cell(sample, cell_HW3, config, rng)
        instances += [_shift(instance, left, top) for instance in found]
        ignored.append(ignored_R4 + np.array([left, top, left, top], np.float32))
    _distort(canvas, config, rng)
    first = samples[0]
    return Sample(canvas, tuple(instances), first.dataset, first.image_id, np.concatenate(ignored))


def letterbox(sample: Sample, height: int, width: int) -> Sample:
    """Fit the image into height x width without distortion, centred, on the border colour."""
    source_height, source_width = sample.image_HW3.shape[:2]
    scale = min(height / source_height, width / source_width)
    matrix = np.array(
        [[scale, 0, (width - scale * source_width) / 2], [0, scale, (height - scale * source_height) / 2]], np.float64
    )
    canvas = np.empty((height, width, 3), np.uint8)
    canvas[:] = BORDER_RGB
    _warp_image(sample.image_HW3, matrix, canvas, scale)
    instances = tuple(_transform(instance, matrix, scale, 0.0, False, source_width) for instance in sample.instances)
    ignore_R4 = _transform_boxes(sample.ignore_R4, matrix, scale, 0.0)
    return replace(sample, image_HW3=canvas, instances=instances, ignore_R4=ignore_R4)


def beside_mirror_images(sample: Sample, rng: Generator) -> Sample:
    """Return two or three copies side by side, every other one mirrored, cropped near or through the outer objects."""
    if not sample.instances:
        return sample
    height, width = sample.image_HW3.shape[:2]
    boxes_N4 = np.stack([instance.box_xyxy for instance in sample.instances])
    left, right = float(boxes_N4[:, 0].min()), float(boxes_N4[:, 2].max())
    margins = rng.uniform(-0.1, 0.4, 2) * (right - left)
    start, end = max(0, int(left - margins[0])), min(width, int(np.ceil(right + margins[1])))
    cut_HW3, side = sample.image_HW3[:, start:end], end - start
    shifted = (clip_instance(_shift(instance, -start, 0), side, height) for instance in sample.instances)
    instances = [instance for instance in shifted if instance is not None]
    ignore_R4 = clip_boxes(sample.ignore_R4 - np.array([start, 0, start, 0], np.float32), side, height)
    first, copies = int(rng.integers(2)), int(rng.integers(2, 4))
    images, labels, ignored = [], list[Instance](), []
    for number in range(copies):
        flip = (first + number) % 2 == 1
        images.append(cut_HW3[:, ::-1] if flip else cut_HW3)
        turned = (_transform(instance, np.eye(2, 3), 1.0, 0.0, flip, side) for instance in instances)
        labels += [_shift(instance, number * side, 0) for instance in turned]
        turned_R4 = _mirrored(ignore_R4, side) if flip else ignore_R4
        ignored.append(turned_R4 + np.array([number * side, 0, number * side, 0], np.float32))
    image_HW3 = np.concatenate(images, axis=1)
    return replace(sample, image_HW3=image_HW3, instances=tuple(labels), ignore_R4=np.concatenate(ignored))


def _cover(image_HW3: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Scale a picture so that it fills height x width, and return its centre."""
    scale = max(height / image_HW3.shape[0], width / image_HW3.shape[1])
    size = (max(width, round(image_HW3.shape[1] * scale)), max(height, round(image_HW3.shape[0] * scale)))
    large = cv2.resize(image_HW3, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    top, left = (large.shape[0] - height) // 2, (large.shape[1] - width) // 2
    return np.asarray(large[top : top + height, left : left + width], np.uint8)


def _warp_into_cell(
    sample: Sample, cell_HW3: NDArray[np.uint8], config: AugmentConfig, rng: Generator
) -> tuple[list[Instance], NDArray[np.float32]]:
    """Draw a sample into a cell, in place; return its instances and ignore regions there.

    An instance that is too small, or of which too much is cut off, becomes an ignore region.
    """
    height, width = cell_HW3.shape[:2]
    source_height, source_width = sample.image_HW3.shape[:2]
    flip = bool(rng.random() < config.flip_probability)
    angle = np.deg2rad(rng.uniform(-config.rotation_degrees, config.rotation_degrees))
    low, high = np.log(config.scale_range[0]), np.log(config.scale_range[1])
    scale = min(height / source_height, width / source_width) * float(np.exp(rng.uniform(low, high)))
    centre_x = width * (0.5 + rng.uniform(-config.shift, config.shift))
    centre_y = height * (0.5 + rng.uniform(-config.shift, config.shift))
    cosine, sine = scale * np.cos(angle), scale * np.sin(angle)
    linear = np.array([[cosine, -sine], [sine, cosine]])
    image = sample.image_HW3[:, ::-1] if flip else sample.image_HW3
    offset = np.array([centre_x, centre_y]) - linear @ np.array([source_width / 2, source_height / 2])
    matrix = np.concatenate([linear, offset[:, None]], axis=1)
    _warp_image(np.ascontiguousarray(image), matrix, cell_HW3, scale)
    moved = [_transform(instance, matrix, scale, angle, flip, source_width) for instance in sample.instances]
    clipped = [clip_instance(instance, width, height) for instance in moved]
    kept = [one for one in clipped if one is not None and max(one.box_xyxy[2:] - one.box_xyxy[:2]) >= config.least_px]
    taken = {id(one) for one in kept}
    lost = [before.box_xyxy for before, after in zip(moved, clipped, strict=True) if id(after) not in taken]
    ignore_R4 = _mirrored(sample.ignore_R4, source_width) if flip else sample.ignore_R4
    ignore_R4 = _transform_boxes(ignore_R4, matrix, scale, float(angle))
    return kept, clip_boxes(np.concatenate([ignore_R4, *(box[None] for box in lost)]), width, height)


def _warp_image(image: NDArray[np.uint8], matrix: NDArray[np.float64], target: NDArray[np.uint8], scale: float) -> None:
    """Warp into `target`; pixels that the image does not reach stay as they are.

    A reduction by more than two starts with area averaging, because bilinear sampling alone would cause aliasing.
    """
    if scale < 0.5:
        half = cv2.resize(
            image, (max(1, image.shape[1] // 2), max(1, image.shape[0] // 2)), interpolation=cv2.INTER_AREA
        )
        ratio_x, ratio_y = image.shape[1] / half.shape[1], image.shape[0] / half.shape[0]
        matrix = matrix @ np.diag([ratio_x, ratio_y, 1.0])
        image = np.asarray(half, np.uint8)
    size = (target.shape[1], target.shape[0])
    warped = np.ascontiguousarray(target)
    cv2.warpAffine(image, matrix, size, warped, cv2.INTER_LINEAR, cv2.BORDER_TRANSPARENT)
    target[:] = warped


def _mirrored(boxes_R4: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    mirrored_R4 = boxes_R4.copy()
    mirrored_R4[:, [0, 2]] = width - boxes_R4[:, [2, 0]]
    return mirrored_R4


def _transform_boxes(
    boxes_R4: NDArray[np.float32], matrix: NDArray[np.float64], scale: float, angle: float
) -> NDArray[np.float32]:
    """Return boxes after the warp: bounds of the rotated inscribed ellipse, tighter than those of rotated corners."""
    centre_R2 = (boxes_R4[:, :2] + boxes_R4[:, 2:]) / 2 @ matrix[:, :2].T + matrix[:, 2]
    half_R2 = (boxes_R4[:, 2:] - boxes_R4[:, :2]) * scale / 2
    turn_22 = np.array([[np.cos(angle), np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    reach_R2 = np.sqrt((half_R2**2) @ (turn_22**2).T)
    return np.concatenate([centre_R2 - reach_R2, centre_R2 + reach_R2], 1).astype(np.float32)


def _transform(
    instance: Instance, matrix: NDArray[np.float64], scale: float, angle: float, flip: bool, source_width: int
) -> Instance:
    keypoints_K3, box = instance.keypoints_K3.copy(), instance.box_xyxy.copy()
    if flip:
        keypoints_K3[:, 0] = source_width - keypoints_K3[:, 0]
        for a, b in load_skeleton(instance.skeleton).flip_pairs:
            keypoints_K3[[a, b]] = keypoints_K3[[b, a]]
        box[[0, 2]] = source_width - box[[2, 0]]
    keypoints_K3[:, :2] = keypoints_K3[:, :2] @ matrix[:, :2].T + matrix[:, 2]
    keypoints_K3[keypoints_K3[:, 2] == 0, :2] = 0
    moved_4 = _transform_boxes(box[None], matrix, scale, angle)[0]
    low, high = moved_4[:2], moved_4[2:]
    labelled_N2 = keypoints_K3[keypoints_K3[:, 2] > 0, :2]
    if len(labelled_N2) and angle != 0.0:
        low, high = np.minimum(low, labelled_N2.min(0)), np.maximum(high, labelled_N2.max(0))
    new_box = np.concatenate([low, high]).astype(np.float32)
    return Instance(instance.category, instance.skeleton, new_box, keypoints_K3, instance.area_px * scale * scale)


def _shift(instance: Instance, left: int, top: int) -> Instance:
    keypoints_K3 = instance.keypoints_K3.copy()
    keypoints_K3[keypoints_K3[:, 2] > 0, :2] += (left, top)
    box = instance.box_xyxy + np.array([left, top, left, top], np.float32)
    return Instance(instance.category, instance.skeleton, box, keypoints_K3, instance.area_px)


def _distort(image_HW3: NDArray[np.uint8], config: AugmentConfig, rng: Generator) -> None:
    """Apply colour, blur and occlusion, in place."""
    if rng.random() < config.colour_probability:
        gains = rng.uniform(0.8, 1.2, 3) * rng.uniform(0.7, 1.3)
        table = np.arange(256)[:, None] * gains + rng.uniform(-25, 25)
        image_HW3[:] = cv2.LUT(image_HW3, table.clip(0, 255).astype(np.uint8)[None])
    if rng.random() < config.grey_probability:
        image_HW3[:] = cv2.cvtColor(image_HW3, cv2.COLOR_RGB2GRAY)[:, :, None]
    if rng.random() < config.blur_probability:
        image_HW3[:] = cv2.GaussianBlur(image_HW3, (0, 0), float(rng.uniform(0.4, 1.2)))
    if rng.random() < config.occlusion_probability:
        height, width = image_HW3.shape[:2]
        for _ in range(int(rng.integers(1, 4))):
            size_y, size_x = int(rng.uniform(0.05, 0.25) * height), int(rng.uniform(0.05, 0.25) * width)
            y, x = int(rng.integers(0, height - size_y)), int(rng.integers(0, width - size_x))
            image_HW3[y : y + size_y, x : x + size_x] = rng.integers(0, 256, 3, dtype=np.uint8)
