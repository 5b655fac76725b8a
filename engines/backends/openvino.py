"""The network compiled by OpenVINO: the compiled engine for CPUs.

The engine file is the network as ONNX (`engines.onnx_export`), with attention as operators of our own where a C++
compiler is at hand (`engines.kernels.openvino_operators`). OpenVINO compiles it when it is opened and keeps the
result in a folder beside the file, so that the next start is fast.

Images of a small input run side by side, one thread each: their operators are too short to be shared out well, so this
gives the most images per second. An image that finds no other in flight gets all threads, which gives the least delay.
Larger inputs always get all threads.
"""

import functools
import importlib
import math
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from engines.backends import PendingPoses, RawPoses
from engines.backends.compiled import EncodedPrompts, raw_poses
from engines.errors import BackendError
from engines.export import DetectorInputs, EngineShape
from engines.kernels.openvino_operators import operators_library
from engines.onnx_export import OUTPUTS, OnnxInputs
from engines.preprocess import letterbox_batch
from engines.prompt_tensors import PromptTensors
from engines.xpose import XPose

SMALL_PX = 512 * 512  # of an input, up to which its images run side by side
_TELEMETRY = "openvino_telemetry"


def import_openvino() -> ModuleType:
    """Return the module `openvino`, which then sends no telemetry.

    OpenVINO's converters report their use to Intel unless the user has declined. We call none of them; hiding the
    package that would send makes OpenVINO fall back to its own stand-in, which does nothing.

    Raises:
        BackendError: it is not installed.
    """
    if "openvino" not in sys.modules:
        sys.modules.setdefault(_TELEMETRY, None)  # type: ignore[arg-type]
    try:
        return importlib.import_module("openvino")
    except ImportError as error:
        raise BackendError(
            f"OpenVINO is not installed ({error}); `pip install openvino`, or take --backend eager"
        ) from error


def toolchain(device: torch.device, precision: str) -> dict[str, str]:
    """What an engine depends on besides the network.

    Raises:
        BackendError: OpenVINO is not installed, the device is not a CPU, or it does not run the precision.
    """
    if device.type != "cpu":
        raise BackendError(f"OpenVINO runs on CPUs, but the device is {device}; take tensorrt or eager there")
    bfloat16 = is_fast_in_bfloat16()
    if precision not in ("auto", "fp32", "bf16") or (precision == "bf16" and not bfloat16):
        allowed = "fp32 or bf16" if bfloat16 else "fp32"
        raise BackendError(
            f"engines of OpenVINO compute in {allowed} on this processor, not in {precision}; "
            "take fp32, or --backend eager"
        )
    return {
        "openvino": str(import_openvino().__version__),
        "torch": torch.__version__,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "attention": "compiled" if operators() else "standard",
        "bfloat16": "fast" if bfloat16 else "slow",
    }


@functools.cache
def core() -> Any:
    """Return OpenVINO's core, the only one of the process.

    The first use of a core gives the thread a stack of its own for signals, which the end of the core unmaps. Where one
    core ends before a later one, the thread is left with the unmapped stack, and its next signal (a Ctrl-C) ends the
    process.

    OpenVINO fills its tables of element types on first use, and lets other Python threads run meanwhile: two requests
    that are each the first of their thread can then wait for each other for ever. So they are filled here.
    """
    openvino = import_openvino()
    openvino.Type.f32.to_dtype()
    openvino.Tensor(np.zeros(1, np.float32), shared_memory=True)
    return openvino.Core()


@functools.cache
def core_with_operators() -> Any:
    """Return the same core after it has learned our operators, where they can be had."""
    library = operators()
    if library is not None:
        core().add_extension(str(library))
    return core()


@functools.cache
def is_fast_in_bfloat16() -> bool:
    """Whether the processor multiplies matrices in bfloat16 (AVX512-BF16 or AMX), as OpenVINO sees it."""
    return "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def operators() -> Path | None:
    """Return the library of our operators, which is compiled on first use; None where networks run without them."""
    openvino = import_openvino()
    return operators_library(Path(openvino.__path__[0]), str(openvino.__version__))


