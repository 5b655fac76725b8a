"""Targets of a batch as padded tensors, and the offered classes to which their labels refer.

Legend: B images, N targets (most in one image), R ignore regions (most in one image), C classes offered, K keypoint
slots, Q predictions.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from engines.skeletons import Skeleton, load_skeleton
from training.data.sample import Sample

FIXED_SCALE_FLOOR_PX2 = 16.0
"""The OKS of a smaller object is computed for an area of 4 x 4 px, because labels are not more precise."""

IGNORED_SHARE = 0.5
"""A detection with more than this fraction of its box in an ignore region is not counted."""


class Targets(NamedTuple):
    """The targets of the predictions of a batch.

    Boxes are (cx, cy, w, h) and points (x, y) as fractions of the canvas; areas are square pixels of a canvas of
    `size_hw`. So OKS is computed in pixels and is isotropic, unlike the official one (XPOSE.md 10.1).
    """

    valid_BN: Tensor  # bool
    label_BN: Tensor  # int64 index of the offered class
    boxes_BN4: Tensor
    points_BNK2: Tensor
    labelled_BNK: Tensor  # bool, v > 0
    area_BN: Tensor
    sigmas_CK: Tensor  # OKS sigma per class and slot
    keypoint_valid_CK: Tensor  # bool, True for the slots of the list of the class
    size_hw: tuple[int, int]
    ignore_BR4: Tensor  # regions that do not count as background; padding has no area

    @property
    def total(self) -> int:
        """Number of real targets in the batch."""
        return int(self.valid_BN.sum())

    def to(self, device: torch.device) -> "Targets":
        """Return the same targets on another device."""
        return self._replace(**{name: part.to(device) for name, part in self._asdict().items() if name != "size_hw"})

    def first_images(self, count: int) -> "Targets":
        """Return the targets of the first `count` images."""
        names = ("valid_BN", "label_BN", "boxes_BN4", "points_BNK2", "labelled_BNK", "area_BN", "ignore_BR4")
        return self._replace(**{name: getattr(self, name)[:count] for name in names})


class Offer(NamedTuple):
    """The classes of a step with their keypoint lists. Each image may use only some of them."""

    names: tuple[str, ...]
    skeletons: tuple[Skeleton, ...]
    object_valid_BC: Tensor  # bool, True if the class is offered to this image


def box_to_corners(box: Tensor) -> Tensor:
    """Convert (cx, cy, w, h) to (x0, y0, x1, y1), with any leading axes."""
    return torch.cat([box[..., :2] - box[..., 2:] / 2, box[..., :2] + box[..., 2:] / 2], -1)


def targets_from_samples(samples: Sequence[Sample], offer: Offer) -> Targets:
    """Pad the labels of a batch of samples of one size. Objects whose class is not offered are background.

    Raises:
        ValueError: samples have different sizes.
    """
    sizes = {sample.image_HW3.shape[:2] for sample in samples}
    if len(sizes) != 1:
        raise ValueError(f"samples of sizes {sorted(sizes)}, need one size per batch; compose or letterbox them first")
    height, width = sizes.pop()
    rows = {name: row for row, name in enumerate(offer.names)}
    offered_BC = offer.object_valid_BC.cpu().numpy()
    kept = [
        [i for i in sample.instances if i.category in rows and offered_BC[b, rows[i.category]]]
        for b, sample in enumerate(samples)
    ]
    batch, most = len(samples), max(1, *(len(instances) for instances in kept))
    slots = max(len(skeleton.keypoints) for skeleton in offer.skeletons)
    label_BN = np.zeros((batch, most), np.int64)
    valid_BN, area_BN = np.zeros((batch, most), bool), np.ones((batch, most), np.float32)
    boxes_BN4 = np.full((batch, most, 4), 0.5, np.float32)
    points_BNK3 = np.zeros((batch, most, slots, 3), np.float32)
    for b, instances in enumerate(kept):
        for n, instance in enumerate(instances):
            x0, y0, x1, y1 = instance.box_xyxy
            valid_BN[b, n], label_BN[b, n] = True, rows[instance.category]
            boxes_BN4[b, n] = (
                (x0 + x1) / 2 / width,
                (y0 + y1) / 2 / height,
                (x1 - x0) / width,
                (y1 - y0) / height,
            )
            area_BN[b, n] = max(instance.area_px, FIXED_SCALE_FLOOR_PX2)
            points_BNK3[b, n, : len(instance.keypoints_K3)] = instance.keypoints_K3
    scale_2 = np.array([width, height], np.float32)
    sigmas_CK, keypoint_valid_CK = keypoint_tables(offer.skeletons, slots)
    return Targets(
        torch.from_numpy(valid_BN),
        torch.from_numpy(label_BN),
        torch.from_numpy(boxes_BN4),
        torch.from_numpy(points_BNK3[..., :2] / scale_2),
        torch.from_numpy(points_BNK3[..., 2] > 0),
        torch.from_numpy(area_BN),
        sigmas_CK,
        keypoint_valid_CK,
        (height, width),
        _ignore_regions(samples, height, width),
    )


def _ignore_regions(samples: Sequence[Sample], height: int, width: int) -> Tensor:
    most = max(len(sample.ignore_R4) for sample in samples)
    ignore_BR4 = torch.zeros(len(samples), most, 4)
    scale_4 = torch.tensor([width, height, width, height])
    for b, sample in enumerate(samples):
        corners_R4 = torch.from_numpy(sample.ignore_R4) / scale_4
        low_R2, high_R2 = corners_R4[:, :2], corners_R4[:, 2:]
        ignore_BR4[b, : len(corners_R4)] = torch.cat([(low_R2 + high_R2) / 2, high_R2 - low_R2], -1)
    return ignore_BR4


def ignored_boxes(boxes_BQ4: Tensor, targets: Targets) -> Tensor:
    """Return which boxes are more than half inside one ignore region of their image: bool [B, Q]."""
    if not targets.ignore_BR4.shape[1]:
        return torch.zeros(boxes_BQ4.shape[:2], dtype=torch.bool, device=boxes_BQ4.device)
    own_BQ14 = box_to_corners(boxes_BQ4.detach().float())[:, :, None]
    region_B1R4 = box_to_corners(targets.ignore_BR4)[:, None]
    low = torch.maximum(own_BQ14[..., :2], region_B1R4[..., :2])
    high = torch.minimum(own_BQ14[..., 2:], region_B1R4[..., 2:])
    inner_BQR = (high - low).clamp(min=0).prod(-1)
    area_BQ1 = (own_BQ14[..., 2:] - own_BQ14[..., :2]).clamp(min=0).prod(-1)
    return (inner_BQR > IGNORED_SHARE * area_BQ1).any(-1)


def keypoint_tables(skeletons: Sequence[Skeleton], slots: int) -> tuple[Tensor, Tensor]:
    """Return sigmas [C, K] (1 for spare slots) and validity [C, K] of the slots of the lists."""
    sigmas_CK = torch.ones(len(skeletons), slots)
    valid_CK = torch.zeros(len(skeletons), slots, dtype=torch.bool)
    for row, skeleton in enumerate(skeletons):
        sigmas_CK[row, : len(skeleton.keypoints)] = torch.tensor(skeleton.oks_sigmas)
        valid_CK[row, : len(skeleton.keypoints)] = True
    return sigmas_CK, valid_CK


def draw_offer(
    samples: Sequence[Sample],
    vocabulary: Mapping[str, str],
    most_classes: int,
    absent_share: float,
    rng: np.random.Generator,
) -> Offer:
    """Draw the offered classes of each image: present classes and negatives, or absent classes only (`absent_share`).

    The classes of a step are those present in the batch and negatives, shuffled, at most `most_classes` (a batch with
    more present classes keeps all of them). Source: XPOSE.md 10.6. A category that a sample may show without a label is
    never a negative for that sample. A category that is known to be absent always is.

    Args:
        vocabulary: every trainable category with the name of its keypoint list.
        absent_share: fraction of images, 0..1.
    """
    present = {instance.category for sample in samples for instance in sample.instances}
    present |= {name for sample in samples for name in sample.absent}
    absent = [name for name in vocabulary if name not in present]
    rng.shuffle(absent)
    room = max(1 if not present else 0, most_classes - len(present))
    names = [*sorted(present), *absent[:room]]
    rng.shuffle(names)
    valid_BC = np.zeros((len(samples), len(names)), bool)
    for b, sample in enumerate(samples):
        own = {instance.category for instance in sample.instances}
        own_C = np.array([name in own for name in names])
        valid_BC[b] = np.array([name in sample.absent for name in names])
        unlabelled_C = np.array([name in sample.unlabelled for name in names])
        negative = np.flatnonzero(~own_C & ~unlabelled_C & ~valid_BC[b])
        if not own and not len(negative) and not valid_BC[b].any():
            negative = np.arange(len(names))  # the network needs at least one class
        if own and not (len(negative) and rng.random() < absent_share):
            valid_BC[b] |= own_C
        take = int(rng.integers(0 if valid_BC[b].any() else 1, len(negative) + 1))
        valid_BC[b, rng.permutation(negative)[:take]] = True
    skeletons = tuple(load_skeleton(vocabulary[name]) for name in names)
    return Offer(tuple(names), skeletons, torch.from_numpy(valid_BC))
