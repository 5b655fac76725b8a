"""Registers the plugin with the real TensorRT bindings, asks what TensorRT's builder would ask, and converts a layer.

Started by test_plugin.py in a process of its own.
"""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from tests.trt_standin import report
from tests.trt_standin.activate import activate

SIZES = ((8, 8), (4, 4))


class Layer(torch.nn.Module):
    """One deformable attention: value in float16, everything about locations in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.value = torch.nn.Linear(128, 128).half()
        self.offsets, self.logits = torch.nn.Linear(128, 64), torch.nn.Linear(128, 32)

    def forward(self, tokens: Tensor, reference: Tensor) -> Tensor:
        from engines.kernels import ms_deform_attn

        value = self.value(tokens).unflatten(-1, (4, 32))
        offsets = self.offsets(tokens.float()).unflatten(-1, (4, 2, 4, 2))
        logits = self.logits(tokens.float()).unflatten(-1, (4, 2, 4))
        return ms_deform_attn(value, SIZES, reference, offsets, logits)


def _ask_for_the_kernel(kind: str) -> dict[str, Any]:
    """Call the plugin's `aot_impl` as TensorRT's builder would, with constants in place of its expressions."""
    import tensorrt as trt
    from tensorrt.plugin import _tensor
    from tensorrt.plugin._lib import QDP_REGISTRY

    _tensor.SymIntExpr._exprBuilder = SimpleNamespace(constant=lambda number: number)
    try:
        shapes = ((3, 80, 4, 32), (3, 80, 2, 2), (3, 80, 4, 2, 4, 2), (3, 80, 4, 2, 4))
        types = (getattr(trt, kind), trt.float32, trt.float32, trt.float32)
        inputs = [SimpleNamespace(shape=shape, dtype=dtype) for shape, dtype in zip(shapes, types, strict=True)]
        name, code, launch, extra = QDP_REGISTRY["xpose::ms_deform_attn"].aot_impl_func(*inputs, "8x8,4x4", (), 0)
    finally:
        _tensor.SymIntExpr._exprBuilder = None
    text = code.rstrip(b"\0").decode()
    return {
        "kernel": name,
        "entry": f".entry {name}(" in text,
        "parameters": text.split(".entry", 1)[1].split(")", 1)[0].count(".param"),
        "grid": [launch.grid_x._int_expr, launch.grid_y._int_expr],
        "block": launch.block_x._int_expr,
        "numbers": [number._int_expr for number in extra],
    }


def _convert_with_recording_network() -> dict[str, Any]:
    """Run the generated converter on a network that only remembers, to see which attributes reach the plugin."""
    import tensorrt.plugin as trtp
    from torch_tensorrt.dynamo.conversion._ConverterRegistry import DYNAMO_CONVERTERS
    from torch_tensorrt.dynamo.conversion.plugins import _generate_plugin_converter as module

    seen: dict[str, Any] = {}
    definition = trtp.op.xpose.ms_deform_attn

    class Recorder:
        input_tensor_names, input_attrs = definition.input_tensor_names, definition.input_attrs

        def __call__(self, *tensors: object, **attributes: object) -> str:
            seen.update(tensors=list(tensors), attributes=attributes)
            return "plugin"

    class Network:
        def add_plugin(self, plugin: object, aot: bool) -> Any:
            seen["aot"] = aot
            return SimpleNamespace(name="", get_output=lambda index: f"output {index}")

    converter, *_ = DYNAMO_CONVERTERS.get_unvalidated(torch.ops.xpose.ms_deform_attn.default)
    trtp.op.xpose.ms_deform_attn = Recorder()
    module.get_trt_tensor = lambda context, tensor, name: tensor
    context = SimpleNamespace(net=Network())
    target = torch.ops.xpose.ms_deform_attn.default
    output = converter(context, target, ("value", "reference", "offsets", "logits", "8x8,4x4"), {}, "node")
    trtp.op.xpose.ms_deform_attn = definition
    return {**seen, "output": output}


def main() -> None:
    activate()
    import tensorrt as trt
    from tensorrt.plugin._lib import QDP_REGISTRY

    from engines.kernels import plugin
    from tests.trt_standin.build import build

    plugin.register_converter()
    plugin.register_converter()
    definition = QDP_REGISTRY[plugin.PLUGIN]
    inputs = (torch.rand(1, 80, 128).half(), torch.rand(1, 80, 2, 2))
    layer = Layer().eval()
    engine = build(torch.export.export(layer, inputs))
    (output,) = engine.run(dict(zip(("tokens", "reference"), inputs, strict=True))).values()
    combinations = definition.autotune_func(None, None, None, None, ())[0]._get_combinations()
    report(
        {
            "registered": trt.get_plugin_registry().get_creator("ms_deform_attn", "1", "xpose") is not None,
            "attributes": {name: kind.__name__ for name, kind in definition.input_attrs.items()},
            "types": [[str(kind) for kind in combination.types] for combination in combinations],
            **{kind: _ask_for_the_kernel(kind) for kind in ("float32", "float16", "bfloat16")},
            "converter": _convert_with_recording_network(),
            "difference": float((output - layer(*inputs)).abs().max()),
        }
    )


if __name__ == "__main__":
    main()
