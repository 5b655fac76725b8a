"""Layers that treat every element alike: constants, casts, activations, unary, binary and ternary operations."""

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorrt as trt
import torch

from tests.trt_standin.layer import ANY, FLOATS, NUMBERS, TORCH, Description, Layer, Tensor, settable

E, U, A = trt.ElementWiseOperation, trt.UnaryOperation, trt.ActivationType


class Weights:
    """Stands in for `tensorrt.Weights`: numbers in memory that belongs to somebody else."""

    def __init__(self, source: Any = trt.DataType.FLOAT, pointer: int = 0, count: int = 0) -> None:
        if isinstance(source, np.ndarray):
            self._kept = torch.from_numpy(np.ascontiguousarray(source))
            source = next(key for key, dtype in TORCH.items() if dtype == self._kept.dtype)
            pointer, count = self._kept.data_ptr(), self._kept.numel()
        self.dtype, self._pointer, self.size = source, pointer, int(count)

    def read(self) -> torch.Tensor:
        """Copy the numbers: a flat tensor."""
        dtype = TORCH[self.dtype]
        if self.size == 0:
            return torch.empty(0, dtype=dtype)
        memory = (ctypes.c_char * (self.size * dtype.itemsize)).from_address(self._pointer)
        return torch.frombuffer(memory, dtype=dtype, count=self.size).clone()


class Input(Layer):
    """An input of the network."""

    def __init__(self, dtype: trt.DataType, shape: tuple[int, ...]) -> None:
        self.__dict__.update(dtype=dtype, shape=tuple(shape))
        super().__init__([])

    def outputs_of(self) -> list[Description]:
        return [(self.shape, self.dtype)]

    def resolvable(self) -> bool:
        return False


class Constant(Layer):
    """A constant. TensorRT reads the numbers when it builds the engine, so they must still be there and unchanged."""

    binding = "IConstantLayer"
    attributes = settable(weights=None, shape=())

    def __init__(self, shape: Any, weights: Any) -> None:
        weights = weights if isinstance(weights, Weights) else Weights(weights)  # as the binding does
        self.__dict__["value"] = weights.read()
        super().__init__([], weights=weights, shape=tuple(shape))

    def outputs_of(self) -> list[Description]:
        self.require(self.weights.dtype in ANY, f"{self.weights.dtype} is not among the types of our networks")
        count = int(np.prod(self.shape, dtype=np.int64))
        self.require(self.value.numel() == count, f"{self.value.numel()} weights for the shape {self.shape}")
        return [(self.shape, self.weights.dtype)]

    def freeze(self) -> None:
        """Check that the memory still holds what it held when the layer was added."""
        same = torch.equal(self.weights.read().view(torch.uint8), self.value.view(torch.uint8))
        self.require(same, "its weights were freed or changed before the engine was built")

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "weights": None}

    def compute(self) -> list[torch.Tensor]:
        return [self.value.reshape(tuple(map(int, self.shape)))]


