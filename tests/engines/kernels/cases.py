"""Inputs on which every form of deformable attention must agree: ordinary ones and hostile ones.

Shape suffixes as in `engines.kernels.reference`; R is 2 or 4.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

FLOAT32_TOLERANCE = 1e-5  # absolute, for values near 1: a sum of at most 64 products in float32


@dataclass(frozen=True)
class Case:
    name: str
    sizes_L2: tuple[tuple[int, int], ...]
    value_BSMD: Tensor
    reference_BQLR: Tensor
    offsets_BQMLP2: Tensor
    logits_BQMLP: Tensor

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.value_BSMD, self.reference_BQLR, self.offsets_BQMLP2, self.logits_BQMLP


def random_case(
    name: str,
    sizes_L2: tuple[tuple[int, int], ...] = ((9, 13), (5, 7), (3, 4), (2, 2)),
    *,
    batch: int = 1,
    queries: int = 37,
    heads: int = 8,
    depth: int = 32,
    points: int = 4,
    reference_size: int = 2,
    spread: float = 2.0,
    seed: int = 0,
) -> Case:
    """Random values and logits; references over all of the image; offsets of `spread` cells or half boxes."""
    draw = torch.Generator().manual_seed(seed)
    levels = len(sizes_L2)
    tokens = sum(height * width for height, width in sizes_L2)
    return Case(
        name,
        sizes_L2,
        torch.randn(batch, tokens, heads, depth, generator=draw),
        torch.rand(batch, queries, levels, reference_size, generator=draw),
        torch.randn(batch, queries, heads, levels, points, 2, generator=draw) * spread,
        torch.randn(batch, queries, heads, levels, points, generator=draw),
    )


def _borders() -> Case:
    """Every location exactly on a cell's centre or edge, from two cells before the level to two cells behind it."""
    case = random_case("on borders", ((4, 6), (3, 5)), queries=49, heads=2, points=2)
    steps = torch.arange(-2.0, 10.0, 0.5)[:, None].expand(24, 2).reshape(-1)[:48]
    offsets = torch.zeros_like(case.offsets_BQMLP2)
    offsets[:, :48, ..., 0] = steps[None, :, None, None, None]
    offsets[:, :48, ..., 1] = steps.flip(0)[None, :, None, None, None]
    return replace(case, reference_BQLR=torch.zeros_like(case.reference_BQLR), offsets_BQMLP2=offsets)


def _far_outside() -> Case:
    case = random_case("far outside", queries=16)
    reach = torch.tensor([1e2, 1e6, 1e12, 1e30, 3e38]).repeat(4)[:16]
    return replace(case, offsets_BQMLP2=case.offsets_BQMLP2.sign() * reach[None, :, None, None, None, None])


def _huge_logits() -> Case:
    case = random_case("huge logits")
    return replace(case, logits_BQMLP=case.logits_BQMLP * 1e4)


CASES = (
    random_case("encoder-like"),
    random_case("box references", reference_size=4),
    random_case("batch of three", batch=3, queries=11),
    random_case("nano", ((8, 8), (4, 4), (2, 2)), heads=4, reference_size=4),
    random_case("one level", ((7, 11),), heads=2),
    random_case("levels of one cell", ((1, 1), (1, 1)), heads=2, queries=5),
    random_case("one row and one column", ((1, 9), (9, 1)), heads=2, queries=23),
    random_case("odd sizes, odd points", ((5, 3), (2, 7)), heads=3, points=3, queries=7),
    random_case("depth of 16", heads=2, depth=16),
    random_case("depth of 64", heads=2, depth=64),
    random_case("one query", queries=1, reference_size=4),
    _borders(),
    _far_outside(),
    _huge_logits(),
)
