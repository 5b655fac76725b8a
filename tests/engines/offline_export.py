"""Exports a whole network in half precision and asks how TensorRT would take it: run by `test_tensorrt_export`."""

import sys

import torch

from tests.offline_tensorrt import report
from tests.offline_tensorrt.activate import activate

SIZES = {"nano": None, "swin-t": (800, 1344)}


def main(name: str) -> None:
    """Report the conversion of the network `name` at a size that its users run."""
    activate()
    from engines.checkpoint import MODELS
    from engines.export import EngineShape, export
    from engines.kernels import plugin
    from engines.xpose import XPose
    from tests.offline_tensorrt.conversion import dry_run

    plugin.register_converter()
    config = MODELS[name][0]()
    shape = EngineShape(SIZES[name] or config.input_hw, batch=1, max_classes=8, max_keypoints=68)
    program = export(XPose(config), shape, "fp16")
    inputs = program.example_inputs[0]
    halves = sum(
        isinstance(value, torch.Tensor) and value.dtype == torch.float16
        for node in program.graph.nodes
        for value in [node.meta.get("val")]
    )
    report({**dry_run(program, inputs).as_json(), "half_tensors": halves})


if __name__ == "__main__":
    main(sys.argv[1])
