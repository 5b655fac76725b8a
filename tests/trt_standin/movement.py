"""Layers that move elements and compute none: reshapes, transposes, slices, gathers, concatenation."""

import math
from collections.abc import Sequence
from typing import Any

import tensorrt as trt
import torch

from tests.trt_standin.layer import INTEGERS, Description, Layer, Tensor, constant_value, settable

MODE, GATHER = trt.SampleMode, trt.GatherMode


def _numbers(dims: Any) -> list[int] | None:
    return None if dims is None else [int(side) for side in dims]


class Shuffle(Layer):
    """Transpose, reshape, transpose. A second input replaces `reshape_dims`."""

    binding = "IShuffleLayer"
    attributes = settable(first_transpose=None, reshape_dims=None, second_transpose=None, zero_is_placeholder=True)
    optional_inputs = 1

    def outputs_of(self, x: Tensor, wanted: Tensor | None = None) -> list[Description]:
        reshaped = self._steps(x.shape)
        return [([reshaped[axis] for axis in self._order(self.second_transpose, len(reshaped))], x.dtype)]

    def _steps(self, shape: Sequence[int]) -> list[int]:
        """Return the shape after the first transpose and the reshape."""
        transposed = [shape[axis] for axis in self._order(self.first_transpose, len(shape))]
        wanted = self._wanted()
        if wanted is None:
            return transposed
        if self.zero_is_placeholder:
            self.require(
                all(side or index < len(transposed) for index, side in enumerate(wanted)), "a 0 has nothing to copy"
            )
            wanted = [side or transposed[index] for index, side in enumerate(wanted)]
        self.require(wanted.count(-1) <= 1, f"more than one -1 in {wanted}")
        if -1 in wanted:
            others = -math.prod(wanted)
            self.require(others > 0 and math.prod(transposed) % others == 0, f"{transposed} is not {wanted}")
            wanted[wanted.index(-1)] = math.prod(transposed) // others
        self.require(math.prod(wanted) == math.prod(transposed), f"{transposed} has not as many elements as {wanted}")
        return wanted

    def _wanted(self) -> list[int] | None:
        if len(self.inputs) == 1:
            return _numbers(self.reshape_dims)
        self.require(self.inputs[1].dtype in INTEGERS, f"the shape is {self.inputs[1].dtype}")
        return [int(side) for side in constant_value(self.inputs[1]).flatten()]

    def _order(self, permutation: Any, rank: int) -> list[int]:
        """Return the axes in their new order; `tensorrt.Permutation` has spare numbers at its end."""
        numbers = (_numbers(permutation) or list(range(rank)))[:rank]
        self.require(sorted(numbers) == list(range(rank)), f"permutation {numbers} of rank {rank}")
        return numbers

    def compute(self, x: torch.Tensor, wanted: torch.Tensor | None = None) -> list[torch.Tensor]:
        reshaped = x.permute(self._order(self.first_transpose, x.dim())).reshape(self._steps(self.inputs[0].shape))
        return [reshaped.permute(self._order(self.second_transpose, reshaped.dim()))]


class Slice(Layer):
    """Take `shape` elements along each axis, from `start` on, in steps of `stride`; inputs 1 to 3 replace them.

    Input 4 is the value that `SampleMode.FILL` puts beyond the bounds.
    """

    binding = "ISliceLayer"
    attributes = settable(start=None, shape=None, stride=None, mode=MODE.STRICT_BOUNDS)
    optional_inputs = 4

    def outputs_of(self, x: Tensor, *others: Tensor | None) -> list[Description]:
        start, shape, stride = self._region()
        rank = len(x.shape)
        self.require({len(start), len(shape), len(stride)} == {rank}, f"{start}, {shape}, {stride} of rank {rank}")
        fill = self.get_input(4)
        self.require(fill is None or self.mode == MODE.FILL, "a fill value is an error in every other mode")
        self.require(fill is None or fill.dtype == x.dtype, "the fill value has another type")
        self.require(self.mode != MODE.REFLECT, f"{self.mode} is not known to the stand-in")
        if self.mode == MODE.STRICT_BOUNDS:
            for side, begin, count, step in zip(x.shape, start, shape, stride, strict=True):
                last = begin + step * (count - 1)
                inside = count == 0 or (0 <= begin < side and 0 <= last < side)
                self.require(inside, f"start {start}, shape {shape}, stride {stride} leave {x.shape}")
        return [(shape, x.dtype)]

    def _region(self) -> tuple[list[int], list[int], list[int]]:
        region = []
        for index, own in enumerate((self.start, self.shape, self.stride), start=1):
            given = self.get_input(index)
            self.require(given is None or given.dtype in INTEGERS, f"input {index} is not of integers")
            numbers = own if given is None else constant_value(given).flatten().tolist()
            region.append([int(number) for number in numbers])
        return region[0], region[1], region[2]

    def compute(self, x: torch.Tensor, *others: torch.Tensor | None) -> list[torch.Tensor]:
        outside = torch.zeros([1] * x.dim(), dtype=torch.bool)
        for axis, (begin, count, step) in enumerate(zip(*self._region(), strict=True)):
            side = x.shape[axis]
            if begin == 0 and step == 1 and count == side:
                continue
            index = begin + step * torch.arange(count)
            if self.mode == MODE.FILL:
                beyond = (index < 0) | (index >= side)
                outside = outside | beyond.reshape([-1 if at == axis else 1 for at in range(x.dim())])
            index = index % side if self.mode == MODE.WRAP else index.clamp(0, side - 1)
            x = x.index_select(axis, index)
        if outside.any():
            fill = others[3] if len(others) > 3 else torch.zeros(())
            x = torch.where(outside, fill.reshape([1] * x.dim()), x)
        return [x]


