"""Frames in flight on an NVIDIA GPU, for any network: each slot has a stream, a CUDA graph and one download.

`Slot.submit` copies 8-bit images into page-locked memory and queues upload, letterbox, network and download on the
slot's stream. Then it returns. Only taking the result waits, for that slot alone, and the waiting thread sleeps. While
one slot computes, the next one uploads.

All device operations go through `Stream`, so that tests can put a fake in its place.

Shape suffixes: B batch, H height, W width of the input.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from engines.backends import PendingPoses, RawPoses
from engines.backends.compiled import raw_poses
from engines.kernels.letterbox import letterbox_into
from engines.nv12 import Colours, Image, Nv12
from engines.preprocess import Placement

IN_FLIGHT = 3
_WARM_UP_RUNS = 2
"""The first run fills caches and compiles, the second one tunes."""

Network = Callable[[Tensor], Sequence[Tensor]]
"""Queues a network on the current stream: pixels_B3HW in; boxes, logits, classes and keypoints out."""


class Stream(Protocol):
    """A queue of device operations."""

    @property
    def device(self) -> torch.device:
        """Where tensors are created."""

    def page_locked(self, size: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Create a host tensor that the device can copy from and to without waiting."""

    def queue(self, work: Callable[[], None]) -> None:
        """Call `work`, whose device operations are queued behind those before."""

    def done(self) -> bool:
        """Whether everything that was queued is done."""

    def wait(self) -> None:
        """Sleep until everything that was queued is done."""

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        """Record the device operations of `run`; the function returned queues them again."""


