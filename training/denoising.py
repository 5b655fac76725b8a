"""Contrastive denoising: noisy copies of the targets as extra queries (XPOSE.md 10.5; DINO, arXiv:2203.03605).

Legend: B images, N targets of the fullest image, P denoising queries, Q matching queries, D channels.
The P queries are `groups` runs of 2 N: N slightly noised copies (positives), then N badly noised ones (negatives).
"""

from typing import NamedTuple

import msgspec
import torch
from torch import Tensor, nn

from engines.xpose.layers import inverse_sigmoid
from training.targets import Targets, box_to_corners


class DenoisingConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`queries` of 0 switches denoising off; the others are the released configuration's.

    Args:
        queries: noisy positives and negatives aimed at per image.
        label_noise: half of this share of labels is replaced by random ones of the label book.
        box_noise: corners move by up to this times half the side (positives), up to twice that (negatives).
    """

    queries: int = 200
    label_noise: float = 0.5
    box_noise: float = 1.0


class Denoising(NamedTuple):
    """The extra queries and what they should answer."""

    content_BPD: Tensor
    reference_BP4: Tensor
    target_BP: Tensor  # int64: index of the target each query is a copy of
    positive_BP: Tensor  # bool, False on negatives and padding
    valid_BP: Tensor  # bool, False on padding
    groups: int

    def attention_mask(self, matching: int) -> Tensor:
        """True where a query may look, [P + Q, P + Q]: own denoising group and every matching query, never back."""
        size = self.content_BPD.shape[1] // self.groups
        place_P = torch.arange(self.content_BPD.shape[1], device=self.content_BPD.device) // size
        group_T = torch.cat([place_P, place_P.new_full((matching,), -1)])
        return (group_T[:, None] == group_T[None, :]) | (group_T[None, :] == -1)


def make_denoising(
    label_embedding: nn.Embedding,
    targets: Targets,
    book_C: Tensor,
    config: DenoisingConfig,
    generator: torch.Generator,
) -> Denoising | None:
    """Draw the noisy queries of a batch; None when denoising is off or the batch has no targets.

    Args:
        label_embedding: the model's label book, its last row is "unknown".
        book_C: int64, label-book row of each offered class.
    """
    if config.queries == 0 or targets.total == 0:
        return None
    most = targets.valid_BN.shape[1]
    groups = max(1, config.queries // (2 * most))
    copies = 2 * groups
    target_BP = torch.arange(most).repeat(copies).expand(len(targets.valid_BN), -1)
    valid_BP = targets.valid_BN.repeat(1, copies)
    positive_P = torch.tensor([True, False]).repeat_interleave(most).repeat(groups)
    label_BP = book_C[targets.label_BN].repeat(1, copies)
    swapped_BP = torch.rand(label_BP.shape, generator=generator) < config.label_noise * 0.5
    random_BP = torch.randint(0, label_embedding.num_embeddings - 1, label_BP.shape, generator=generator)
    label_BP = torch.where(swapped_BP, random_BP, label_BP)
    boxes_BP4 = _noise(targets.boxes_BN4.repeat(1, copies, 1), positive_P, config.box_noise, generator)
    return Denoising(
        label_embedding(label_BP),
        inverse_sigmoid(boxes_BP4).sigmoid(),
        target_BP,
        valid_BP & positive_P,
        valid_BP,
        groups,
    )


def _noise(boxes_BP4: Tensor, positive_P: Tensor, scale: float, generator: torch.Generator) -> Tensor:
    corners_BP4 = box_to_corners(boxes_BP4)
    half_BP4 = boxes_BP4[..., 2:].repeat(1, 1, 2) / 2
    amount_BP4 = torch.rand(corners_BP4.shape, generator=generator) + (~positive_P[:, None]).float()
    sign_BP4 = torch.randint(0, 2, corners_BP4.shape, generator=generator) * 2 - 1
    moved_BP4 = (corners_BP4 + sign_BP4 * amount_BP4 * half_BP4 * scale).clamp(0, 1)
    low_BP2 = torch.minimum(moved_BP4[..., :2], moved_BP4[..., 2:])
    high_BP2 = torch.maximum(moved_BP4[..., :2], moved_BP4[..., 2:])
    return torch.cat([(low_BP2 + high_BP2) / 2, high_BP2 - low_BP2], -1)
