"""A TensorRT plan, run by `tensorrt` alone: one CUDA graph per slot, several frames in flight.

A slot is a stream with its own execution context, buffers and captured graph. `submit` copies 8-bit images into
page-locked memory, queues upload, preprocessing, the graph and the download on the slot's stream, and returns; only
taking the result waits, for that slot's event. Prompts are device buffers that every slot reads: they are rewritten
when no slot is busy, so a change takes effect between two frames.

Legend: as in `engines.export`.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engines.backends import RawPoses
from engines.backends.compiled import EncodedPrompts, raw_poses
from engines.backends.tensorrt_api import import_tensorrt
from engines.errors import BackendError
from engines.export import DetectorInputs, EngineShape
from engines.kernels.letterbox import letterbox_into
from engines.preprocess import Placement
from engines.prompts import PromptTensors
from engines.xpose import XPose

_log = logging.getLogger(__name__)

IN_FLIGHT = 3
PIXELS = "pixels_B3HW"


def toolchain(device: torch.device) -> dict[str, str]:
    """What a plan depends on besides the network.

    Raises:
        BackendError: TensorRT is not installed, or there is no NVIDIA GPU.
    """
    trt = import_tensorrt()
    if device.type != "cuda":
        raise BackendError("TensorRT needs an NVIDIA GPU and a CUDA build of PyTorch; this machine offers only the CPU")
    major, minor = torch.cuda.get_device_capability(device)
    return {
        "tensorrt": str(trt.__version__),
        "cuda": str(torch.version.cuda),
        "compute_capability": f"{major}.{minor}",
        "gpu": torch.cuda.get_device_name(device),
    }


class TensorRTBackend:
    """Runs a plan; `batch` images per call, a smaller part filled up with what the slot held before."""

    def __init__(self, path: Path, model: XPose, shape: EngineShape, device: torch.device) -> None:
        self.input_hw = shape.input_hw
        self.batch = shape.batch
        self.in_flight = IN_FLIGHT
        trt = import_tensorrt()
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))
        engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if engine is None:
            raise BackendError(f"TensorRT does not accept {path}; its own message is in the log above")
        self._prompts = EncodedPrompts(model, shape.max_classes, shape.max_keypoints)
        names = _input_names(trt, engine)
        self._buffers = {
            field: torch.zeros(
                tuple(engine.get_tensor_shape(name)), dtype=_torch_type(trt, engine, name), device=device
            )
            for field, name in names.items()
            if field != PIXELS
        }
        self._slots = [_Slot(trt, engine, names, self._buffers, device) for _ in range(IN_FLIGHT)]
        self._next = 0

    def set_prompts(self, prompts: PromptTensors) -> None:
        """Rewrite the prompt buffers, after the frames in flight."""
        encoded = self._prompts.set(prompts)
        for slot in self._slots:
            slot.stream.synchronize()
        for field, buffer in self._buffers.items():
            buffer.copy_(getattr(encoded, field))
        torch.cuda.current_stream(next(iter(self._buffers.values())).device).synchronize()

    def submit(self, images: Sequence[NDArray[np.uint8]]) -> "_Pending":
        """Queue 1 to `batch` RGB images [H, W, 3]; wait only while all slots are busy."""
        self._prompts.get()
        slot = self._slots[self._next]
        self._next = (self._next + 1) % len(self._slots)
        return slot.submit(images)

    def close(self) -> None:
        """Wait for the frames in flight and let go of the engine."""
        for slot in self._slots:
            slot.stream.synchronize()
        self._slots.clear()


class _Slot:
    """One frame in flight: stream, execution context, buffers, captured graph."""

    def __init__(
        self, trt: ModuleType, engine: Any, names: dict[str, str], prompts: dict[str, Tensor], device: torch.device
    ) -> None:
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._context = engine.create_execution_context()
        self._pixels = torch.zeros(tuple(engine.get_tensor_shape(names[PIXELS])), device=device)
        self._outputs = [
            torch.zeros(tuple(engine.get_tensor_shape(name)), dtype=_torch_type(trt, engine, name), device=device)
            for name in _names(trt, engine, trt.TensorIOMode.OUTPUT)
        ]
        self._on_host = [torch.empty(output.shape, dtype=output.dtype, pin_memory=True) for output in self._outputs]
        self._uploads: list[Tensor] = []
        self._staging: list[Tensor] = []
        addresses = {names[field]: buffer for field, buffer in prompts.items()} | {names[PIXELS]: self._pixels}
        addresses |= dict(zip(_names(trt, engine, trt.TensorIOMode.OUTPUT), self._outputs, strict=True))
        for name, buffer in addresses.items():
            if not self._context.set_tensor_address(name, buffer.data_ptr()):
                raise BackendError(f"TensorRT does not take the buffer for {name}")
        self._pending: _Pending | None = None
        self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._done.record(self.stream)
        self._graph = self._capture()

    def _capture(self) -> torch.cuda.CUDAGraph:
        with torch.cuda.stream(self.stream):
            self._execute()  # allocations and lazy loading happen outside of the capture
            self.stream.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=self.stream):
                self._execute()
        return graph

    def _execute(self) -> None:
        if not self._context.execute_async_v3(self.stream.cuda_stream):
            raise BackendError("TensorRT could not queue the engine; its own message is in the log above")

    def submit(self, images: Sequence[NDArray[np.uint8]]) -> "_Pending":
        """Queue everything on the slot's stream; waits only while the slot is still busy with an earlier frame."""
        if self._pending is not None:
            self._pending.result()  # its results move out of the buffers that this frame is about to use
        with torch.cuda.stream(self.stream):
            placements = [
                letterbox_into(self._pixels[row], self._upload(row, image)) for row, image in enumerate(images)
            ]
            self._graph.replay()
            for host, output in zip(self._on_host, self._outputs, strict=True):
                host.copy_(output, non_blocking=True)
            self._done.record(self.stream)
        self._pending = _Pending(self._done, self._on_host, placements)
        return self._pending

    def _upload(self, row: int, image: NDArray[np.uint8]) -> Tensor:
        """Copy an image through page-locked memory, which grows to the largest image that the slot has met."""
        if row == len(self._staging) or self._staging[row].shape[0] < image.size:
            self._staging[row : row + 1] = [torch.empty(image.size, dtype=torch.uint8, pin_memory=True)]
            self._uploads[row : row + 1] = [torch.empty(image.size, dtype=torch.uint8, device=self._pixels.device)]
        host, device = self._staging[row][: image.size], self._uploads[row][: image.size]
        np.copyto(host.numpy(), image.reshape(-1))
        return device.copy_(host, non_blocking=True).view(image.shape)


