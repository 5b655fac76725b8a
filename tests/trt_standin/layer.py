"""Tensors and layers of the stand-in network, and what every kind of layer has in common.

A layer knows three things: its attributes (the names that the real binding has, with their documented defaults), the
shapes and types of its outputs under TensorRT's documented rules, and how to compute them. Nothing else is accepted: an
attribute that is not listed is an AttributeError, as it is in the bindings, and a broken rule is a `RuleError`.

Arithmetic runs in float32. A half-precision layer is computed in float32 from its half-precision inputs and rounded
once, at its output.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import tensorrt as trt
import torch

TORCH = {
    trt.DataType.FLOAT: torch.float32,
    trt.DataType.HALF: torch.float16,
    trt.DataType.BF16: torch.bfloat16,
    trt.DataType.INT32: torch.int32,
    trt.DataType.INT64: torch.int64,
    trt.DataType.BOOL: torch.bool,
}
FLOATS = (trt.DataType.FLOAT, trt.DataType.HALF, trt.DataType.BF16)
INTEGERS = (trt.DataType.INT32, trt.DataType.INT64)
NUMBERS = (*FLOATS, *INTEGERS)
ANY = (*NUMBERS, trt.DataType.BOOL)
MAX_RANK = 8
Description = tuple[tuple[int, ...], trt.DataType]


class RuleError(Exception):
    """TensorRT's documentation forbids this."""


class Tensor:
    """Stands in for `tensorrt.ITensor`: an output of a layer."""

    def __init__(self, layer: "Layer", index: int) -> None:
        self.layer, self.index = layer, index
        self.name = f"{type(layer).__name__}_{id(layer):x}_output_{index}"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.layer.describe()[self.index][0]

    @property
    def dtype(self) -> trt.DataType:
        return self.layer.describe()[self.index][1]


