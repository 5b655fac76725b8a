"""What crosses the queues: Frame ⇒ FramePoses ⇒ FrameTracks.

Shape suffixes: H, W = height and width in source pixels, after the file's rotation.
All of it lives in host memory and is frozen; arrays are read-only, so that a frame may be looked at by several
threads (inference, overlay) without copies. This module imports neither torch nor av.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from engines.detections import Detections
    from trackers import Tracks

CaptureClock = Literal["sender", "stream", "receipt", "file"]


@dataclass(frozen=True, eq=False)
class Frame:
    """One decoded picture with its times.

    Attributes:
        source: name of the source, the same for all its frames.
        index: 0-based count of the frames that the source decoded. Without gaps for files; for live sources a gap
            is the number of frames that were dropped because a newer one was there.
        rgb_HW3: uint8 RGB, read-only; None where a still could not be read (then `error` says why).
        pts_s: presentation time in seconds, strictly increasing within a source; None for stills.
        capture_unix_ns: wall clock at capture, nanoseconds since 1970.
        capture_monotonic_ns: the same moment on `time.monotonic_ns()`.
        capture_clock: what both capture stamps come from. "sender": the sender's own clock. "stream": the stream's
            clock, corrected for the delay of the link. "receipt": the moment at which a live frame arrived. "file": the
            moment at which the frame was read from a file, which says nothing about when it was filmed.
        file: file name of a still within its folder; None for video.
        still: True for unrelated pictures, which must not be tracked from one to the next.
        error: one sentence where there are no pixels; None otherwise.
        lag_s: delay that the link has built up, which the capture stamps include; None where unknown.
        capture_uncertainty_s: how far the capture stamps may be off; None where unknown.
        source_pts_s: the source's own time stamp where `pts_s` had to be mended; None otherwise.
    """

    source: str
    index: int
    rgb_HW3: NDArray[np.uint8] | None
    pts_s: float | None
    capture_unix_ns: int
    capture_monotonic_ns: int
    capture_clock: CaptureClock
    file: str | None = None
    still: bool = False
    error: str | None = None
    lag_s: float | None = None
    capture_uncertainty_s: float | None = None
    source_pts_s: float | None = None

    def __post_init__(self) -> None:
        if (self.rgb_HW3 is None) == (self.error is None):
            raise ValueError(f"frame {self.index} of {self.source}: needs either pixels or an error, not both or none")
        if self.rgb_HW3 is None:
            return
        if self.rgb_HW3.dtype != np.uint8 or self.rgb_HW3.ndim != 3 or self.rgb_HW3.shape[2] != 3:
            raise ValueError(
                f"frame {self.index}: pixels must be uint8 [H,W,3], got {self.rgb_HW3.dtype} {self.rgb_HW3.shape}"
            )
        self.rgb_HW3.flags.writeable = False

    @property
    def width(self) -> int:
        """Width in pixels; 0 where there are no pixels."""
        return 0 if self.rgb_HW3 is None else int(self.rgb_HW3.shape[1])

    @property
    def height(self) -> int:
        """Height in pixels; 0 where there are no pixels."""
        return 0 if self.rgb_HW3 is None else int(self.rgb_HW3.shape[0])


@dataclass(frozen=True, eq=False)
class FramePoses:
    """A frame with what the engine saw in it; a frame without pixels has empty detections."""

    frame: Frame
    detections: Detections


@dataclass(frozen=True, eq=False)
class FrameTracks:
    """A frame with its detections and the tracks after the tracker took them in."""

    frame: Frame
    detections: Detections
    tracks: Tracks


def now_ns() -> tuple[int, int]:
    """The present moment as (unix_ns, monotonic_ns)."""
    return time.time_ns(), time.monotonic_ns()
