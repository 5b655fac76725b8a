"""Backends run the network; each takes 8-bit images and gives poses as fractions of those images.

Shapes: G groups (boxes with their keypoints), C classes and K keypoints of the prompts' capacity.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from engines.prompt_tensors import PromptTensors


@dataclass(frozen=True)
class RawPoses:
    """All groups of one image, before any threshold; float32, coordinates as fractions of the source image.

    `logits_GC` is -inf for classes that are not asked for; `class_G` is the class whose keypoints a group has;
    `boxes_G4` are (cx, cy, w, h); `keypoints_GK2` (x, y) are meaningless beyond the keypoints of that class.
    """

    logits_GC: NDArray[np.float32]
    class_G: NDArray[np.int64]
    boxes_G4: NDArray[np.float32]
    keypoints_GK2: NDArray[np.float32]


class PendingPoses(Protocol):
    """Images that a backend is working on; a `concurrent.futures.Future` is one."""

    def done(self) -> bool:
        """Whether `result` would return at once."""

    def result(self) -> list[RawPoses]:
        """Wait for the poses, one item per image; raise what the backend raised."""


@dataclass(frozen=True)
class FinishedPoses:
    """Poses of a backend that did its work in `submit`."""

    poses: list[RawPoses]

    def done(self) -> bool:
        """Return True."""
        return True

    def result(self) -> list[RawPoses]:
        """Return the poses."""
        return self.poses


class Backend(Protocol):
    """What the engine needs of a backend. One thread at a time calls it."""

    @property
    def input_hw(self) -> tuple[int, int] | None:
        """Fixed size of the input, or None where it follows each image."""

    @property
    def batch(self) -> int:
        """Most images per call of `submit`."""

    @property
    def in_flight(self) -> int:
        """Calls of `submit` that run at the same time."""

    def set_prompts(self, prompts: PromptTensors) -> None:
        """Use these prompts from the next call of `submit` on."""

    def submit(self, images: Sequence[NDArray[np.uint8]]) -> PendingPoses:
        """Start work on 1 to `batch` RGB images [H, W, 3] of any sizes.

        The images must not change before the result is there. More calls than `in_flight` may wait here or queue.
        """

    def close(self) -> None:
        """Wait for the work in flight and release what the backend holds. The backend is not used afterwards."""
