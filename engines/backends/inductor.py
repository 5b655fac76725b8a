"""The network compiled by PyTorch's AOTInductor: the compiled engine for CPUs, and for GPUs without TensorRT."""

import functools
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.export import ExportedProgram

from engines.backends import FinishedPoses, RawPoses
from engines.backends.compiled import EncodedPrompts, raw_poses
from engines.backends.side_by_side import SideBySide, runs_side_by_side
from engines.errors import BackendError
from engines.export import EngineShape
from engines.kernels.compiler import build_library, find_compiler, reason_of
from engines.preprocess import letterbox_batch
from engines.prompts import PromptTensors
from engines.xpose import XPose


def toolchain(device: torch.device) -> dict[str, str]:
    """What a compiled package depends on besides the network: versions, and the machine's instruction set."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return {"torch": torch.__version__, "cuda": str(torch.version.cuda), "compute_capability": f"{major}.{minor}"}
    return {"torch": torch.__version__, "cpu": torch.backends.cpu.get_cpu_capability()}


def takes_part_of_capacity(device: torch.device) -> bool:
    """Whether programs for this device are traced for any part of their prompts' capacity; measured on CPUs only."""
    return device.type == "cpu"


def compile_program(program: ExportedProgram, path: Path) -> None:
    """Compile an exported program into the package `path`; takes minutes.

    Raises:
        BackendError: there is no C++ compiler.
    """
    _require_compiler()
    options = {"cpp.dynamic_threads": True}  # as many as the calling thread may use: images run side by side
    torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=options)


def _require_compiler() -> str:
    compiler = find_compiler()
    if compiler is None:
        raise BackendError("compiled engines need a C++ compiler; install g++ or clang++, or take --backend eager")
    return compiler


def load_package(path: Path, runs: int = 1) -> Callable[[list[Tensor]], list[Tensor]]:
    """Return what runs the package `path`, from any thread and without Python's lock.

    Args:
        runs: most calls at a time; more of them wait.
    Raises:
        BackendError: there is no C++ compiler, or it fails.
    """
    return _package_class()(str(path), runs).run  # type: ignore[no-any-return]


@functools.cache
def _package_class() -> Any:
    """Return the class of `inductor_package.cpp`, compiled once, which takes a quarter of a minute."""
    compiler = _require_compiler()
    root = Path(torch.__file__).parent
    flags = [
        "-std=c++20",
        "-O1",
        *(f"-I{root / 'include' / folder}" for folder in ("", "torch/csrc/api/include")),
        f"-L{root / 'lib'}",
        "-ltorch_cpu",
        "-lc10",
    ]
    source = Path(__file__).with_name("inductor_package.cpp")
    try:
        library = build_library(f"inductor_package-{torch.__version__}", compiler, [source], flags)
        torch.classes.load_library(str(library))
    except (OSError, subprocess.SubprocessError) as error:
        raise BackendError(
            f"{compiler} could not make what runs a compiled engine; take --backend eager: {reason_of(error)}"
        ) from error
    return torch.classes.xpose_inductor.Package


class InductorBackend:
    """Runs a compiled package, without Python's lock.

    The images of a call are one batch, whose spare places hold blank images, or run side by side on a CPU where the
    input is small and the package takes one at a time.
    """

    def __init__(self, path: Path, model: XPose, shape: EngineShape, device: torch.device) -> None:
        self.input_hw = shape.input_hw
        self._places = shape.batch
        self._device = device
        one_at_a_time = shape.batch == 1 and runs_side_by_side(device, shape.input_hw)
        self._side_by_side = SideBySide() if one_at_a_time else None
        runs = 1 if self._side_by_side is None else self._side_by_side.count
        self.batch = shape.batch * runs
        self.in_flight = 1
        self._package = load_package(path, runs)
        self._prompts = EncodedPrompts(
            model.to(device),
            shape.max_classes,
            shape.max_keypoints,
            part_of_capacity=takes_part_of_capacity(device),
        )

    def set_prompts(self, prompts: PromptTensors) -> None:
        """Use these prompts from the next call of `submit` on."""
        self._prompts.set(prompts)

    def submit(self, images: Sequence[NDArray[np.uint8]]) -> FinishedPoses:
        """Run 1 to `batch` RGB images [H, W, 3] of any sizes."""
        return FinishedPoses(
            self._run(images) if self._side_by_side is None else self._side_by_side.map(self._run, images)
        )

    @torch.inference_mode()
    def _run(self, images: Sequence[NDArray[np.uint8]]) -> list[RawPoses]:
        inputs = self._prompts.get()
        batch = letterbox_batch(images, self.input_hw)
        pixels_B3HW = batch.pixels_B3HW(self._device).contiguous()  # the package reads memory as it was traced
        spare = self._places - len(images)
        if spare:
            pixels_B3HW = torch.cat((pixels_B3HW, pixels_B3HW.new_zeros((spare, *pixels_B3HW.shape[1:]))))
        results = self._package(list(inputs._replace(pixels_B3HW=pixels_B3HW)))
        return raw_poses([result.cpu() for result in results], batch.placements)

    def close(self) -> None:
        """Let go of the package."""
        del self._package
        if self._side_by_side is not None:
            self._side_by_side.close()
