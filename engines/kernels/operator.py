"""`ms_deform_attn`, the one way in which the network samples its feature pyramid.

Shape suffixes as in `engines.kernels.reference`; R is 2 or 4.
"""

from collections.abc import Sequence

from torch import Tensor

from engines.kernels.reference import ms_deform_attn_reference


def ms_deform_attn(
    value_BSMD: Tensor,
    sizes_L2: Sequence[tuple[int, int]],
    reference_BQLR: Tensor,
    offsets_BQMLP2: Tensor,
    logits_BQMLP: Tensor,
) -> Tensor:
    """Sample `value` bilinearly around the reference points and sum by softmaxed weights, per head."""
    return ms_deform_attn_reference(value_BSMD, sizes_L2, reference_BQLR, offsets_BQMLP2, logits_BQMLP)
