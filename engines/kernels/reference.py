"""Multi-scale deformable attention in plain PyTorch, the reference for every kernel.

Shape suffixes: B batch, S tokens of all levels, M heads, D channels of a head, Q queries, L levels,
P points per level, C = M * D.

Source: Deformable DETR, arXiv:2010.04159, eq. 3.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def sampling_locations(sizes_L2: Sequence[tuple[int, int]], reference_BQLR: Tensor, offsets_BQMLP2: Tensor) -> Tensor:
    """Return the sampling locations as (x, y) fractions of their level, in the dtype of the offsets.

    The unit of an offset is a cell of the level for a 2-d reference (x, y), and half the box divided by the number of
    points for a 4-d reference (centre x, centre y, width, height).
    """
    reference_BQ1L1R = reference_BQLR[:, :, None, :, None, :].to(offsets_BQMLP2.dtype)
    if reference_BQLR.shape[-1] == 2:
        cells_L12 = offsets_BQMLP2.new_tensor([[width, height] for height, width in sizes_L2])[:, None, :]
        return reference_BQ1L1R + offsets_BQMLP2 / cells_L12
    points = offsets_BQMLP2.shape[-2]
    return reference_BQ1L1R[..., :2] + offsets_BQMLP2 / points * reference_BQ1L1R[..., 2:] * 0.5


def ms_deform_attn_reference(
    value_BSMD: Tensor,
    sizes_L2: Sequence[tuple[int, int]],
    reference_BQLR: Tensor,
    offsets_BQMLP2: Tensor,
    logits_BQMLP: Tensor,
    *,
    compute: torch.dtype | None = None,
) -> Tensor:
    """Apply softmax to the logits, sample with `grid_sample`, and sum. Differentiable in every tensor.

    Locations, weights and sums have the dtype `compute`; None means float64 for a float64 value and else float32. The
    result has the dtype of `value`. The other arguments are as in `engines.kernels.ms_deform_attn`.
    """
    batch, _, heads, depth = value_BSMD.shape
    compute = compute or (torch.float64 if value_BSMD.dtype == torch.float64 else torch.float32)
    # N = B * M. Queries are the innermost axis of all, so that runtimes vectorise every step over them.
    weights_BQMX = logits_BQMLP.to(compute).flatten(-2).softmax(-1)  # X = L * P
    weights_N1XQ = weights_BQMX.permute(0, 2, 3, 1).flatten(0, 1)[:, None]
    grid_BQMLP2 = 2 * sampling_locations(sizes_L2, reference_BQLR, offsets_BQMLP2.to(compute)) - 1
    grid_NLPQ2 = grid_BQMLP2.permute(0, 2, 3, 4, 1, 5).flatten(0, 1)
    cells_NDS = value_BSMD.to(compute).permute(0, 2, 3, 1).flatten(0, 1)
    parts: list[Tensor] = []  # of each level, [N, D, P, Q]
    start = 0
    for level, (height, width) in enumerate(sizes_L2):
        map_NDHW = torch.unflatten(cells_NDS[..., start : start + height * width], -1, (height, width))
        start += height * width
        sampled = functional.grid_sample(map_NDHW, grid_NLPQ2[:, level], padding_mode="zeros", align_corners=False)
        parts.append(sampled)
    out_NDQ = (torch.cat(parts, dim=2) * weights_N1XQ).sum(2)
    return out_NDQ.reshape(batch, heads * depth, -1).transpose(1, 2).to(value_BSMD.dtype)