class _Pending:
    """A frame in flight."""

    def __init__(self, done: torch.cuda.Event, on_host: list[Tensor], placements: Sequence[Placement]) -> None:
        self._done, self._on_host, self._placements = done, on_host, placements
        self._poses: list[RawPoses] | None = None

    def done(self) -> bool:
        """Whether `result` would return at once."""
        return self._poses is not None or self._done.query()  # type: ignore[no-untyped-call]

    def result(self) -> list[RawPoses]:
        """Wait for the frame and return its poses, the same each time."""
        if self._poses is None:
            self._done.synchronize()
            self._poses = raw_poses([host.clone() for host in self._on_host], self._placements)
        return self._poses


def _names(trt: ModuleType, engine: Any, mode: Any) -> list[str]:
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    return [name for name in names if engine.get_tensor_mode(name) == mode]


def _input_names(trt: ModuleType, engine: Any) -> dict[str, str]:
    """Return the plan's name of each of `DetectorInputs`; tracing may have changed the case."""
    found = {name.lower(): name for name in _names(trt, engine, trt.TensorIOMode.INPUT)}
    missing = [field for field in DetectorInputs._fields if field.lower() not in found]
    if missing:
        raise BackendError(f"the plan has no input {', '.join(missing)}; it has {', '.join(found.values())}")
    return {field: found[field.lower()] for field in DetectorInputs._fields}


def _torch_type(trt: ModuleType, engine: Any, name: str) -> torch.dtype:
    types = {
        trt.DataType.FLOAT: torch.float32,
        trt.DataType.HALF: torch.float16,
        trt.DataType.BF16: torch.bfloat16,
        trt.DataType.BOOL: torch.bool,
        trt.DataType.INT32: torch.int32,
        trt.DataType.INT64: torch.int64,
    }
    return types[engine.get_tensor_dtype(name)]
