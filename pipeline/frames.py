"""The items of the queues: Frame ⇒ FramePoses ⇒ FrameTracks.

The items are in host memory and frozen. Arrays are read-only, so that several threads (inference, overlay) can read a
frame without copies. This module imports neither torch nor av.

Shape suffixes: H, W = height and width in source pixels, after the file's rotation.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from engines.detections import Detections
    from engines.nv12 import Image, Nv12
    from engines.prompts import PromptClass
    from trackers import Tracks

CaptureClock = Literal["sender", "stream", "receipt", "file"]


class Picture(Protocol):
    """A decoded picture that is converted to RGB on the first call of `rgb`."""

    def rgb(self) -> NDArray[np.uint8]:
        """Return the picture as read-only uint8 rgb_HW3; the conversion runs once. Thread-safe.

        Raises:
            SourceError: the pixel format cannot be converted.
        """
        ...

    def nv12(self) -> Nv12 | None:
        """Return the picture as NV12, without any conversion of colours; None where that is not possible."""
        ...

    @property
    def size_hw(self) -> tuple[int, int]:
        """(height, width) in pixels, after rotation. Does not convert the picture."""
        ...


@dataclass(frozen=True, eq=False)
class Recorded:
    """What a recording says about a frame, besides its picture and its times.

    Attributes:
        host: boot id of the machine whose monotonic clock gave the capture time.
        age_s: time from capture to the moment of the recorded predictions; None if the frame was not inferred, and for
            frames of files.
        published: whether the frame had a message; False if it was too old after inference.
        prompt_id: id of the prompts with which the frame was inferred.
        prompts: these prompts; None to use the prompts of the present run.
    """

    host: str
    age_s: float | None
    published: bool
    prompt_id: int
    prompts: tuple[PromptClass, ...] | None


@dataclass(frozen=True, eq=False)
class Frame:
    """One decoded picture with its times.

    Attributes:
        source: name of the source, the same for all its frames.
        index: 0-based count of the frames that the source decoded. The indices of a file have no gaps. A gap in those
            of a live source is the number of frames that were dropped for newer ones.
        picture: uint8 rgb_HW3, which becomes read-only, or a decoded picture that is not converted yet. None if a
            still could not be read.
        pts_s: presentation time in seconds, strictly increasing within a source; None for stills.
        capture_unix_ns: wall clock at capture, nanoseconds since 1970.
        capture_monotonic_ns: the same moment on `time.monotonic_ns()`.
        capture_clock: origin of both capture stamps. "sender": the sender's own clock. "stream": the stream's
            clock, corrected for the delay of the link. "receipt": the moment at which a live frame arrived. "file": the
            moment at which the frame was read from a file, which says nothing about when it was filmed.
        file: file name of a still within its folder; None for video.
        still: True for unrelated pictures, which must not be tracked from one to the next.
        error: one sentence if there is no picture; otherwise None.
        lag_s: delay that the link has built up; the capture stamps are corrected for it; None where unknown.
        capture_uncertainty_s: possible error of the capture stamps; None where unknown.
        source_pts_s: the time stamp of the source if `pts_s` had to be corrected; otherwise None.
        decode_s: how long reading and decoding took, without waiting for a camera; None where unknown.
        recorded: facts about a frame that comes from a recording; None for all others.
    """

    source: str
    index: int
    picture: NDArray[np.uint8] | Picture | None
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
    decode_s: float | None = None
    recorded: Recorded | None = None

    def __post_init__(self) -> None:
        if (self.picture is None) == (self.error is None):
            raise ValueError(f"frame {self.index} of {self.source}: needs a picture or an error, and not both")
        if isinstance(self.picture, np.ndarray):
            if self.picture.dtype != np.uint8 or self.picture.ndim != 3 or self.picture.shape[2] != 3:
                raise ValueError(
                    f"frame {self.index}: pixels must be uint8 [H,W,3], got {self.picture.dtype} {self.picture.shape}"
                )
            self.picture.flags.writeable = False

    @property
    def rgb_HW3(self) -> NDArray[np.uint8] | None:
        """Read-only uint8 RGB; None where there is no picture. The first call converts the picture.

        Raises:
            SourceError: the pixel format cannot be converted.
        """
        if self.picture is None or isinstance(self.picture, np.ndarray):
            return self.picture
        return self.picture.rgb()

    def image(self, *, nv12: bool) -> Image | None:
        """Return what an engine gets; None where there is no picture.

        Args:
            nv12: whether the engine takes NV12.
        Raises:
            SourceError: the pixel format cannot be converted.
        """
        if nv12 and self.picture is not None and not isinstance(self.picture, np.ndarray):
            return self.picture.nv12() or self.rgb_HW3
        return self.rgb_HW3

    @property
    def width(self) -> int:
        """Width in pixels; 0 where there is no picture."""
        return self._size_hw[1]

    @property
    def height(self) -> int:
        """Height in pixels; 0 where there is no picture."""
        return self._size_hw[0]

    @property
    def _size_hw(self) -> tuple[int, int]:
        if self.picture is None:
            return 0, 0
        if isinstance(self.picture, np.ndarray):
            return self.picture.shape[0], self.picture.shape[1]
        return self.picture.size_hw

    @property
    def live(self) -> bool:
        """Whether the frame comes from a live source, so that its capture stamps say how old it is."""
        return self.capture_clock != "file" and self.recorded is None

    @property
    def age_s(self) -> float:
        """Seconds since capture."""
        return (time.monotonic_ns() - self.capture_monotonic_ns) / 1e9


@dataclass(frozen=True, eq=False)
class FramePoses:
    """A frame with the engine's detections; a frame without a picture has none."""

    frame: Frame
    detections: Detections

    @property
    def source(self) -> str:
        """Name of the frame's source."""
        return self.frame.source


@dataclass(frozen=True, eq=False)
class FrameTracks:
    """A frame with its detections and with the tracks after the tracker's update.

    `age_s` is the time from capture to the moment of the predictions; None if the predictions are for the time of
    capture.
    """

    frame: Frame
    detections: Detections
    tracks: Tracks
    age_s: float | None = None

    @property
    def source(self) -> str:
        """Name of the frame's source."""
        return self.frame.source


def now_ns() -> tuple[int, int]:
    """Return the present time as (unix_ns, monotonic_ns)."""
    return time.time_ns(), time.monotonic_ns()
