"""Builds a program's plan with the stand-in, by the very code that builds it with TensorRT, and compares numbers."""

import copy
import tempfile
from pathlib import Path

import tensorrt as trt
import torch
from torch.export import ExportedProgram

from engines.export import Detector, DetectorInputs, EngineShape, export
from engines.kernels import cpu
from engines.tensorrt_build import compile_program
from engines.xpose import XPose
from tests.trt_standin.network import Engine

OUTPUTS = ("boxes", "logits", "classes", "keypoints")


def build(program: ExportedProgram) -> Engine:
    """Compile a program and load the plan."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "engine.plan"
        compile_program(program, path, torch.device("cuda", 0))
        return trt.Runtime(trt.Logger(trt.Logger.WARNING)).deserialize_cuda_engine(path.read_bytes())


def export_as_for_a_gpu(model: XPose, shape: EngineShape, precision: str) -> ExportedProgram:
    """Export without the operators that exist on CPUs alone."""
    available = cpu.window_attention_available
    cpu.window_attention_available = lambda *_: False
    try:
        return export(copy.deepcopy(model), shape, precision)
    finally:
        cpu.window_attention_available = available


def run(engine: Engine, inputs: DetectorInputs) -> list[torch.Tensor]:
    """Compute the engine's outputs in the order of the program's."""
    results = engine.run({name.lower(): tensor for name, tensor in inputs._asdict().items()})
    return [results[f"output{index}"] for index in range(len(OUTPUTS))]


@torch.inference_mode()
def expected(model: XPose, inputs: DetectorInputs) -> list[torch.Tensor]:
    """What PyTorch computes."""
    return list(Detector(model)(*inputs))


def relative_error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """Largest difference over the largest number (or 1, if all are 0); infinities must be equal."""
    finite = torch.isfinite(wanted)
    if not torch.equal(finite, torch.isfinite(got)) or not torch.equal(got[~finite], wanted[~finite]):
        return float("inf")
    largest = float(wanted[finite].abs().max())
    return float((got - wanted)[finite].abs().max()) / (largest or 1.0)
