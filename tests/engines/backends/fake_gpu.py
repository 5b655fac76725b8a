"""A pretended GPU: a stream that runs what was queued when somebody waits, and the CUDA layer of PyTorch."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from engines.nv12 import Colours
from engines.preprocess import Placement, letterbox, normalise


class FakeStream:
    """Defers all queued work until `wait`, as a busy GPU would."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.waiting: list[Callable[[], None]] = []
        self.captures = 0

    def page_locked(self, size: Sequence[int], dtype: torch.dtype) -> Tensor:
        return torch.empty(tuple(size), dtype=dtype)

    def queue(self, work: Callable[[], None]) -> None:
        self.waiting.append(work)

    def done(self) -> bool:
        return not self.waiting

    @torch.inference_mode()
    def wait(self) -> None:
        while self.waiting:
            self.waiting.pop(0)()

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        self.captures += 1
        run()
        return run


def prepare(out_3HW: Tensor, source: Tensor, colours: Colours | None) -> Placement:
    """What the letterbox kernel does, by the CPU's letterbox. Of NV12, it only keeps the luma, as grey."""
    rgb_HW3 = source.numpy()
    if colours is not None:
        rgb_HW3 = rgb_HW3[: len(rgb_HW3) * 2 // 3, :, None].repeat(3, axis=-1)
    canvas_HW3, placed = letterbox(rgb_HW3, (out_3HW.shape[1], out_3HW.shape[2]))
    out_3HW.copy_(normalise(torch.from_numpy(canvas_HW3)[None])[0])
    return placed


class Cuda:
    """Stands in for `torch.cuda`, and remembers what was asked of it."""

    def __init__(self) -> None:
        self.current = 0
        self.events: list[bool] = []
        self.capture_modes: list[str] = []
        cuda = self

        class Event:
            def __init__(self, blocking: bool = False) -> None:
                cuda.events.append(blocking)

            def record(self, stream: Any = None) -> None: ...
            def synchronize(self) -> None: ...
            def query(self) -> bool:
                return True

        class Stream:
            cuda_stream = 7

            def __init__(self, device: torch.device) -> None:
                self.device = device

        class Graph:
            def replay(self) -> None: ...

        self.Event, self.Stream, self.CUDAGraph = Event, Stream, Graph

    @contextlib.contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        before, self.current = self.current, device.index
        yield
        self.current = before

    def stream(self, stream: Any) -> Any:
        return self.device(stream.device)

    def current_stream(self, device: torch.device) -> Any:
        assert device.index == self.current
        return self.Stream(device)

    @contextlib.contextmanager
    def graph(self, graph: Any, stream: Any, capture_error_mode: str) -> Iterator[None]:
        self.capture_modes.append(capture_error_mode)
        yield


class Torch:
    """PyTorch with the fake CUDA; tensors of any device lie on the host."""

    def __init__(self, cuda: Cuda) -> None:
        self.cuda = cuda

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def zeros(self, *size: Any, device: Any = None, **options: Any) -> torch.Tensor:
        return torch.zeros(*size, **options)

    def empty(self, *size: Any, device: Any = None, pin_memory: bool = False, **options: Any) -> torch.Tensor:
        return torch.empty(*size, **options)