class Unsqueeze(Layer):
    """Insert sides of 1; the axes count in the output."""

    binding = "IUnsqueezeLayer"

    def outputs_of(self, x: Tensor, axes: Tensor) -> list[Description]:
        rank = len(x.shape) + axes.shape[0]
        shape = list(x.shape)
        for axis in sorted(self._axes(axes, rank)):
            shape.insert(axis, 1)
        return [(shape, x.dtype)]

    def _axes(self, axes: Tensor, rank: int) -> list[int]:
        self.require(axes.dtype in INTEGERS and len(axes.shape) == 1, f"axes are {axes.dtype}, shape {axes.shape}")
        numbers = constant_value(axes).tolist()
        self.require(all(-rank <= axis < rank for axis in numbers), f"axes {numbers} of rank {rank}")
        found = [axis % rank for axis in numbers]
        self.require(len(set(found)) == len(found), f"axes {numbers} are not unique")
        return found

    def compute(self, x: torch.Tensor, axes: torch.Tensor) -> list[torch.Tensor]:
        return [x.reshape(self.describe()[0][0])]


class Squeeze(Unsqueeze):
    """Remove sides of 1."""

    binding = "ISqueezeLayer"

    def outputs_of(self, x: Tensor, axes: Tensor) -> list[Description]:
        gone = self._axes(axes, len(x.shape))
        self.require(all(x.shape[axis] == 1 for axis in gone), f"axes {gone} of {x.shape} are not 1")
        return [([side for axis, side in enumerate(x.shape) if axis not in gone], x.dtype)]


class Concatenation(Layer):
    """Equal types and ranks; all sides but one are equal."""

    binding = "IConcatenationLayer"
    attributes = settable(axis=None)

    def outputs_of(self, *tensors: Tensor) -> list[Description]:
        self.require_equal_types(*tensors)
        first = tensors[0].shape
        self.require(all(len(tensor.shape) == len(first) for tensor in tensors), "ranks differ")
        axis = self._axis()
        self.require(0 <= axis < len(first), f"axis {axis} of rank {len(first)}")
        for tensor in tensors:
            same = all(a == b for at, (a, b) in enumerate(zip(tensor.shape, first, strict=True)) if at != axis)
            self.require(same, f"{tensor.shape} beside {first} along axis {axis}")
        total = sum(tensor.shape[axis] for tensor in tensors)
        return [([total if at == axis else side for at, side in enumerate(first)], tensors[0].dtype)]

    def _axis(self) -> int:
        return max(len(self.inputs[0].shape) - 3, 0) if self.axis is None else int(self.axis)

    def compute(self, *values: torch.Tensor) -> list[torch.Tensor]:
        return [torch.cat(values, dim=self._axis())]


class Gather(Layer):
    """ONNX's Gather, GatherElements or GatherND, by `mode`. Indices count from 0 and stay in bounds."""

    binding = "IGatherLayer"
    attributes = settable(axis=0, mode=GATHER.DEFAULT, num_elementwise_dims=0)

    def outputs_of(self, x: Tensor, index: Tensor) -> list[Description]:
        self.require_type(index, INTEGERS, "indices")
        if self.mode == GATHER.ND:
            return self._nd(x, index)
        self.require(0 <= self.axis < len(x.shape), f"axis {self.axis} of {x.shape}")
        if self.mode == GATHER.ELEMENT:
            self.require(self.num_elementwise_dims == 0, "num_elementwise_dims must be 0")
            self.require(len(x.shape) == len(index.shape), f"indices {index.shape} of {x.shape}: ranks differ")
            fits = all(a <= b for at, (a, b) in enumerate(zip(index.shape, x.shape, strict=True)) if at != self.axis)
            self.require(fits, f"indices {index.shape} of {x.shape} along {self.axis}")
            return [(index.shape, x.dtype)]
        self.require(self.num_elementwise_dims == 0, "the stand-in knows no elementwise dimensions in this mode")
        return [((*x.shape[: self.axis], *index.shape, *x.shape[self.axis + 1 :]), x.dtype)]

    def _nd(self, x: Tensor, index: Tensor) -> list[Description]:
        batch, last = self.num_elementwise_dims, index.shape[-1]
        self.require(0 <= batch < len(x.shape), f"{batch} elementwise dimensions of {x.shape}")
        self.require(x.shape[:batch] == index.shape[:batch], f"{x.shape} and {index.shape} differ in front")
        self.require(batch + last <= len(x.shape), f"indices of {last} numbers into {x.shape}")
        return [((*index.shape[:-1], *x.shape[batch + last :]), x.dtype)]

    def compute(self, x: torch.Tensor, index: torch.Tensor) -> list[torch.Tensor]:
        index = index.long()
        if self.mode == GATHER.ND:
            return [self._compute_nd(x, index)]
        self._require_inside(index, x.shape[self.axis])
        if self.mode == GATHER.ELEMENT:
            return [x.gather(self.axis, index)]
        return [x.index_select(self.axis, index.flatten()).reshape(self.describe()[0][0])]

    def _compute_nd(self, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        batch, last = self.num_elementwise_dims, index.shape[-1]
        count = math.prod(x.shape[:batch])
        flat, rows = x.reshape(count, *x.shape[batch:]), index.reshape(count, -1, last)
        for axis in range(last):
            self._require_inside(rows[..., axis], flat.shape[1 + axis])
        taken = [flat[at][tuple(rows[at].unbind(-1))] for at in range(count)]
        return torch.stack(taken).reshape(self.describe()[0][0])

    def _require_inside(self, index: torch.Tensor, side: int) -> None:
        inside = index.numel() == 0 or (int(index.min()) >= 0 and int(index.max()) < side)
        self.require(inside, f"an index is outside of 0 to {side - 1}")
