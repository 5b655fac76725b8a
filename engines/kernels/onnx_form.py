"""In which form the operators enter an ONNX file: as standard operators, or whole, for a runtime that has them.

Shape suffixes as in `engines.kernels.reference` and, of windows, as in `engines.xpose.swin`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

import torch

DOMAIN = "xpose"
_WHOLE: ContextVar[bool] = ContextVar("whole operators", default=False)


def expands_operators() -> bool:
    """Whether an ONNX file is being written that may hold standard operators only."""
    return torch.onnx.is_in_onnx_export() and not _WHOLE.get()


@contextmanager
def whole_operators(opset: int) -> Iterator[None]:
    """Export `xpose::ms_deform_attn` and `xpose::window_attention` as operators of the domain `DOMAIN`."""
    symbolics: dict[str, Callable[..., Any]] = {
        "xpose::ms_deform_attn": _deform_attn,
        "xpose::window_attention": _window_attention,
    }
    token = _WHOLE.set(True)
    try:
        for name, symbolic in symbolics.items():
            torch.onnx.utils.register_custom_op_symbolic(name, symbolic, opset)
        yield
    finally:
        _WHOLE.reset(token)
        for name in symbolics:
            torch.onnx.utils.unregister_custom_op_symbolic(name, opset)


def _constant(argument: Any, kind: Literal["i", "s"]) -> Any:
    """Return the value of a constant argument: "s" a string, "i" a whole number."""
    return torch.onnx.symbolic_helper._parse_arg(
        argument, kind
    )  # PyTorch's own symbolic functions use it; the version of PyTorch is pinned


def _deform_attn(graph: Any, value: Any, reference: Any, offsets: Any, logits: Any, sizes: Any) -> Any:
    cells = [int(side) for size in _constant(sizes, "s").split(",") for side in size.split("x")]
    return graph.op(f"{DOMAIN}::MsDeformAttn", value, reference, offsets, logits, sizes_i=cells)


def _window_attention(graph: Any, qkv: Any, bias: Any, shift: Any) -> Any:
    return graph.op(f"{DOMAIN}::WindowAttention", qkv, bias, shift_i=_constant(shift, "i"))