class Cast(Layer):
    """Convert to another type; floats become integers by truncation and booleans by being other than 0."""

    binding = "ICastLayer"
    attributes = settable(to_type=None)

    def outputs_of(self, x: Tensor) -> list[Description]:
        return [(x.shape, self.to_type)]

    def compute(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [x.to(TORCH[self.to_type])]


class Identity(Layer):
    binding = "IIdentityLayer"

    def outputs_of(self, x: Tensor) -> list[Description]:
        return [(x.shape, x.dtype)]

    def compute(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [x]


class Shape(Layer):
    """The shape of the input, as INT64."""

    binding = "IShapeLayer"

    def outputs_of(self, x: Tensor) -> list[Description]:
        return [((len(x.shape),), trt.DataType.INT64)]

    def needs_no_values(self) -> bool:
        return True

    def compute(self, *_: torch.Tensor) -> list[torch.Tensor]:
        return [torch.tensor(self.inputs[0].shape, dtype=torch.int64)]


BINARY: dict[E, tuple[tuple[trt.DataType, ...], Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]] = {
    E.SUM: (NUMBERS, torch.add),
    E.PROD: (NUMBERS, torch.mul),
    E.MAX: (NUMBERS, torch.maximum),
    E.MIN: (NUMBERS, torch.minimum),
    E.SUB: (NUMBERS, torch.sub),
    E.DIV: (NUMBERS, lambda a, b: torch.div(a, b, rounding_mode=None if a.is_floating_point() else "trunc")),
    E.POW: (NUMBERS, torch.pow),
    E.FLOOR_DIV: (NUMBERS, lambda a, b: torch.div(a, b, rounding_mode="floor")),
    E.AND: ((trt.DataType.BOOL,), torch.logical_and),
    E.OR: ((trt.DataType.BOOL,), torch.logical_or),
    E.XOR: ((trt.DataType.BOOL,), torch.logical_xor),
    E.EQUAL: (NUMBERS, torch.eq),
    E.GREATER: (NUMBERS, torch.gt),
    E.LESS: (NUMBERS, torch.lt),
}
TO_BOOL = (E.AND, E.OR, E.XOR, E.EQUAL, E.GREATER, E.LESS)


class ElementWise(Layer):
    """A binary operation: equal types, equal ranks, sides equal or 1."""

    binding = "IElementWiseLayer"
    attributes = settable(op=None)

    def outputs_of(self, a: Tensor, b: Tensor) -> list[Description]:
        self.require_equal_types(a, b)
        self.require_type(a, BINARY[self.op][0])
        return [(self.broadcast(a.shape, b.shape), trt.DataType.BOOL if self.op in TO_BOOL else a.dtype)]

    def compute(self, a: torch.Tensor, b: torch.Tensor) -> list[torch.Tensor]:
        return [BINARY[self.op][1](a, b)]


UNARY: dict[U, tuple[tuple[trt.DataType, ...], Callable[[torch.Tensor], torch.Tensor]]] = {
    U.EXP: (FLOATS, torch.exp),
    U.LOG: (FLOATS, torch.log),
    U.SQRT: (FLOATS, torch.sqrt),
    U.RECIP: (FLOATS, torch.reciprocal),
    U.ABS: (NUMBERS, torch.abs),
    U.NEG: (NUMBERS, torch.neg),
    U.SIN: (FLOATS, torch.sin),
    U.COS: (FLOATS, torch.cos),
    U.CEIL: (FLOATS, torch.ceil),
    U.FLOOR: (FLOATS, torch.floor),
    U.ERF: (FLOATS, torch.erf),
    U.NOT: ((trt.DataType.BOOL,), torch.logical_not),
    U.SIGN: (NUMBERS, torch.sign),
    U.ROUND: (FLOATS, torch.round),
    U.ISINF: (FLOATS, torch.isinf),
    U.ISNAN: (FLOATS, torch.isnan),
}


class Unary(Layer):
    binding = "IUnaryLayer"
    attributes = settable(op=None)

    def outputs_of(self, x: Tensor) -> list[Description]:
        self.require(self.op in UNARY, f"{self.op} is not known to the stand-in")
        self.require_type(x, UNARY[self.op][0])
        return [(x.shape, trt.DataType.BOOL if self.op in (U.ISINF, U.ISNAN) else x.dtype)]

    def compute(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [UNARY[self.op][1](x)]


ACTIVATIONS: dict[A, Callable[[torch.Tensor, float, float], torch.Tensor]] = {
    A.RELU: lambda x, alpha, beta: x.clamp(min=0),
    A.SIGMOID: lambda x, alpha, beta: torch.sigmoid(x),
    A.TANH: lambda x, alpha, beta: torch.tanh(x),
    A.LEAKY_RELU: lambda x, alpha, beta: torch.where(x >= 0, x, alpha * x),
    A.CLIP: lambda x, alpha, beta: x.clamp(max=beta).clamp(min=alpha),
    A.HARD_SIGMOID: lambda x, alpha, beta: (alpha * x + beta).clamp(0, 1),
    A.GELU_ERF: lambda x, alpha, beta: 0.5 * x * (1 + torch.erf(x * 0.5**0.5)),
}


class Activation(Layer):
    binding = "IActivationLayer"
    attributes = settable(type=None, alpha=0.0, beta=0.0)
    type = None  # the binding's own attribute of this name hides the kind of layer

    def outputs_of(self, x: Tensor) -> list[Description]:
        self.require(self.type in ACTIVATIONS, f"{self.type} is not known to the stand-in")
        self.require_type(x, FLOATS)
        return [(x.shape, x.dtype)]

    def compute(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [ACTIVATIONS[self.type](x, self.alpha, self.beta)]


class Select(Layer):
    """Take from the second input where the first is true, else from the third."""

    binding = "ISelectLayer"

    def outputs_of(self, condition: Tensor, a: Tensor, b: Tensor) -> list[Description]:
        self.require_type(condition, (trt.DataType.BOOL,), "condition")
        self.require_equal_types(a, b)
        return [(self.broadcast(condition.shape, a.shape, b.shape), a.dtype)]

    def compute(self, condition: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> list[torch.Tensor]:
        return [torch.where(condition, a, b)]
