"""The device of the GPU benchmark: its properties, a clock and CUDA graphs. Tests replace it by a fake."""

from collections.abc import Callable
from typing import Protocol

import torch

from engines.backends import Backend
from engines.backends.cuda_graph import CudaGraphBackend
from engines.xpose import XPose


class Device(Protocol):
    """A device that runs and times work."""

    @property
    def torch_device(self) -> torch.device:
        """Where tensors are created."""

    def about(self) -> dict[str, object]:
        """Name, versions and sizes; `l2_bytes` is the size of the second-level cache."""

    def time_ms(self, run: Callable[[], object], repeats: int) -> list[float]:
        """Time `run` on the device's own clock, after three runs to warm up."""

    def captured(self, run: Callable[[], object], calls: int = 1) -> Callable[[], object]:
        """Record `calls` calls of `run` and return a function that replays them without Python's launch overhead."""

    def synchronize(self) -> None:
        """Wait until the device has finished everything."""

    def slots_backend(self, model: XPose, input_hw: tuple[int, int], precision: str) -> Backend:
        """Return the backend that keeps several pictures in flight, one per call."""


class Gpu:
    """The current CUDA device."""

    def __init__(self) -> None:
        self.torch_device = torch.device("cuda", torch.cuda.current_device())

    def about(self) -> dict[str, object]:
        gpu = torch.cuda.get_device_properties(self.torch_device)
        return {
            "gpu": gpu.name,
            "cuda": torch.version.cuda,
            "torch": torch.__version__,
            "l2_bytes": gpu.L2_cache_size,
            "processors": gpu.multi_processor_count,
        }

    def time_ms(self, run: Callable[[], object], repeats: int) -> list[float]:
        taken = []
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        for repeat in range(repeats + 3):
            start.record()
            run()
            end.record()
            end.synchronize()
            if repeat >= 3:
                taken.append(start.elapsed_time(end))
        return taken

    def captured(self, run: Callable[[], object], calls: int = 1) -> Callable[[], object]:
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                run()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(calls):
                run()
        return graph.replay

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def slots_backend(self, model: XPose, input_hw: tuple[int, int], precision: str) -> Backend:
        return CudaGraphBackend(model, input_hw, 1, precision, self.torch_device)
