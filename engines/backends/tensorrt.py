"""A TensorRT plan, run by `tensorrt` alone: one CUDA graph per slot, several frames in flight.

A slot is a stream with its own execution context, buffers and captured graph. `submit` copies 8-bit images into
page-locked memory, queues upload, preprocessing, the graph and the download on the slot's stream, and returns. Only
taking the result waits, for that slot's event, and the waiting thread sleeps. Prompts are device buffers that every
slot reads. They are rewritten when no slot is busy, so a change takes effect between two frames. The first prompts also
capture the graphs: an engine never runs on an empty mask, whose softmax is not a number.

Every call makes the backend's GPU the current one, so several engines may run on several GPUs in one process.

Legend: as in `engines.export`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engines.backends import RawPoses
from engines.backends.compiled import EncodedPrompts, raw_poses
from engines.backends.tensorrt_api import import_tensorrt, logger
from engines.errors import BackendError
from engines.export import DetectorInputs, EngineShape
from engines.kernels.letterbox import letterbox_into
from engines.preprocess import Placement
from engines.prompt_tensors import PromptTensors
from engines.xpose import XPose

IN_FLIGHT = 3
PIXELS = "pixels_B3HW"
OUTPUTS = ("output0", "output1", "output2", "output3")
"""torch-tensorrt's names of boxes, logits, classes and keypoints, in the order of `engines.export.Detector`."""


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
        self._device = device
        self._prompts = EncodedPrompts(model, shape.max_classes, shape.max_keypoints)
        self._slots: list[_Slot] = []
        self._next = 0
        with torch.cuda.device(device):
            self._plan = _Plan(path)
            self._buffers = {
                field: torch.zeros(self._plan.shape(name), dtype=self._plan.dtype(name), device=device)
                for field, name in self._plan.inputs.items()
                if field != PIXELS
            }

    def set_prompts(self, prompts: PromptTensors) -> None:
        """Rewrite the prompt buffers, after the frames in flight."""
        encoded = self._prompts.set(prompts)
        for slot in self._slots:
            slot.wait()
        with torch.cuda.device(self._device):
            for field, buffer in self._buffers.items():
                buffer.copy_(getattr(encoded, field))
            written = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            written.record()
            written.synchronize()
            if not self._slots:
                self._slots = [_Slot(self._plan, self._buffers, self._device) for _ in range(IN_FLIGHT)]

    def submit(self, images: Sequence[NDArray[np.uint8]]) -> "_Pending":
        """Queue 1 to `batch` RGB images [H, W, 3]; wait only while all slots are busy."""
        self._prompts.get()  # raises where no prompts are set
        slot = self._slots[self._next]
        self._next = (self._next + 1) % len(self._slots)
        return slot.submit(images)

    def close(self) -> None:
        """Wait for the frames in flight and release the engine."""
        for slot in self._slots:
            slot.wait()
        self._slots.clear()


class _Plan:
    """A deserialised engine and the names of its inputs and outputs."""

    def __init__(self, path: Path) -> None:
        self._trt = trt = import_tensorrt()
        self._runtime = trt.Runtime(logger(trt))  # must outlive the engine
        self.engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self.engine is None:
            raise BackendError(f"TensorRT does not accept {path}; its own message is in the log above")
        self.inputs = self._named(DetectorInputs._fields, trt.TensorIOMode.INPUT)
        self.outputs = list(self._named(OUTPUTS, trt.TensorIOMode.OUTPUT).values())

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of an input or output."""
        return tuple(self.engine.get_tensor_shape(name))

    def dtype(self, name: str) -> torch.dtype:
        """Return the type of an input or output."""
        types = {
            self._trt.DataType.FLOAT: torch.float32,
            self._trt.DataType.HALF: torch.float16,
            self._trt.DataType.BF16: torch.bfloat16,
            self._trt.DataType.BOOL: torch.bool,
            self._trt.DataType.INT32: torch.int32,
            self._trt.DataType.INT64: torch.int64,
        }
        return types[self.engine.get_tensor_dtype(name)]

    def _named(self, wanted: Sequence[str], mode: Any) -> dict[str, str]:
        """Return the plan's name of each tensor, in the order wanted; tracing may have changed the case."""
        names = [self.engine.get_tensor_name(index) for index in range(self.engine.num_io_tensors)]
        found = {name.lower(): name for name in names if self.engine.get_tensor_mode(name) == mode}
        if set(found) != {name.lower() for name in wanted}:
            raise BackendError(
                f"the plan has {', '.join(found.values())}, but {', '.join(wanted)} are needed; build it again"
            )
        return {name: found[name.lower()] for name in wanted}


class _Slot:
    """One frame in flight: stream, execution context, buffers, captured graph."""

    def __init__(self, plan: _Plan, prompts: dict[str, Tensor], device: torch.device) -> None:
        """Capture the graph; the GPU is the current one, and the prompts are real ones."""
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._context = plan.engine.create_execution_context()
        self._pixels = torch.zeros(plan.shape(plan.inputs[PIXELS]), device=device)
        self._outputs = [torch.zeros(plan.shape(name), dtype=plan.dtype(name), device=device) for name in plan.outputs]
        self._on_host = [torch.empty(output.shape, dtype=output.dtype, pin_memory=True) for output in self._outputs]
        self._uploads: list[Tensor] = []
        self._staging: list[Tensor] = []
        addresses = {plan.inputs[field]: buffer for field, buffer in prompts.items()}
        addresses |= {plan.inputs[PIXELS]: self._pixels} | dict(zip(plan.outputs, self._outputs, strict=True))
        for name, buffer in addresses.items():
            if not self._context.set_tensor_address(name, buffer.data_ptr()):
                raise BackendError(f"TensorRT does not take the buffer for {name}")
        self._pending: _Pending | None = None
        self._done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        self._graph = self._capture()

    def _capture(self) -> torch.cuda.CUDAGraph:
        with torch.cuda.stream(self._stream):
            self._execute()  # allocations and lazy loading happen outside of the capture
            self._done.record(self._stream)
            self.wait()
            graph = torch.cuda.CUDAGraph()
            # Other engines and stages use the GPU meanwhile: only what this thread does may not break the capture.
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                self._execute()
        return graph

    def wait(self) -> None:
        """Sleep until what was submitted last is done."""
        self._done.synchronize()

    def _execute(self) -> None:
        if not self._context.execute_async_v3(self._stream.cuda_stream):
            raise BackendError("TensorRT could not queue the engine; its own message is in the log above")

    def submit(self, images: Sequence[NDArray[np.uint8]]) -> "_Pending":
        """Queue everything on the slot's stream; waits only while the slot is still busy with an earlier frame."""
        if self._pending is not None:
            self._pending.result()  # its results move out of the buffers that this frame is about to use
        with torch.cuda.stream(self._stream):
            placements = [
                letterbox_into(self._pixels[row], self._upload(row, image)) for row, image in enumerate(images)
            ]
            self._graph.replay()
            for host, output in zip(self._on_host, self._outputs, strict=True):
                host.copy_(output, non_blocking=True)
            self._done.record(self._stream)
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