class Layer:
    """Stands in for `tensorrt.ILayer`; subclasses say what they are.

    Attributes:
        binding: name of the class of the bindings that this one stands in for.
        attributes: settable attributes and their defaults.
        optional_inputs: how many inputs beyond those given at creation `set_input` may add.
    """

    binding: ClassVar[str] = "ILayer"
    attributes: ClassVar[dict[str, Any]] = {}
    optional_inputs: ClassVar[int] = 0

    def __init__(self, inputs: Sequence[Tensor], outputs: int = 1, **attributes: Any) -> None:
        values = {name: _plain(value) for name, value in {**self.attributes, **attributes}.items()}
        for index, tensor in enumerate(inputs):
            if not isinstance(tensor, Tensor):
                raise TypeError(f"{type(self).__name__}: input {index} is a {type(tensor)}; TensorRT takes an ITensor")
        self.__dict__.update(
            values,
            created=len(inputs),
            inputs=list(inputs),
            outputs=[Tensor(self, index) for index in range(outputs)],
            name="",
            metadata="",
            _described=None,
        )

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self.attributes and name not in ("name", "metadata"):
            raise AttributeError(f"{type(self).__name__} has no attribute {name}")
        if name in self.attributes:
            self.__dict__["_described"] = None
        self.__dict__[name] = _plain(value)

    def freeze(self) -> None:
        """Take what the engine needs out of memory that belongs to others; called when the engine is built."""

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("inputs", "outputs")}

    def set_input(self, index: int, tensor: Tensor) -> None:
        """Replace an input, or add an optional one."""
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{type(self).__name__}: input {index} is a {type(tensor)}; TensorRT takes an ITensor")
        self.require(index < self.created + self.optional_inputs, f"there is no input {index}")
        while len(self.inputs) <= index:
            self.inputs.append(None)
        self.inputs[index] = tensor
        self.__dict__["_described"] = None

    def get_input(self, index: int) -> Tensor | None:
        return self.inputs[index] if index < len(self.inputs) else None

    def get_output(self, index: int) -> Tensor:
        return self.outputs[index]

    @property
    def num_outputs(self) -> int:
        return len(self.outputs)

    @property
    def type(self) -> Any:
        kind = self.binding.removeprefix("I").removesuffix("Layer").replace("xM", "x_M").replace("nV", "n_V")
        return getattr(trt.LayerType, kind.upper())

    def describe(self) -> list[Description]:
        """Return shape and type of each output.

        Raises:
            RuleError: the layer breaks a rule.
        """
        if self._described is None:
            described = [(tuple(map(int, shape)), dtype) for shape, dtype in self.outputs_of(*self.inputs)]
            for shape, dtype in described:
                self.require(len(shape) <= MAX_RANK, f"rank {len(shape)}, at most {MAX_RANK} is allowed")
                self.require(dtype in TORCH, f"{dtype} is not among the types of our networks")
                self.require(all(side >= 0 for side in shape), f"shape {shape}")
            self.__dict__["_described"] = described
        return self._described

    def run(self, values: Sequence[torch.Tensor | None], tf32: bool = False) -> list[torch.Tensor]:
        """Compute the outputs and give them their types.

        Args:
            values: of the inputs.
            tf32: products of float32 matrices round their inputs to 10 bits of mantissa, as `BuilderFlag.TF32` allows.
        """
        wide = [value.float() if value is not None and value.is_floating_point() else value for value in values]
        results = self.compute(*wide, **({"tf32": tf32} if self.multiplies_matrices() else {}))
        computed = []
        for (shape, dtype), result in zip(self.describe(), results, strict=True):
            assert tuple(result.shape) == shape, f"{type(self).__name__}: computed {tuple(result.shape)}, not {shape}"
            computed.append(result.to(TORCH[dtype]))
        return computed

    def multiplies_matrices(self) -> bool:
        return False

    def resolvable(self) -> bool:
        """Whether the outputs may be known when the network is built."""
        return True

    def needs_no_values(self) -> bool:
        """Whether the shapes of the inputs are enough to compute the outputs."""
        return False

    def outputs_of(self, *inputs: Any) -> list[Description]:
        raise NotImplementedError

    def compute(self, *values: Any, **options: Any) -> list[torch.Tensor]:
        raise NotImplementedError

    def require(self, condition: bool, message: str) -> None:
        if not condition:
            raise RuleError(f"{type(self).__name__} {self.name!r}: {message}")

    def require_type(self, tensor: Tensor, allowed: Sequence[trt.DataType], what: str = "input") -> None:
        self.require(tensor.dtype in allowed, f"{what} is {tensor.dtype}, allowed are {', '.join(map(str, allowed))}")

    def require_equal_types(self, *tensors: Tensor) -> None:
        """A strongly typed network converts nothing by itself."""
        types = [tensor.dtype for tensor in tensors]
        self.require(len(set(types)) == 1, f"types differ: {', '.join(map(str, types))}")

    def broadcast(self, *shapes: Sequence[int]) -> tuple[int, ...]:
        """Equal ranks; each side equal, or 1."""
        self.require(len({len(shape) for shape in shapes}) == 1, f"ranks differ: {list(map(tuple, shapes))}")
        sides = [{side for side in axis if side != 1} or {1} for axis in zip(*shapes, strict=True)]
        self.require(all(len(side) == 1 for side in sides), f"shapes do not broadcast: {list(map(tuple, shapes))}")
        return tuple(side.pop() for side in sides)

    def axes_from(self, mask: int, rank: int) -> list[int]:
        """Turn a bit mask of axes into a list."""
        found = [axis for axis in range(rank) if mask >> axis & 1]
        self.require(bool(found) and mask >> rank == 0, f"axes {mask:b} of rank {rank}")
        return found


def settable(**defaults: Any) -> dict[str, Any]:
    """The attributes of a layer that may be set, and their defaults."""
    return defaults


def _plain(value: Any) -> Any:
    """Turn the bindings' sequences into tuples, which can be pickled."""
    return tuple(map(int, value)) if isinstance(value, (trt.Dims, trt.Permutation)) else value


def constant_value(tensor: Tensor) -> torch.Tensor:
    """Compute a shape tensor while the network is built.

    Raises:
        RuleError: it depends on an input of the network.
    """
    known: dict[Tensor, torch.Tensor] = {}

    def value(wanted: Tensor) -> torch.Tensor:
        if wanted not in known:
            layer = wanted.layer
            layer.require(layer.resolvable(), "a shape must be known when the network is built")
            inputs = [] if layer.needs_no_values() else [value(item) for item in layer.inputs]
            for output, result in zip(layer.outputs, layer.run(inputs), strict=True):
                known[output] = result
        return known[wanted]

    return value(tensor)
