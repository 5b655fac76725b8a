"""A TensorRT plan, run by `tensorrt` alone in the slots of `engines.backends.slots`.

Each slot has its own execution context. Prompts are device buffers that every slot reads. They are rewritten when no
slot is busy, so a change takes effect between two frames. The first prompts also capture the graphs: an engine never
runs on an empty mask, whose softmax is not a number.

Every call makes the backend's GPU the current one, so several engines may run on several GPUs in one process.

Legend: as in `engines.export`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engines.backends import PendingPoses
from engines.backends.compiled import EncodedPrompts
from engines.backends.slots import IN_FLIGHT, CudaStream, Network, Slot, Slots
from engines.backends.tensorrt_api import import_tensorrt, logger
from engines.errors import BackendError
from engines.export import DetectorInputs, EngineShape
from engines.nv12 import Image
from engines.prompt_tensors import PromptTensors
from engines.xpose import XPose

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
    """Runs a plan on letterboxed images, with up to `IN_FLIGHT` calls in flight."""

    in_flight = IN_FLIGHT

    def __init__(
        self,
        path: Path,
        model: XPose,
        shape: EngineShape,
        device: torch.device,
        new_slot: Callable[[Network, int, tuple[int, int]], Slot] | None = None,
    ) -> None:
        """Load the plan; the first prompts capture the graphs.

        Args:
            model: the float32 network, which encodes the prompts.
            new_slot: makes a slot from the network, the batch and the input size; None takes CUDA's.
        """
        self.input_hw, self.batch = shape.input_hw, shape.batch
        self._device = device
        self._new_slot = new_slot or self._cuda_slot
        self._prompts = EncodedPrompts(model, shape.max_classes, shape.max_keypoints)
        self._slots: Slots | None = None
        with torch.cuda.device(device):
            self._plan = _Plan(path)
            self._buffers = {
                field: torch.zeros(self._plan.shape(name), dtype=self._plan.dtype(name), device=device)
                for field, name in self._plan.inputs.items()
                if field != PIXELS
            }

    def _cuda_slot(self, network: Network, batch: int, input_hw: tuple[int, int]) -> Slot:
        return Slot(network, batch, input_hw, CudaStream(self._device))

    @torch.inference_mode()
    def set_prompts(self, prompts: PromptTensors) -> None:
        """Rewrite the prompt buffers, after the calls in flight."""
        encoded = self._prompts.set(prompts)
        if self._slots is not None:
            self._slots.wait()
        with torch.cuda.device(self._device):
            for field, buffer in self._buffers.items():
                buffer.copy_(getattr(encoded, field))
            written = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            written.record()
            written.synchronize()
            if self._slots is None:
                networks = [_PlanNetwork(self._plan, self._buffers, self._device) for _ in range(IN_FLIGHT)]
                self._slots = Slots([self._new_slot(network, self.batch, self.input_hw) for network in networks])

    @torch.inference_mode()
    def submit(self, images: Sequence[Image]) -> PendingPoses:
        """Queue 1 to `batch` images, RGB or NV12; wait only while all slots are busy."""
        if self._slots is None:
            raise BackendError("no prompts are set: call set_prompts first")
        return self._slots.submit(images)

    def close(self) -> None:
        """Wait for the calls in flight and release the graphs."""
        if self._slots is not None:
            self._slots.wait()
        self._slots = None


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


class _PlanNetwork:
    """The plan as the network of one slot, with an execution context and outputs of its own."""

    def __init__(self, plan: _Plan, prompts: dict[str, Tensor], device: torch.device) -> None:
        """Bind the prompts and the outputs; the GPU is the current one."""
        self._device = device
        self._context = plan.engine.create_execution_context()
        self._pixels_name, self._pixels_address = plan.inputs[PIXELS], 0
        self._outputs = [torch.zeros(plan.shape(name), dtype=plan.dtype(name), device=device) for name in plan.outputs]
        for field, buffer in prompts.items():
            self._bind(plan.inputs[field], buffer)
        for name, buffer in zip(plan.outputs, self._outputs, strict=True):
            self._bind(name, buffer)

    def _bind(self, name: str, buffer: Tensor) -> None:
        if not self._context.set_tensor_address(name, buffer.data_ptr()):
            raise BackendError(f"TensorRT does not take the buffer for {name}")

    def __call__(self, pixels_B3HW: Tensor) -> list[Tensor]:
        """Queue the plan on the current stream; every call gets the same outputs."""
        if self._pixels_address != pixels_B3HW.data_ptr():
            self._bind(self._pixels_name, pixels_B3HW)
            self._pixels_address = pixels_B3HW.data_ptr()
        if not self._context.execute_async_v3(torch.cuda.current_stream(self._device).cuda_stream):
            raise BackendError("TensorRT could not queue the engine; its own message is in the log above")
        return self._outputs
