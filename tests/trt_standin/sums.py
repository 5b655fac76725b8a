"""Layers that sum or compare over axes: products, convolution, attention, normalisation, reductions, top-k."""

import math
from collections.abc import Sequence
from typing import Any

import tensorrt as trt
import torch
from torch.nn import functional

from tests.trt_standin.layer import FLOATS, NUMBERS, TORCH, Description, Layer, Tensor, settable

MATRIX, REDUCE = trt.MatrixOperation, trt.ReduceOperation
MOST_K = 3840


def to_tf32(x: torch.Tensor) -> torch.Tensor:
    """Round to 10 bits of mantissa."""
    bits = x.contiguous().view(torch.int32)
    return ((bits + 0x0FFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)


class _Product(Layer):
    def multiplies_matrices(self) -> bool:
        return True

    def operands(self, tf32: bool, *tensors: torch.Tensor) -> Sequence[torch.Tensor]:
        single = self.inputs[0].dtype == trt.DataType.FLOAT
        return [to_tf32(tensor) for tensor in tensors] if tf32 and single else tensors


class MatrixMultiply(_Product):
    """Matrices of equal rank; the sides in front broadcast."""

    binding = "IMatrixMultiplyLayer"
    attributes = settable(op0=MATRIX.NONE, op1=MATRIX.NONE)

    def outputs_of(self, a: Tensor, b: Tensor) -> list[Description]:
        self.require_equal_types(a, b)
        self.require_type(a, FLOATS)
        self.require(MATRIX.VECTOR not in (self.op0, self.op1), "the stand-in knows no vectors")
        self.require(len(a.shape) == len(b.shape) >= 2, f"ranks of {a.shape} and {b.shape}")
        (rows, inner), (other, columns) = self._sides(a.shape, self.op0), self._sides(b.shape, self.op1)
        self.require(inner == other, f"{a.shape} times {b.shape}")
        return [((*self.broadcast(a.shape[:-2], b.shape[:-2]), rows, columns), a.dtype)]

    @staticmethod
    def _sides(shape: Sequence[int], op: MATRIX) -> tuple[int, int]:
        return (shape[-1], shape[-2]) if op == MATRIX.TRANSPOSE else (shape[-2], shape[-1])

    def compute(self, a: torch.Tensor, b: torch.Tensor, tf32: bool = False) -> list[torch.Tensor]:
        a, b = self.operands(tf32, a, b)
        turned = [x.transpose(-1, -2) if op == MATRIX.TRANSPOSE else x for x, op in ((a, self.op0), (b, self.op1))]
        return [turned[0] @ turned[1]]


class Convolution(_Product):
    """A correlation with filters [K, C / groups, R, S], zero-padded; input 1 and 2 replace kernel and bias."""

    binding = "IConvolutionLayer"
    attributes = settable(
        num_output_maps=None,
        kernel_size_nd=None,
        kernel=None,
        bias=None,
        stride_nd=(1, 1),
        padding_nd=(0, 0),
        pre_padding=None,
        post_padding=None,
        dilation_nd=(1, 1),
        num_groups=1,
    )
    optional_inputs = 2

    def outputs_of(self, x: Tensor, *weights: Tensor) -> list[Description]:
        self.require_type(x, FLOATS)
        self.require(len(x.shape) == 4, f"input is {x.shape}, needed is [N, C, H, W]")
        channels, maps, groups = x.shape[1], int(self.num_output_maps), int(self.num_groups)
        self.require(channels % groups == 0 and maps % groups == 0, f"{groups} groups of {channels} and {maps}")
        kernel = [int(side) for side in self.kernel_size_nd]
        for what, own, given, count in (
            ("kernel", self.kernel, self.get_input(1), maps * channels // groups * math.prod(kernel)),
            ("bias", self.bias, self.get_input(2), maps),
        ):
            if given is not None:
                self.require(given.dtype == x.dtype, f"{what} is {given.dtype}, input is {x.dtype}")
                self.require(math.prod(given.shape) == count, f"{what} has shape {given.shape}, needed are {count}")
            elif own is not None and own.size:
                self.require(own.dtype == x.dtype, f"{what} is {own.dtype}, input is {x.dtype}")
                self.require(own.size == count, f"{what} has {own.size} weights, needed are {count}")
            else:
                self.require(what == "bias", "no kernel")
        before, after = self._padding()
        sides = [
            (x.shape[2 + at] + before[at] + after[at] - int(self.dilation_nd[at]) * (kernel[at] - 1) - 1)
            // int(self.stride_nd[at])
            + 1
            for at in range(2)
        ]
        return [((x.shape[0], maps, *sides), x.dtype)]

    def _padding(self) -> tuple[list[int], list[int]]:
        both = [int(side) for side in self.padding_nd]
        before = both if self.pre_padding is None else [int(side) for side in self.pre_padding]
        after = both if self.post_padding is None else [int(side) for side in self.post_padding]
        return before, after

    def freeze(self) -> None:
        """Read the weights, as TensorRT does when it builds the engine."""
        for name in ("kernel", "bias"):
            weights = getattr(self, name)
            self.__dict__[f"_{name}"] = None if weights is None or not weights.size else weights.read()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "kernel": None, "bias": None, "_described": self.describe()}

    def compute(self, x: torch.Tensor, *given: torch.Tensor, tf32: bool = False) -> list[torch.Tensor]:
        kernel = given[0] if given and given[0] is not None else self._kernel
        bias = given[1] if len(given) > 1 else self._bias
        kernel = kernel.float().reshape(self.num_output_maps, x.shape[1] // self.num_groups, *self.kernel_size_nd)
        (top, left), (bottom, right) = self._padding()
        x, kernel = self.operands(tf32, functional.pad(x, (left, right, top, bottom)), kernel)
        bias = None if bias is None else bias.float().reshape(-1)
        stride, dilation = tuple(self.stride_nd), tuple(self.dilation_nd)
        return [functional.conv2d(x, kernel, bias, stride, 0, dilation, self.num_groups)]


class Attention(_Product):
    """softmax(query key^T + mask) value for [b, heads, tokens, width]; the query is scaled beforehand.

    The mask is [b or 1, heads or 1, s_q, s_kv]: BOOL, true where a query may look, or of the query's type and added.
    `decomposable` attention may run as separate half-precision layers, so scores and shares are rounded as well.
    """

    binding = "IAttention"
    attributes = settable(mask=None, norm_op=trt.AttentionNormalizationOp.SOFTMAX, decomposable=False, causal=False)
    optional_inputs = 1

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "mask":
            self.set_input(3, value)
        else:
            super().__setattr__(name, value)

    def outputs_of(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> list[Description]:
        self.require_equal_types(query, key, value)
        self.require_type(query, FLOATS)
        self.require(not self.causal, "the stand-in knows no causal attention")
        self.require(self.norm_op == trt.AttentionNormalizationOp.SOFTMAX, f"{self.norm_op} is not known")
        ranks = {len(tensor.shape) for tensor in (query, key, value)}
        self.require(ranks == {4}, f"ranks are {ranks}, needed is 4")
        batch, heads, rows, width = query.shape
        self.require(key.shape == value.shape, f"key {key.shape} and value {value.shape} differ")
        self.require(key.shape[0] == batch and key.shape[3] == width, f"query {query.shape}, key {key.shape}")
        self.require(heads % key.shape[1] == 0, f"{heads} heads of the query, {key.shape[1]} of the key")
        if mask is not None:
            self.require(mask.dtype in (query.dtype, trt.DataType.BOOL), f"mask is {mask.dtype}")
            wanted = (rows, key.shape[2])
            fits = len(mask.shape) == 4 and mask.shape[2:] == wanted
            fits = fits and mask.shape[0] in (1, batch) and mask.shape[1] in (1, heads)
            self.require(
                fits, f"mask is {mask.shape}, needed is [{batch} or 1, {heads} or 1, {wanted[0]}, {wanted[1]}]"
            )
        return [(query.shape, query.dtype)]

    def compute(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None = None,
        tf32: bool = False,
    ) -> list[torch.Tensor]:
        dtype = TORCH[self.inputs[0].dtype] if self.decomposable else torch.float32

        def rounded(x: torch.Tensor) -> torch.Tensor:
            return x.to(dtype).float()

        repeat = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(repeat, 1), value.repeat_interleave(repeat, 1)
        scores = rounded(torch.matmul(*self.operands(tf32, query, key.transpose(-1, -2))))
        if mask is not None and mask.dtype == torch.bool:
            scores = scores.masked_fill(~mask, -math.inf)
        elif mask is not None:
            scores = rounded(scores + mask)
        return [torch.matmul(*self.operands(tf32, rounded(scores.softmax(-1)), value))]


class Normalization(Layer):
    """(x - mean) / sqrt(variance + epsilon) * scale + bias, over `axes`, or over each group of channels and `axes`.

    Scale and bias have the input's rank and broadcast to it; with groups they are [1, groups, 1, ...].
    """

    binding = "INormalizationLayer"
    attributes = settable(axes=None, epsilon=1e-5, num_groups=1)

    def outputs_of(self, x: Tensor, scale: Tensor, bias: Tensor) -> list[Description]:
        self.require_equal_types(x, scale, bias)
        self.require_type(x, FLOATS)
        self.require(scale.shape == bias.shape, f"scale {scale.shape} and bias {bias.shape} differ")
        self.axes_of(len(x.shape))
        if self.num_groups == 1:
            self.require(self.broadcast(x.shape, scale.shape) == x.shape, f"scale {scale.shape} of {x.shape}")
        else:
            self.require(x.shape[1] % self.num_groups == 0, f"{self.num_groups} groups of {x.shape[1]} channels")
            wanted = (1, self.num_groups, *[1] * (len(x.shape) - 2))
            self.require(scale.shape == wanted, f"scale is {scale.shape}, needed is {wanted}")
            self.require(self.axes_of(len(x.shape)) == list(range(2, len(x.shape))), f"axes {self.axes} with groups")
        return [(x.shape, x.dtype)]

    def axes_of(self, rank: int) -> list[int]:
        return self.axes_from(self.axes, rank)

    def compute(self, x: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor) -> list[torch.Tensor]:
        axes, shape = self.axes_of(x.dim()), x.shape
        if self.num_groups > 1:
            x = x.reshape(shape[0], self.num_groups, -1)
            scale, bias = (tensor.reshape(1, self.num_groups, 1) for tensor in (scale, bias))
            axes = [2]
        mean = x.mean(axes, keepdim=True)
        variance = (x - mean).square().mean(axes, keepdim=True)
        return [((x - mean) / torch.sqrt(variance + self.epsilon) * scale + bias).reshape(shape)]


class SoftMax(Layer):
    binding = "ISoftMaxLayer"
    attributes = settable(axes=None)

    def outputs_of(self, x: Tensor) -> list[Description]:
        self.require_type(x, FLOATS)
        self._axis(len(x.shape))
        return [(x.shape, x.dtype)]

    def _axis(self, rank: int) -> int:
        mask = 1 << max(rank - 3, 0) if self.axes is None else self.axes
        axes = self.axes_from(mask, rank)
        self.require(len(axes) == 1, f"axes {axes}; only one is allowed")
        return axes[0]

    def compute(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [x.softmax(self._axis(x.dim()))]


REDUCTIONS = {
    REDUCE.SUM: lambda x, axes: x.sum(axes, keepdim=True),
    REDUCE.MAX: lambda x, axes: x.amax(axes, keepdim=True),
    REDUCE.MIN: lambda x, axes: x.amin(axes, keepdim=True),
    REDUCE.AVG: lambda x, axes: x.mean(axes, keepdim=True),
}


class Reduce(Layer):
    binding = "IReduceLayer"
    attributes = settable(op=None, axes=None, keep_dims=None)

    def outputs_of(self, x: Tensor) -> list[Description]:
        self.require(self.op in REDUCTIONS, f"{self.op} is not known to the stand-in")
        self.require_type(x, FLOATS if self.op == REDUCE.AVG else NUMBERS)
        axes = self.axes_from(self.axes, len(x.shape))
        shape = [1 if at in axes else side for at, side in enumerate(x.shape)]
        return [(shape if self.keep_dims else [side for at, side in enumerate(x.shape) if at not in axes], x.dtype)]

    def compute(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [REDUCTIONS[self.op](x, self.axes_from(self.axes, x.dim())).reshape(self.describe()[0][0])]


class TopK(Layer):
    """The `k` largest or smallest along one of the last four axes, sorted, and their indices."""

    binding = "ITopKLayer"
    attributes = settable(op=None, k=None, axes=None, indices_type=trt.DataType.INT32)

    def outputs_of(self, x: Tensor) -> list[Description]:
        self.require_type(x, NUMBERS)
        self.require(len(x.shape) >= 2, "top-k needs a rank of 2")
        axis = self._axis(len(x.shape))
        self.require(1 <= self.k <= min(MOST_K, x.shape[axis]), f"k is {self.k} of {x.shape[axis]}, at most {MOST_K}")
        shape = [self.k if at == axis else side for at, side in enumerate(x.shape)]
        return [(shape, x.dtype), (shape, self.indices_type)]

    def _axis(self, rank: int) -> int:
        axes = self.axes_from(self.axes, rank)
        self.require(len(axes) == 1 and axes[0] >= rank - 4, f"axes {axes} of rank {rank}")
        return axes[0]

    def compute(self, x: torch.Tensor) -> list[torch.Tensor]:
        found = x.topk(self.k, self._axis(x.dim()), largest=self.op == trt.TopKOperation.MAX, sorted=True)
        return [found.values, found.indices.to(TORCH[self.indices_type])]
