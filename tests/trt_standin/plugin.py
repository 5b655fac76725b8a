"""A layer made by a quickly deployable plugin: asked for everything that TensorRT's builder asks for, and computed."""

from types import SimpleNamespace
from typing import Any

import tensorrt as trt
import torch
from tensorrt.plugin import _tensor

from engines.kernels import cuda
from engines.kernels.operator import parse_sizes
from engines.kernels.plugin import PLUGIN
from tests.engines.kernels.host import run_on_host
from tests.trt_standin.layer import Description, Layer, Tensor

OPERATION = {
    trt.DimensionOperation.SUM: lambda a, b: a + b,
    trt.DimensionOperation.SUB: lambda a, b: a - b,
    trt.DimensionOperation.PROD: lambda a, b: a * b,
    trt.DimensionOperation.FLOOR_DIV: lambda a, b: a // b,
    trt.DimensionOperation.CEIL_DIV: lambda a, b: -(-a // b),
}


class _Numbers:
    """Stands in for `tensorrt.IExprBuilder`, with plain numbers in the place of its expressions."""

    def constant(self, number: int) -> int:
        return number

    def operation(self, operation: Any, a: int, b: int) -> int:
        return OPERATION[operation](a, b)

    def __enter__(self) -> None:
        _tensor.SymIntExpr._exprBuilder = self

    def __exit__(self, *_: object) -> None:
        _tensor.SymIntExpr._exprBuilder = None


class Plugin(Layer):
    """Deformable attention. Its numbers come from the kernel's own threads, compiled for the host."""

    binding = "IPluginV3Layer"

    def __init__(self, created: tuple[list[Tensor], list[Tensor], Any]) -> None:
        inputs, shape_inputs, plugin = created
        self.__dict__.update(plugin=plugin, sizes=plugin.attrs["sizes"])
        self.require(f"{plugin.plugin_namespace}::{plugin.plugin_name}" == PLUGIN, "another plugin")
        self.require(not shape_inputs, "shape inputs")
        super().__init__(inputs)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "plugin": None}

    def outputs_of(self, *inputs: Tensor) -> list[Description]:
        with _Numbers():
            described = self.plugin.register_function(*map(_described, inputs), **self.plugin.attrs)
            shape = [side._int_expr for side in described.shape_expr]
        offered = self.plugin.autotune_function(*inputs, (None,))
        types = [
            [str(kind) for kind in combination.types] for item in offered for combination in item._get_combinations()
        ]
        wanted = [str(tensor.dtype) for tensor in inputs] + [str(described.dtype)]
        self.require(wanted in types, f"types {wanted} are not among {types}")
        return [(shape, described.dtype)]

    def freeze(self) -> None:
        """Ask for the kernel, as the builder does; its arguments are inputs, extra numbers and outputs."""
        outputs = tuple(SimpleNamespace(shape=shape, dtype=dtype) for shape, dtype in self.describe())
        inputs = [SimpleNamespace(shape=tensor.shape, dtype=tensor.dtype) for tensor in self.inputs]
        with _Numbers():
            name, code, launch, extra = self.plugin.aot_impl_function(*inputs, *self.plugin.attrs.values(), outputs, 0)
        text = code.rstrip(b"\0").decode()
        self.require(f".entry {name}(" in text, f"the code has no kernel {name}")
        parameters = text.split(f".entry {name}(", 1)[1].split(")", 1)[0].count(".param")
        self.require(parameters == len(inputs) + len(extra) + 1, f"the kernel takes {parameters} arguments")
        self.require(launch.grid_x._int_expr >= 1 and launch.block_x._int_expr >= 1, "an empty launch")

    def run(self, values: list[torch.Tensor], tf32: bool = False) -> list[torch.Tensor]:
        """The kernel reads and writes half precision itself, and multiplies no matrices."""
        value, reference, offsets, logits = values
        launch = cuda.launch_of(value.dtype, value.shape, reference.shape, offsets.shape, parse_sizes(self.sizes))
        out = run_on_host(launch, value, reference, offsets, logits)
        ((shape, _),) = self.describe()
        assert tuple(out.shape) == shape
        return [out]


def _described(tensor: Tensor) -> Any:
    """What the plugin is told of an input."""
    described = _tensor.TensorDesc()
    described.dtype = tensor.dtype
    described.shape_expr = _tensor.ShapeExprs(len(tensor.shape))
    for axis, side in enumerate(tensor.shape):
        described.shape_expr[axis] = _tensor.ShapeExpr(side)
    return described
