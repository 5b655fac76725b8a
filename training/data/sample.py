"""One image with its labelled instances, the result of every reader.

Legend: H, W image; K keypoints of the instance's own skeleton; R ignore regions.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Instance:
    """One labelled object.

    Args:
        category: the prompt for it, for example "person".
        skeleton: name of the keypoint list (`engines.skeletons`); it fixes K and the order.
        box_xyxy: [4] float32, pixels of the image.
        keypoints_K3: float32 (x px, y px, v); v: 0 not labelled, 1 labelled but hidden, 2 visible.
        area_px: object area for OKS, square pixels.
    """

    category: str
    skeleton: str
    box_xyxy: NDArray[np.float32]
    keypoints_K3: NDArray[np.float32]
    area_px: float


def _no_boxes() -> NDArray[np.float32]:
    return np.zeros((0, 4), np.float32)


@dataclass(frozen=True)
class Sample:
    """One image with its instances and its origin.

    Args:
        image_HW3: RGB uint8.
        ignore_R4: float32 boxes (x0, y0, x1, y1), pixels, which may contain objects of any category without labels.
            They are neither positives nor background.
        unlabelled: categories that may be anywhere in the image without a label. They are prompted only if an object of
            them is labelled.
        absent: categories that are known to be absent from the image. They are always prompted.
    """

    image_HW3: NDArray[np.uint8]
    instances: tuple[Instance, ...]
    dataset: str
    image_id: str
    ignore_R4: NDArray[np.float32] = field(default_factory=_no_boxes)
    unlabelled: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()


def clip_instance(instance: Instance, width: int, height: int) -> Instance | None:
    """Clip the box to the image and drop the labels of points outside. None if nothing usable remains.

    The official transform clamps outside points to the border and keeps them labelled (XPOSE.md 10.10);
    here they lose their label instead.
    """
    box = instance.box_xyxy.copy()
    box[0::2] = box[0::2].clip(0, width)
    box[1::2] = box[1::2].clip(0, height)
    before = np.prod(np.maximum(instance.box_xyxy[2:] - instance.box_xyxy[:2], 1e-6))
    after = np.prod(np.maximum(box[2:] - box[:2], 0.0))
    if after < 4.0 or after < 0.25 * before:
        return None
    keypoints_K3 = instance.keypoints_K3.copy()
    x, y = keypoints_K3[:, 0], keypoints_K3[:, 1]
    outside_K = (x < 0) | (y < 0) | (x >= width) | (y >= height)
    keypoints_K3[outside_K, 2] = 0
    if not (keypoints_K3[:, 2] > 0).any():
        return None
    return Instance(instance.category, instance.skeleton, box, keypoints_K3, instance.area_px * float(after / before))


def clip_boxes(boxes_R4: NDArray[np.float32], width: int, height: int) -> NDArray[np.float32]:
    """Clip boxes to the image. Boxes with a side of less than two pixels are dropped."""
    low_R2 = boxes_R4[:, :2].clip(0, (width, height))
    high_R2 = boxes_R4[:, 2:].clip(0, (width, height))
    boxes_R4 = np.concatenate([low_R2, high_R2], 1).astype(np.float32)
    kept_R4: NDArray[np.float32] = boxes_R4[(high_R2 - low_R2 >= 2).all(1)]
    return kept_R4
