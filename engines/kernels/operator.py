"""The operator `torch.ops.xpose.ms_deform_attn`: deformable attention over the feature pyramid.

`torch.export` keeps the operator whole, so each compiler can replace it by its own kernel. On CPUs it runs the compiled
kernel (`cpu.py`), on NVIDIA GPUs the CUDA kernel (`cuda.py`). In float64, and without a compiler, it runs plain PyTorch
(`reference.py`). Importing this module compiles nothing; it defines the operator, which a loaded program needs.

Shape suffixes as in `engines.kernels.reference`; R is 2 or 4. The operator takes the level sizes as text, for instance
"100x167,50x84" (height x width), because torch-tensorrt passes no lists of numbers to TensorRT's plugins.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from engines.kernels import cpu, cuda
from engines.kernels.onnx_form import expands_operators
from engines.kernels.reference import ms_deform_attn_reference


def ms_deform_attn(
    value_BSMD: Tensor,
    sizes_L2: Sequence[tuple[int, int]],
    reference_BQLR: Tensor,
    offsets_BQMLP2: Tensor,
    logits_BQMLP: Tensor,
) -> Tensor:
    """Sample `value` bilinearly around the reference points; return the sum weighted by the softmax, per head.

    Args:
        value_BSMD: projected tokens, levels concatenated, padded tokens already zero; float64, 32, 16 or bfloat16.
        sizes_L2: (height, width) of each level, in cells; S = sum(height * width).
        reference_BQLR: (x, y), or (centre x, centre y, width, height), as fractions of each level, already multiplied
            by the level's valid ratios.
        offsets_BQMLP2: (x, y). The unit is a cell of the level for a 2-d reference, and half the box divided by P for a
            4-d reference.
        logits_BQMLP: before their softmax over L * P.
    Returns:
        out_BQC with C = M * D in the dtype of `value`; locations, weights and sums are float32 (float64 for a float64
        value). A cell outside its level reads as 0. Differentiable in every tensor.
    Raises:
        ValueError: the shapes disagree.
    Source: Deformable DETR, arXiv:2010.04159, eq. 3; centres of cells lie at half-integers, as in grid sampling with
        align_corners = False.
    """
    _check(value_BSMD, sizes_L2, reference_BQLR, offsets_BQMLP2, logits_BQMLP)
    if expands_operators() or (torch.onnx.is_in_onnx_export() and not cpu.available(value_BSMD, offsets_BQMLP2)):
        return ms_deform_attn_reference(value_BSMD, sizes_L2, reference_BQLR, offsets_BQMLP2, logits_BQMLP)
    sizes = ",".join(f"{height}x{width}" for height, width in sizes_L2)
    out: Tensor = torch.ops.xpose.ms_deform_attn(value_BSMD, reference_BQLR, offsets_BQMLP2, logits_BQMLP, sizes)
    return out


def _check(
    value_BSMD: Tensor,
    sizes_L2: Sequence[tuple[int, int]],
    reference_BQLR: Tensor,
    offsets_BQMLP2: Tensor,
    logits_BQMLP: Tensor,
) -> None:
    batch, tokens, heads, _ = value_BSMD.shape
    queries, levels, points = offsets_BQMLP2.shape[1], len(sizes_L2), offsets_BQMLP2.shape[4]
    cells = sum(height * width for height, width in sizes_L2)
    if cells != tokens:
        raise ValueError(f"value has {tokens} tokens, but the levels {list(sizes_L2)} hold {cells}")
    if offsets_BQMLP2.shape != (batch, queries, heads, levels, points, 2):
        raise ValueError(
            f"offsets are {tuple(offsets_BQMLP2.shape)}, but must be {(batch, queries, heads, levels, points, 2)}"
        )
    if logits_BQMLP.shape != offsets_BQMLP2.shape[:-1]:
        raise ValueError(f"logits are {tuple(logits_BQMLP.shape)}, but must be {tuple(offsets_BQMLP2.shape[:-1])}")
    if reference_BQLR.shape[:-1] != (batch, queries, levels) or reference_BQLR.shape[-1] not in (2, 4):
        raise ValueError(
            f"reference is {tuple(reference_BQLR.shape)}, but must be {(batch, queries, levels)} and then 2 or 4"
        )


def parse_sizes(sizes: str) -> tuple[int, ...]:
    """Turn "100x167,50x84" into (100, 167, 50, 84)."""
    return tuple(int(cells) for size in sizes.split(",") for cells in size.split("x"))


def _plain(value: Tensor, reference: Tensor, offsets: Tensor, logits: Tensor, sizes: str) -> Tensor:
    flat = parse_sizes(sizes)
    return ms_deform_attn_reference(value, list(zip(flat[0::2], flat[1::2], strict=True)), reference, offsets, logits)


@torch.library.custom_op("xpose::ms_deform_attn", mutates_args=())
def _forward(value: Tensor, reference: Tensor, offsets: Tensor, logits: Tensor, sizes: str) -> Tensor:
    if value.device.type == "cpu" and cpu.available(value, offsets):
        return cpu.forward(value, parse_sizes(sizes), reference, offsets, logits)
    if cuda.available(value, offsets):
        return cuda.forward(value, parse_sizes(sizes), reference, offsets, logits)
    return _plain(value, reference, offsets, logits, sizes)


@_forward.register_fake
def _(value: Tensor, reference: Tensor, offsets: Tensor, logits: Tensor, sizes: str) -> Tensor:
    return value.new_empty((value.shape[0], offsets.shape[1], value.shape[2] * value.shape[3]))


@torch.library.custom_op("xpose::ms_deform_attn_backward", mutates_args=(), device_types="cpu")
def _compiled_backward(
    grad_out: Tensor, value: Tensor, reference: Tensor, offsets: Tensor, logits: Tensor, sizes: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return cpu.backward(grad_out, value, parse_sizes(sizes), reference, offsets, logits)


@_compiled_backward.register_fake
def _(
    grad_out: Tensor, value: Tensor, reference: Tensor, offsets: Tensor, logits: Tensor, sizes: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    value_grad, reference_grad, offsets_grad, logits_grad = map(torch.empty_like, (value, reference, offsets, logits))
    return value_grad, reference_grad, offsets_grad, logits_grad


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.sizes = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    """Use the compiled kernel on CPUs, and plain PyTorch elsewhere."""
    tensors = ctx.saved_tensors
    if grad_out.device.type == "cpu" and cpu.available(tensors[0], tensors[2]):
        return *_compiled_backward(grad_out, *tensors, ctx.sizes), None
    with torch.enable_grad():
        leaves = [tensor.detach().requires_grad_() for tensor in tensors]
        out = _plain(leaves[0], leaves[1], leaves[2], leaves[3], ctx.sizes)
        return *torch.autograd.grad(out, leaves, grad_out), None


_forward.register_autograd(_backward, setup_context=_remember)
