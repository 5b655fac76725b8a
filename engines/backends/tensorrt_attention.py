"""Our converter of attention for torch-tensorrt, because its own breaks two rules of TensorRT.

torch-tensorrt 2.13 hands folded constants to `add_attention` as PyTorch's tensors, which the binding refuses. It also
passes a mask of one row for all queries, where TensorRT documents [batch or 1, heads or 1, queries, keys].

`tensorrt` and `torch_tensorrt` are imported on use.
"""

import functools
import math
from typing import Any

import torch


@functools.cache
def register_attention() -> None:
    """Let torch-tensorrt convert attention with `_convert`, before its own converter; a second call does nothing.

    Raises:
        ImportError: TensorRT or torch-tensorrt is not installed.
    """
    from torch_tensorrt.dynamo.conversion import ConverterPriority, dynamo_tensorrt_converter

    register = dynamo_tensorrt_converter(
        torch.ops.aten.scaled_dot_product_attention.default,
        priority=ConverterPriority.HIGH,
        supports_dynamic_shapes=False,
    )
    register(_convert)


def _convert(ctx: Any, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], name: str) -> Any:
    """Add softmax(query key^T / sqrt(width) + mask) value and return its output.

    Args:
        args: query [B, M, Q, E], key and value [B, M, S, E], and a mask that broadcasts to [B, M, Q, S], or None.
    Raises:
        ValueError: attention of a kind that the network does not use (causal, dropout, own scale).
    """
    import tensorrt as trt
    from torch_tensorrt.dynamo.conversion import impl
    from torch_tensorrt.dynamo.conversion.converter_utils import SourceIR, get_trt_tensor

    mask = args[3] if len(args) > 3 else None
    if any(args[4:]) or any(value not in (None, False) for value in kwargs.values()):
        raise ValueError(f"attention takes query, key, value and a mask, but {name} has {args[4:]} and {kwargs}")
    query, key, value = (
        get_trt_tensor(ctx, tensor, f"{name}_{role}")
        for role, tensor in zip(("query", "key", "value"), args[:3], strict=True)
    )
    scale = 1.0 / math.sqrt(query.shape[-1])
    scaled = impl.elementwise.mul(ctx, target, SourceIR.ATEN, f"{name}_scaled", query, scale)
    layer = ctx.net.add_attention(scaled, key, value, trt.AttentionNormalizationOp.SOFTMAX, False)
    layer.decomposable = True  # where there is no fused kernel for a shape
    if mask is not None:
        layer.mask = _expand_mask(ctx, target, name, get_trt_tensor(ctx, mask, f"{name}_mask"), query, key)
    return layer.get_output(0)


def _expand_mask(ctx: Any, target: Any, name: str, mask: Any, query: Any, key: Any) -> Any:
    """Give the mask one row for each query and one column for each key, and a rank of 4."""
    from torch_tensorrt.dynamo.conversion import impl
    from torch_tensorrt.dynamo.conversion.converter_utils import SourceIR, prepend_ones

    if len(mask.shape) < 4:
        mask = prepend_ones(ctx, mask, f"{name}_mask_rank", 4 - len(mask.shape))
    wanted = (*tuple(mask.shape)[:2], query.shape[2], key.shape[2])
    if tuple(mask.shape) == wanted:
        return mask
    return impl.slice.expand(ctx, target, SourceIR.ATEN, f"{name}_mask_rows", mask, wanted)
