"""Turn an exported program into a TensorRT plan. Needs TensorRT with its builder, torch-tensorrt and a GPU."""

from pathlib import Path

import torch
from torch.export import ExportedProgram

from engines.backends.tensorrt_api import import_tensorrt, import_torch_tensorrt, typing_options
from engines.backends.tensorrt_attention import register_attention
from engines.engine_cache import default_root, exclusive
from engines.kernels import plugin

OPTIMIZATION_LEVEL = 5  # a plan is built once and run for days


def compile_program(program: ExportedProgram, path: Path, device: torch.device) -> None:
    """Build a strongly typed plan in which deformable attention is our plugin, compiled ahead of time into it.

    Args:
        program: traced on `device`.
        path: where the plan is written.
        device: the GPU that will run the plan.
    Raises:
        BackendError: TensorRT, torch-tensorrt or a GPU is missing.
    """
    trt = import_tensorrt()
    torch_tensorrt = import_torch_tensorrt()
    plugin.register_converter()
    register_attention()
    timing_cache = default_root() / "timing.cache"
    timing_cache.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(timing_cache.with_suffix(".lock")), torch.cuda.device(device):  # the builder takes the current GPU
        plan = torch_tensorrt.dynamo.convert_exported_program_to_serialized_trt_engine(
            program,
            arg_inputs=list(program.example_inputs[0]),
            device=torch_tensorrt.Device(str(device)),
            require_full_compilation=True,
            min_block_size=1,
            disable_tf32=True,
            optimization_level=OPTIMIZATION_LEVEL,
            timing_cache_path=str(timing_cache),
            **typing_options(trt),
        )
    path.write_bytes(plan)
