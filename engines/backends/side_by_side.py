"""Images of a small input on a CPU: one thread each, since their operators are too short to be shared out well."""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

SMALL_PX = 512 * 512  # of an input, up to which its images run side by side

_T = TypeVar("_T")


def runs_side_by_side(device: torch.device, input_hw: tuple[int, int] | None) -> bool:
    """Whether images of this input size do; None, a size that follows each image, does not."""
    return device.type == "cpu" and input_hw is not None and math.prod(input_hw) <= SMALL_PX


class SideBySide:
    """As many images at a time as PyTorch has threads; a single image has all of them."""

    def __init__(self) -> None:
        self.count = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(self.count, "side-by-side")

    def map(
        self, run: Callable[[Sequence[NDArray[np.uint8]]], list[_T]], images: Sequence[NDArray[np.uint8]]
    ) -> list[_T]:
        """Call `run`, which gives a result per image, with one image at a time."""
        if len(images) == 1:
            return run(images)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # the pool's threads take the count over when they begin, MKL from call to call
        try:
            return [result for (result,) in self._pool.map(lambda image: run([image]), images)]
        finally:
            torch.set_num_threads(threads)

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()
