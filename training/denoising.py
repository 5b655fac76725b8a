"""Contrastive denoising: noisy copies of the targets as extra queries (XPOSE.md 10.5; DINO, arXiv:2203.03605).

A pair is a copy of a target with little noise (the positive) and a copy with much noise (the negative). The pairs of an
image go through its targets in turn. After the box layers, each positive becomes a group with the keypoints of its
target's class, like the best matching queries. So the keypoint layers learn from several boxes per object instead of
only the matched one. In DINO a group contains all targets of an image; the released X-Pose turns no denoising query
into a group.

Legend: B images, N targets of the fullest image, P denoising queries (positive, negative, positive, …), Q matching
queries, R pairs = P / 2, D channels.
"""

from typing import NamedTuple

import msgspec
import torch
from torch import Tensor, nn

from engines.xpose.layers import inverse_sigmoid
from training.targets import Targets, box_to_corners


class DenoisingConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Settings of the denoising. The values other than `queries` are those of the released configuration.

    Args:
        queries: number of noisy queries per image, half of them positives and half negatives. Below 2, there is no
            denoising.
        label_noise: half of this fraction of labels is replaced by random labels of the label book.
        box_noise: corners of positives move by up to this times half the side; those of negatives by up to twice that.
    """

    queries: int = 200
    label_noise: float = 0.5
    box_noise: float = 1.0


class Denoising(NamedTuple):
    """The extra queries and their targets."""

    content_BPD: Tensor
    reference_BP4: Tensor
    target_BR: Tensor  # int64: index of the target that each pair copies
    valid_B: Tensor  # bool, False for images without targets

    @property
    def pairs(self) -> int:
        """Number of pairs per image."""
        return self.target_BR.shape[1]

    def attention_mask(self, matching: int) -> Tensor:
        """Attention mask [P + Q, P + Q]: a denoising query sees its pair and matching queries, never the reverse."""
        device = self.content_BPD.device
        pair_P = torch.arange(self.content_BPD.shape[1], device=device) // 2
        pair_T = torch.cat([pair_P, pair_P.new_full((matching,), -1)])
        return (pair_T[:, None] == pair_T[None, :]) | (pair_T[None, :] == -1)


def make_denoising(
    label_embedding: nn.Embedding,
    targets: Targets,
    book_C: Tensor,
    config: DenoisingConfig,
    generator: torch.Generator,
) -> Denoising | None:
    """Draw the noisy queries of a batch. None if denoising is off or the batch has no targets.

    Args:
        label_embedding: label book of the model; its last row means "unknown".
        book_C: int64, row of the label book for each offered class.
    """
    if config.queries < 2 or targets.total == 0:
        return None
    count_B1 = targets.valid_BN.sum(1, keepdim=True)  # valid targets come first
    target_BR = torch.arange(config.queries // 2) % count_B1.clamp(min=1)
    target_BP = target_BR.repeat_interleave(2, 1)
    label_BP = book_C[targets.label_BN.gather(1, target_BP)]
    swapped_BP = torch.rand(label_BP.shape, generator=generator) < config.label_noise * 0.5
    random_BP = torch.randint(0, label_embedding.num_embeddings - 1, label_BP.shape, generator=generator)
    label_BP = torch.where(swapped_BP, random_BP, label_BP)
    boxes_BP4 = targets.boxes_BN4.gather(1, target_BP[..., None].expand(-1, -1, 4))
    positive_P = torch.arange(target_BP.shape[1]) % 2 == 0
    boxes_BP4 = _noise(boxes_BP4, positive_P, config.box_noise, generator)
    return Denoising(label_embedding(label_BP), inverse_sigmoid(boxes_BP4).sigmoid(), target_BR, count_B1[:, 0] > 0)


def _noise(boxes_BP4: Tensor, positive_P: Tensor, scale: float, generator: torch.Generator) -> Tensor:
    corners_BP4 = box_to_corners(boxes_BP4)
    half_BP4 = boxes_BP4[..., 2:].repeat(1, 1, 2) / 2
    amount_BP4 = torch.rand(corners_BP4.shape, generator=generator) + (~positive_P[:, None]).float()
    sign_BP4 = torch.randint(0, 2, corners_BP4.shape, generator=generator) * 2 - 1
    moved_BP4 = (corners_BP4 + sign_BP4 * amount_BP4 * half_BP4 * scale).clamp(0, 1)
    low_BP2 = torch.minimum(moved_BP4[..., :2], moved_BP4[..., 2:])
    high_BP2 = torch.maximum(moved_BP4[..., :2], moved_BP4[..., 2:])
    return torch.cat([(low_BP2 + high_BP2) / 2, high_BP2 - low_BP2], -1)
