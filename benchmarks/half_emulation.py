"""Run an exported half-precision graph on a CPU, with the rounding that half precision would give.

Half-precision matrix products are unusably slow on CPUs. Computing each operation in float32 and rounding every
tensor that the graph holds in float16 gives the same rounding as a kernel with float16 operands, float32
accumulation and a float16 result, which is what TensorRT's and cuBLAS's half-precision kernels are.
"""

from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram


def round_to_half(value: Any) -> Any:
    """Round a float tensor to the nearest float16 value, kept in float32; anything else passes unchanged."""
    return value.half().float() if isinstance(value, Tensor) and value.is_floating_point() else value


class HalfEmulation(fx.Interpreter):
    """Interprets `program` with float32 in place of float16, rounding wherever the graph holds float16.

    Args:
        program: an exported program whose tensors are float16 and float32.
        round_also: operators (by name, such as "xpose.ms_deform_attn.default") whose float32 arguments are rounded,
            too, as a kernel with half-precision arguments would need.
    """

    def __init__(self, program: ExportedProgram, round_also: frozenset[str] = frozenset()) -> None:
        super().__init__(program.module(check_guards=False))
        self._round_also = round_also

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.op in ("call_function", "get_attr", "placeholder"):
            return fx.node.map_aggregate(_paired(result, n.meta.get("val")), _settle)
        return result

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        args, kwargs = fx.node.map_aggregate((args, kwargs), _float32_dtype)
        if str(target) in self._round_also:
            args, kwargs = fx.node.map_aggregate((args, kwargs), round_to_half)
        return super().call_function(target, args, kwargs)


class _Pair:
    """A computed value, and the value that the graph declares for it."""

    def __init__(self, computed: Any, declared: Any) -> None:
        self.computed, self.declared = computed, declared


def _paired(computed: Any, declared: Any) -> Any:
    if isinstance(computed, (tuple, list)):
        declared = declared if isinstance(declared, (tuple, list)) else [None] * len(computed)
        return tuple(_paired(c, d) for c, d in zip(computed, declared, strict=True))
    return _Pair(computed, declared)


def _settle(pair: Any) -> Any:
    computed = pair.computed
    if isinstance(computed, Tensor) and computed.dtype == torch.float16:
        computed = computed.float()
    half = isinstance(pair.declared, Tensor) and pair.declared.dtype == torch.float16
    return round_to_half(computed) if half else computed


def _float32_dtype(argument: Any) -> Any:
    return torch.float32 if argument is torch.float16 else argument