class CudaStream:
    """A CUDA stream with the event that marks its end."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        self._done.record(self._stream)

    def page_locked(self, size: Sequence[int], dtype: torch.dtype) -> Tensor:
        return torch.empty(tuple(size), dtype=dtype, pin_memory=True)

    def queue(self, work: Callable[[], None]) -> None:
        with torch.cuda.device(self.device), torch.cuda.stream(self._stream):
            work()
            self._done.record(self._stream)

    def done(self) -> bool:
        return bool(self._done.query())  # type: ignore[no-untyped-call]

    def wait(self) -> None:
        self._done.synchronize()

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        # Other threads use the GPU meanwhile, so only this thread's own operations may fail the capture.
        with (
            torch.cuda.device(self.device),
            torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"),
        ):
            run()
        return graph.replay


class _Reads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Collects the tensors that operations read and did not make themselves."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.outside: dict[int, Tensor] = {}
        self._made: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor) and _storage(leaf) not in self._made:
                self.outside[_storage(leaf)] = leaf
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and _storage(leaf) not in self.outside:
                self._made.add(_storage(leaf))
        return result


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def tensors_read_by(run: Callable[[], object]) -> list[Tensor]:
    """Run once and return the tensors, one per storage, that it read and did not make; caches must be filled already.

    A captured graph reads memory by its address. Whoever keeps the graph must keep these tensors too: weights, prompts,
    and what the network keeps in caches of limited size.
    """
    with _Reads() as reads:
        run()
    return list(reads.outside.values())


class Slot:
    """One call in flight.

    Args:
        network: reads its pixels from the same buffer in every call.
        batch: images per call. A smaller call leaves old pixels in the rest, whose poses nobody reads.
        input_hw: height and width of the network's input, px.
        prepare: as `engines.kernels.letterbox.letterbox_into`.
    """

    def __init__(
        self,
        network: Network,
        batch: int,
        input_hw: tuple[int, int],
        stream: Stream,
        prepare: Callable[[Tensor, Tensor, Colours | None], Placement] = letterbox_into,
    ) -> None:
        self._stream, self._prepare = stream, prepare
        self._pixels_B3HW = torch.zeros(batch, 3, *input_hw, device=stream.device)
        self._network = network
        self._staging: list[Tensor] = []
        self._uploads: list[Tensor] = []
        self._pending: _Pending | None = None
        stream.queue(self._warm_up)
        stream.wait()
        self._host = stream.page_locked(self._packed.shape, self._packed.dtype)
        self._replay = stream.capture(self._run)

    def _warm_up(self) -> None:
        """Compile, tune and allocate outside of the capture."""
        for _ in range(_WARM_UP_RUNS):
            self._run()
        self._reads = tensors_read_by(self._run)

    def _run(self) -> None:
        """Queue the network; pack its results into one float32 tensor, so that one copy downloads all."""
        results = self._network(self._pixels_B3HW)
        self._sizes = [tuple(result.shape) for result in results]
        self._packed = torch.cat([result.float().flatten() for result in results])

    def submit(self, images: Sequence[Image]) -> "_Pending":
        """Queue 1 to `batch` images. Waits only if the slot is still busy with an earlier call."""
        if self._pending is not None:
            self._pending.result()  # its results move out of the buffer that this call is about to use
        staged = [self._stage(row, image) for row, image in enumerate(images)]
        placements: list[Placement] = []

        def work() -> None:
            for row, (host, device, colours) in enumerate(staged):
                device.copy_(host, non_blocking=True)
                placements.append(self._prepare(self._pixels_B3HW[row], device, colours))
            self._replay()
            self._host.copy_(self._packed, non_blocking=True)

        self._stream.queue(work)
        self._pending = _Pending(self._stream, self._host, self._sizes, placements)
        return self._pending

    def _stage(self, row: int, image: Image) -> tuple[Tensor, Tensor, Colours | None]:
        """Copy an image into page-locked memory, which grows to the largest image so far.

        Returns:
            that memory, its place on the device in the shape of the image, and the colours of NV12.
        """
        pixels, colours = (image.planes, image.colours) if isinstance(image, Nv12) else (image, None)
        if row == len(self._staging) or self._staging[row].shape[0] < pixels.size:
            self._staging[row : row + 1] = [self._stream.page_locked((pixels.size,), torch.uint8)]
            self._uploads[row : row + 1] = [torch.empty(pixels.size, dtype=torch.uint8, device=self._stream.device)]
        host = self._staging[row][: pixels.size].view(pixels.shape)
        np.copyto(host.numpy(), pixels)
        return host, self._uploads[row][: pixels.size].view(pixels.shape), colours

    def wait(self) -> None:
        """Sleep until the slot is idle; an earlier call's result can still be taken."""
        if self._pending is not None:
            self._pending.result()


class _Pending:
    """A call in flight: `engines.backends.PendingPoses`."""

    def __init__(
        self, stream: Stream, host: Tensor, sizes: Sequence[tuple[int, ...]], placements: Sequence[Placement]
    ) -> None:
        self._stream, self._host, self._sizes, self._placements = stream, host, sizes, placements
        self._poses: list[RawPoses] | None = None

    def done(self) -> bool:
        """Whether `result` would return at once."""
        return self._poses is not None or self._stream.done()

    def result(self) -> list[RawPoses]:
        """Wait for the poses, one item per image; the same list each time."""
        if self._poses is None:
            self._stream.wait()
            parts = torch.split(self._host.clone(), [int(np.prod(size)) for size in self._sizes])
            results = [part.view(size) for part, size in zip(parts, self._sizes, strict=True)]
            self._poses = raw_poses(results, self._placements)
        return self._poses


class Slots:
    """Slots that take turns. One thread at a time uses it."""

    def __init__(self, slots: Sequence[Slot]) -> None:
        self._slots = list(slots)
        self._next = 0

    def submit(self, images: Sequence[Image]) -> PendingPoses:
        """As `Slot.submit`, on the slot that has been idle longest."""
        slot = self._slots[self._next]
        self._next = (self._next + 1) % len(self._slots)
        return slot.submit(images)

    def wait(self) -> None:
        """Sleep until every slot is idle."""
        for slot in self._slots:
            slot.wait()