def runs_side_by_side(input_hw: tuple[int, int]) -> bool:
    """Whether images of this input size run side by side."""
    return math.prod(input_hw) <= SMALL_PX


class OpenVinoBackend:
    """Runs a network from its ONNX file, one image per call."""

    def __init__(
        self, path: Path, model: XPose, shape: EngineShape, precision: str, *, side_by_side: bool = True
    ) -> None:
        """Compile the file, or take what an earlier start compiled.

        Args:
            path: the ONNX file.
            model: the float32 network, which encodes the prompts.
            shape: of the engine.
            precision: "fp32", or "bf16": OpenVINO then rounds nearly everything, coordinates between layers included.
            side_by_side: False runs one image at a time, whatever its size: half as much to compile.
        Raises:
            BackendError: OpenVINO refuses the file.
        """
        self.input_hw = shape.input_hw
        self.batch = 1
        threads = torch.get_num_threads()
        self.in_flight = threads if side_by_side and runs_side_by_side(shape.input_hw) else 1
        try:
            self._alone = _Requests(path, precision, streams=1, threads=threads)
            together = functools.partial(_Requests, path, precision, streams=threads, threads=threads)
            self._together = together() if self.in_flight > 1 else self._alone
        except RuntimeError as error:  # OpenVINO has no exception of its own
            reason = str(error).strip().splitlines()[-1].strip()
            raise BackendError(f"OpenVINO does not accept {path}: {reason}; take --backend eager") from error
        self._prompts = EncodedPrompts(model, shape.max_classes, shape.max_keypoints, keep_spare=False)
        self._workers = ThreadPoolExecutor(self.in_flight, "openvino")
        self._calls: list[Future[list[RawPoses]]] = []

    def set_prompts(self, prompts: PromptTensors) -> None:
        """Use these prompts from the next call of `submit` on."""
        self._prompts.set(prompts)

    def submit(self, images: Sequence[NDArray[np.uint8]]) -> PendingPoses:
        """Start work on one RGB image [H, W, 3] of any size."""
        self._calls = [call for call in self._calls if not call.done()]
        requests = self._together if self._calls else self._alone
        call = self._workers.submit(self._run, requests, self._prompts.get(), images)
        self._calls.append(call)
        return call

    def _run(
        self, requests: "_Requests", prompts: DetectorInputs, images: Sequence[NDArray[np.uint8]]
    ) -> list[RawPoses]:
        batch = letterbox_batch(images, self.input_hw)
        results = requests.run(OnnxInputs(batch.images_BHW3, *prompts[1:]))
        return raw_poses(results, batch.placements)

    def close(self) -> None:
        """Wait for the images in flight and release the network."""
        self._workers.shutdown()
        del self._alone, self._together


class _Requests:
    """A compiled network and its inference requests; any thread may run one."""

    def __init__(self, path: Path, precision: str, streams: int, threads: int) -> None:
        options = {
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
            "ENABLE_CPU_PINNING": False,  # every process would take the same cores, from the first one on
            "CACHE_DIR": str(path.parent / "compiled"),
        }
        compiled = core_with_operators().compile_model(str(path), "CPU", options)
        self._free: SimpleQueue[Any] = SimpleQueue()
        for _ in range(streams):
            self._free.put(compiled.create_infer_request())

    def run(self, inputs: OnnxInputs) -> list[torch.Tensor]:
        """Run the network, without Python's lock; return copies of its outputs, in the order of `OUTPUTS`."""
        request = self._free.get()
        try:
            request.infer({name: tensor.numpy() for name, tensor in inputs._asdict().items()}, share_inputs=True)
            return [torch.from_numpy(request.get_tensor(name).data.copy()) for name in OUTPUTS]
        finally:
            self._free.put(request)
