"""Run a trained network on labelled images, for the evaluation.

Legend: B images, G groups, C classes, K keypoints, N detections.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engines.clip import Clip
from engines.postprocess import greedy_nms
from engines.skeletons import load_skeleton
from engines.xpose import XPose
from engines.xpose.model import Prompts
from training.data.augment import letterbox
from training.data.sample import Sample
from training.data.stream import Examples, normalise, stack_images
from training.prompts import MODALITIES, StepPrompts
from training.targets import Offer


@dataclass(frozen=True)
class Found:
    """Detections of one image, best first, in pixels of that image. K is the length of the longest keypoint list."""

    category_N: tuple[str, ...]
    score_N: NDArray[np.float32]
    box_N4: NDArray[np.float32]  # x0, y0, x1, y1
    keypoints_NK2: NDArray[np.float32]


class Predictor:
    """A network with fixed prompts.

    Args:
        categories: maps the name of each category to its keypoint list.
        modality: one of `MODALITIES`; "visual" and "mean" need examples of every category.
        size_hw: size of the letterboxed canvas.
        nms_iou: NMS IoU threshold, as in the pipeline.
    """

    def __init__(
        self,
        model: XPose,
        clip: Clip,
        categories: Mapping[str, str],
        modality: str,
        examples: Mapping[str, Examples] | None,
        size_hw: tuple[int, int],
        nms_iou: float,
    ) -> None:
        self.model, self.size_hw, self.nms_iou = model, size_hw, nms_iou
        names = tuple(categories)
        skeletons = tuple(load_skeleton(skeleton) for skeleton in categories.values())
        self.names = names
        self.row = MODALITIES.index(modality)
        offer = Offer(names, skeletons, torch.ones(1, len(names), dtype=torch.bool))
        chosen = None if examples is None else [examples[name] for name in names]
        with torch.inference_mode():
            self.prompts = StepPrompts(model, clip, offer, chosen)

    @torch.inference_mode()
    def find(self, samples: Sequence[Sample]) -> list[Found]:
        """Detect in a batch of images of any sizes."""
        canvases = [letterbox(sample, *self.size_hw) for sample in samples]
        prompts = self.prompts.of_images(torch.full((len(samples),), self.row))
        valid_BC = self.prompts.offer.object_valid_BC.expand(len(samples), -1)
        output = self.model.detect(normalise(stack_images(canvases)), _with_valid(prompts, valid_BC))
        score_BG = output.logits_BGC.gather(2, output.class_BG[..., None])[..., 0].sigmoid()
        results = []
        for b, sample in enumerate(samples):
            order = score_BG[b].argsort(descending=True)
            box, points = self._to_image(output.boxes_BG4[b, order], output.keypoints_BGK2[b, order], sample)
            kept_N = greedy_nms(box, self.nms_iou)
            order, box, points = order[kept_N], box[kept_N], points[kept_N]
            class_N = output.class_BG[b, order].tolist()
            names = tuple(self.names[row] for row in class_N)
            results.append(Found(names, score_BG[b, order].numpy(), box, points))
        return results

    def _to_image(
        self, boxes_N4: Tensor, points_NK2: Tensor, sample: Sample
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        height, width = self.size_hw
        own_height, own_width = sample.image_HW3.shape[:2]
        scale = min(height / own_height, width / own_width)
        offset_2 = np.array([(width - scale * own_width) / 2, (height - scale * own_height) / 2])
        size_2 = np.array([width, height])
        centre, half = boxes_N4[:, :2].numpy() * size_2, boxes_N4[:, 2:].numpy() * size_2 / 2
        box = np.concatenate([(centre - half - offset_2) / scale, (centre + half - offset_2) / scale], 1)
        return box.astype(np.float32), ((points_NK2.numpy() * size_2 - offset_2) / scale).astype(np.float32)


def _with_valid(prompts: Prompts, valid_BC: Tensor) -> Prompts:
    return prompts._replace(object_valid_BC=valid_BC)


def in_batches(samples: Sequence[Sample], size: int) -> Iterator[Sequence[Sample]]:
    """Slices of `size` samples."""
    for start in range(0, len(samples), size):
        yield samples[start : start + size]
