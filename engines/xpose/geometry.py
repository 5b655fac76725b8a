"""The geometry of the pyramid's tokens: position codes, reference points, proposals and padding.

All of it depends only on sizes and padding, not on pixels. Without padding it is cached between images. It is float32
even in a float64 network, as in the released code: this rounding is part of the reference numbers.

Shape suffixes: B batch (1 where nothing is padded), L levels, N tokens of all levels, D channels, H height, W width,
2 is (x, y), 4 is (centre x, centre y, width, height), all as fractions of the unpadded image.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from engines.xpose.layers import sine_code

IMAGE_TEMPERATURE = 20.0
PROPOSAL_SIDE = 0.05  # fraction of the image at the finest level; it doubles per level
PROPOSAL_MARGIN = 0.01  # a proposal with any coordinate outside of (0.01, 0.99) is not offered


class Geometry(NamedTuple):
    """Positions and shapes for the encoder, the selection and the decoder."""

    sizes: tuple[tuple[int, int], ...]  # (height, width) of each level, in cells
    position_BND: Tensor  # sine codes
    valid_ratio_BL2: Tensor  # unpadded share of each level
    reference_BNL2: Tensor  # the centre of each token, as a fraction of each level in which it is sampled
    proposal_BN4: Tensor  # logits of the box proposed at each token; +inf where none is offered
    offered_BN1: Tensor  # bool
    padding_BN: Tensor | None  # bool, True on padding


def pyramid_geometry(
    sizes: tuple[tuple[int, int], ...], dim: int, padding_BHW: Tensor | None, device: torch.device
) -> Geometry:
    """Compute the geometry of a pyramid.

    Args:
        sizes: (height, width) of each level, in cells.
        dim: channels of the position code.
        padding_BHW: True on padding, at pixel resolution; None where nothing is padded.
        device: device of the results.
    """
    if padding_BHW is not None:
        masks = [_resize_mask(padding_BHW, size) for size in sizes]
        return _geometry(sizes, dim, masks, torch.cat([mask.flatten(1) for mask in masks], dim=1))
    if torch.compiler.is_compiling():
        return _unpadded(sizes, dim, device)
    return _kept_unpadded(sizes, dim, device)


def _unpadded(sizes: tuple[tuple[int, int], ...], dim: int, device: torch.device) -> Geometry:
    masks = [torch.zeros((1, *size), dtype=torch.bool, device=device) for size in sizes]
    return _geometry(sizes, dim, masks, None)


@lru_cache(maxsize=4)
def _kept_unpadded(sizes: tuple[tuple[int, int], ...], dim: int, device: torch.device) -> Geometry:
    with torch.inference_mode(mode=False), torch.no_grad():
        return _unpadded(sizes, dim, device)


def _resize_mask(padding_BHW: Tensor, size: tuple[int, int]) -> Tensor:
    return functional.interpolate(padding_BHW[:, None].float(), size=size)[:, 0] > 0.5


def _geometry(sizes: tuple[tuple[int, int], ...], dim: int, masks: list[Tensor], padding_BN: Tensor | None) -> Geometry:
    valid_BL2 = torch.stack([_valid_cells(mask) for mask in masks], dim=1)
    cells_L2 = torch.tensor([[width, height] for height, width in sizes], dtype=torch.float32, device=valid_BL2.device)
    valid_ratio_BL2 = valid_BL2 / cells_L2
    centres = [_cell_centres(size, valid_BL2.device) for size in sizes]  # [N_l, 2], in cells
    batch = valid_BL2.shape[0]
    references = [
        centre[None] / (valid_ratio_BL2[:, level, None] * cells_L2[level]) for level, centre in enumerate(centres)
    ]
    reference_BN2 = torch.cat(references, dim=1)
    boxes = []
    for level, centre in enumerate(centres):
        place_BN2 = centre[None] / valid_BL2[:, level, None]
        boxes.append(torch.cat((place_BN2, torch.full_like(place_BN2, PROPOSAL_SIDE * 2**level)), dim=-1))
    box_BN4 = torch.cat(boxes, dim=1)
    smallest_BN1, largest_BN1 = box_BN4.amin(-1, keepdim=True), box_BN4.amax(-1, keepdim=True)
    offered_BN1 = (smallest_BN1 > PROPOSAL_MARGIN) & (largest_BN1 < 1 - PROPOSAL_MARGIN)
    if padding_BN is not None:
        offered_BN1 = offered_BN1 & ~padding_BN[..., None]
    proposal_BN4 = torch.log(box_BN4 / (1 - box_BN4)).masked_fill(~offered_BN1, math.inf)
    return Geometry(
        sizes=sizes,
        position_BND=torch.cat([_position(mask, dim).reshape(batch, -1, dim) for mask in masks], dim=1),
        valid_ratio_BL2=valid_ratio_BL2,
        reference_BNL2=reference_BN2[:, :, None] * valid_ratio_BL2[:, None],
        proposal_BN4=proposal_BN4,
        offered_BN1=offered_BN1,
        padding_BN=padding_BN,
    )


def _valid_cells(padding_BHW: Tensor) -> Tensor:
    """Count the unpadded columns of the first row and the unpadded rows of the first column: [B, 2]."""
    valid = (~padding_BHW).float()
    return torch.stack((valid[:, 0].sum(-1), valid[:, :, 0].sum(-1)), dim=-1)


def _cell_centres(size: tuple[int, int], device: torch.device) -> Tensor:
    rows = torch.arange(size[0], dtype=torch.float32, device=device) + 0.5
    columns = torch.arange(size[1], dtype=torch.float32, device=device) + 0.5
    return torch.stack((columns[None].expand(size), rows[:, None].expand(size)), dim=-1).flatten(0, 1)


def _position(padding_BHW: Tensor, dim: int) -> Tensor:
    """Return the sine code of each cell, rows before columns: [B, H, W, D]."""
    valid = (~padding_BHW).float()
    down, right = valid.cumsum(1), valid.cumsum(2)
    down = down / (down[:, -1:] + 1e-6) * (2 * math.pi)
    right = right / (right[:, :, -1:] + 1e-6) * (2 * math.pi)
    halves = [sine_code(angles, dim // 2, IMAGE_TEMPERATURE) for angles in (down, right)]
    return torch.cat(halves, dim=-1)
