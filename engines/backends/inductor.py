"""The network compiled by PyTorch's AOTInductor: the compiled engine for CPUs, and for GPUs without TensorRT."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.export import ExportedProgram

from engines.backends import RawPoses
from engines.backends.compiled import EncodedPrompts, raw_poses
from engines.errors import BackendError
from engines.export import EngineShape
from engines.preprocess import letterbox_batch
from engines.prompts import PromptTensors
from engines.xpose import XPose


def toolchain(device: torch.device) -> dict[str, str]:
    """What a compiled package depends on besides the network: versions, and the machine's instruction set."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return {"torch": torch.__version__, "cuda": str(torch.version.cuda), "compute_capability": f"{major}.{minor}"}
    return {"torch": torch.__version__, "cpu": torch.backends.cpu.get_cpu_capability()}


def compile_program(program: ExportedProgram, path: Path) -> None:
    """Compile an exported program into the package `path`; takes minutes.

    Raises:
        BackendError: there is no C++ compiler.
    """
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        raise BackendError("compiling an engine needs a C++ compiler; install g++ or clang++, or take --backend eager")
    torch._inductor.aoti_compile_and_package(program, package_path=str(path))


class InductorBackend:
    """Runs a compiled package. A part of a batch is filled up with blank images, whose results are dropped."""

    def __init__(self, path: Path, model: XPose, shape: EngineShape, device: torch.device) -> None:
        self.input_hw = shape.input_hw
        self.batch = shape.batch
        self._device = device
        self._run = torch._inductor.aoti_load_package(str(path))
        self._prompts = EncodedPrompts(model.to(device), shape.max_classes, shape.max_keypoints)

    def set_prompts(self, prompts: PromptTensors) -> None:
        """Use these prompts from the next call of `submit` on."""
        self._prompts.set(prompts)

    def submit(self, images: Sequence[NDArray[np.uint8]]) -> Callable[[], list[RawPoses]]:
        """Run 1 to `batch` RGB images [H, W, 3] of any sizes."""
        poses = self._infer(images)
        return lambda: poses

    @torch.inference_mode()
    def _infer(self, images: Sequence[NDArray[np.uint8]]) -> list[RawPoses]:
        inputs = self._prompts.get()
        batch = letterbox_batch(images, self.input_hw)
        pixels_B3HW = batch.pixels_B3HW(self._device).contiguous()  # the package reads memory as it was traced
        spare = self.batch - len(images)
        if spare:
            pixels_B3HW = torch.cat((pixels_B3HW, pixels_B3HW.new_zeros((spare, *pixels_B3HW.shape[1:]))))
        results = self._run(*inputs._replace(pixels_B3HW=pixels_B3HW))
        return raw_poses([result.cpu() for result in results], batch.placements)

    def close(self) -> None:
        """Let go of the package."""
        del self._run
