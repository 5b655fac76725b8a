"""Turn the raw groups of one image into detections: threshold, non-maximum suppression, pixels of the source.

Shapes: G groups, C classes, K keypoints, N detections.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from engines.backends import RawPoses
from engines.detections import Detections
from engines.prompts import PromptClass
from engines.skeletons import PLACEHOLDER


def detections_of(
    raw: RawPoses,
    image_hw: tuple[int, int],
    prompts: tuple[PromptClass, ...],
    prompt_id: int,
    score_threshold: float,
    nms_iou: float,
) -> Detections:
    """Keep the groups that score above the threshold and are not duplicates of a better one, best first.

    A group belongs to the class whose keypoints it has; its score is the sigmoid of that class's logit. Keypoints of
    placeholder slots, and those beyond the class's own list, become NaN.

    Args:
        image_hw: height and width of the source image.
        score_threshold: detections above this score are kept.
        nms_iou: a detection that overlaps a better one of any class by more than this IoU is dropped.
    """
    score_G = expit(np.take_along_axis(raw.logits_GC, raw.class_G[:, None], axis=1)[:, 0])
    order_N = np.argsort(-score_G, kind="stable")
    order_N = order_N[score_G[order_N] > score_threshold]
    height, width = image_hw
    centre_N2, half_N2 = raw.boxes_G4[order_N, :2], raw.boxes_G4[order_N, 2:] / 2
    boxes_N4 = np.concatenate([centre_N2 - half_N2, centre_N2 + half_N2], axis=1)
    kept = greedy_nms(boxes_N4, nms_iou)
    order_N = order_N[kept]
    class_N = raw.class_G[order_N]
    longest = max(len(prompt.skeleton.keypoints) for prompt in prompts)
    keypoints_NK2 = raw.keypoints_GK2[order_N, :longest] * np.array([width, height], dtype=np.float32)
    keypoints_NK2[~_published(prompts, longest)[class_N]] = np.nan
    pixels_4 = np.array([width, height, width, height], dtype=np.float32)
    return Detections(
        (boxes_N4[kept] * pixels_4).astype(np.float32),
        score_G[order_N].astype(np.float32),
        class_N,
        keypoints_NK2.astype(np.float32),
        prompt_id,
        prompts,
    )


def greedy_nms(boxes_N4: NDArray[np.float32], iou_threshold: float) -> NDArray[np.int64]:
    """Return the rows, in order, that overlap no kept row before them by more than `iou_threshold`.

    `boxes_N4` are (x0, y0, x1, y1), best first.
    """
    iou_NN = pairwise_iou(boxes_N4)
    kept: list[int] = []
    for row in range(len(boxes_N4)):
        if not (iou_NN[row, kept] > iou_threshold).any():
            kept.append(row)
    return np.array(kept, dtype=np.int64)


def pairwise_iou(boxes_N4: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return intersection over union [N, N] of boxes (x0, y0, x1, y1); 0 if both are empty."""
    low_NN2 = np.maximum(boxes_N4[:, None, :2], boxes_N4[None, :, :2])
    high_NN2 = np.minimum(boxes_N4[:, None, 2:], boxes_N4[None, :, 2:])
    shared_NN = np.clip(high_NN2 - low_NN2, 0, None).prod(axis=2)
    area_N = np.clip(boxes_N4[:, 2:] - boxes_N4[:, :2], 0, None).prod(axis=1)
    union_NN = area_N[:, None] + area_N[None, :] - shared_NN
    iou_NN: NDArray[np.float32] = np.divide(shared_NN, union_NN, out=np.zeros_like(shared_NN), where=union_NN > 0)
    return iou_NN


def _published(prompts: Sequence[PromptClass], longest: int) -> NDArray[np.bool_]:
    """Return [C, K]: which keypoints of each class are real."""
    published_CK = np.zeros((len(prompts), longest), dtype=bool)
    for row, prompt in enumerate(prompts):
        published_CK[row, : len(prompt.skeleton.keypoints)] = [
            name != PLACEHOLDER for name in prompt.skeleton.keypoints
        ]
    return published_CK
