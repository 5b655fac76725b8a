"""Writes frames as an annotated H.264 video."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self

import av
import cv2
import numpy as np
from av.container import OutputContainer
from av.video.stream import VideoStream
from numpy.typing import NDArray

from pipeline.errors import ConfigError, OutputError
from pipeline.frames import Frame
from pipeline.outputs.overlay import OverlayConfig, draw
from pipeline.outputs.part import PartFile, guard
from xpose_client.messages import PoseMessage, SkeletonMessage

_TIME_BASE = Fraction(1, 90_000)  # MPEG's clock: exact for 24, 25, 30 and 60 frames per second
_STILL_S = 1.0
_SMALLEST_SIDE = 16  # px; below it x264 refuses
VIDEO_SUFFIXES = (".mp4", ".mkv", ".mov")


@dataclass(frozen=True)
class VideoConfig:
    """The annotated video.

    Attributes:
        longest_side: longest side of the video in px; larger frames are scaled down.
        crf: constant rate factor of x264, 0 (lossless) to 51. A smaller one gives a better and larger video.
        preset: preset of x264; a faster one gives larger files.
        threads: threads of the encoder.
        queue: frames that may wait for the encoder. When the queue is full, a file waits; for a live source, the oldest
            frame is dropped and counted.
        overlay: settings of the drawing.
    """

    longest_side: int = 1920
    crf: int = 21
    preset: str = "veryfast"
    threads: int = 2
    queue: int = 8
    overlay: OverlayConfig = field(default_factory=OverlayConfig)

    def __post_init__(self) -> None:
        if self.longest_side < _SMALLEST_SIDE:
            raise ConfigError(f"video.longest_side is {self.longest_side}: give {_SMALLEST_SIDE} px or more")
        if not 0 <= self.crf <= 51:
            raise ConfigError(f"video.crf is {self.crf}: give 0 to 51")
        if self.queue < 1 or self.threads < 1:
            raise ConfigError(f"video.queue and video.threads are {self.queue} and {self.threads}: give 1 or more")


def check_suffix(path: Path) -> None:
    """Refuse a path without the suffix of a video container.

    Raises:
        OutputError: the suffix is not allowed; the message has the allowed ones.
    """
    if path.suffix.lower() not in VIDEO_SUFFIXES:
        raise OutputError(f"{path}: videos are written to {', '.join(VIDEO_SUFFIXES)}; choose one of these names")


class VideoFile:
    """An annotated H.264 video of one source, with the source's own times.

    The first frame fixes the size; later frames of another size are fitted into it. `with` creates and finishes it.
    """

    def __init__(self, path: Path, config: VideoConfig, rate: Callable[[], float | None] = lambda: None) -> None:
        """Check the path's suffix.

        Args:
            rate: returns the nominal frame rate, for the encoder's rate control; called at the first frame.
        Raises:
            OutputError: the suffix is not that of a video container.
        """
        check_suffix(path)
        self._file = PartFile(path)
        self._config = config
        self._rate = rate
        self._container: OutputContainer | None = None
        self._stream: VideoStream | None = None
        self._first_pts_s = 0.0
        self._last_tick = -1

    def __enter__(self) -> Self:
        """Create the file.

        Raises:
            OutputError: it cannot be written.
        """
        self._file.create()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Flush the encoder and finish the file."""
        container, self._container = self._container, None
        try:
            if container is not None and self._stream is not None:
                stream = self._stream
                guard(self._file.part, lambda: container.mux(stream.encode(None)))
                guard(self._file.part, container.close)
        finally:
            self._file.close()

    def write(self, frame: Frame, message: PoseMessage, skeletons: SkeletonMessage) -> None:
        """Draw the message on its frame and encode it.

        Raises:
            OutputError: the encoder or the disk failed.
        """
        assert frame.rgb_HW3 is not None
        guard(self._file.part, lambda: self._write(frame, message, skeletons))

    def commit(self) -> list[Path]:
        """Rename the complete video and return its path; nothing if no frame was drawn."""
        if self._stream is None:
            self._file.discard()
            return []
        return [self._file.commit()]

    def keep(self) -> list[Path]:
        """Leave the part in place and return its path; nothing if no frame was drawn."""
        if self._stream is None:
            self._file.discard()
            return []
        return [self._file.part]

    def discard(self) -> None:
        """Remove what was written."""
        self._file.discard()

    def _write(self, frame: Frame, message: PoseMessage, skeletons: SkeletonMessage) -> None:
        if self._container is None or self._stream is None:
            self._container, self._stream = self._start(frame)
        canvas_HW3, zoom = _fit(frame.rgb_HW3, self._stream.width, self._stream.height)
        draw(canvas_HW3, message, skeletons, self._config.overlay, zoom)
        picture = av.VideoFrame.from_ndarray(canvas_HW3, format="rgb24")
        picture.pts = self._tick(frame)
        picture.time_base = _TIME_BASE
        self._container.mux(self._stream.encode(picture))

    def _start(self, frame: Frame) -> tuple[OutputContainer, VideoStream]:
        side = max(frame.width, frame.height)
        zoom = min(1.0, self._config.longest_side / side)
        container = av.open(f"file:{self._file.part}", "w")  # "a:b.mp4" alone would name a protocol "a"
        options = {"crf": str(self._config.crf), "preset": self._config.preset}
        rate = Fraction(self._rate() or 25.0).limit_denominator(1001)
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.width, stream.height = _even(frame.width * zoom), _even(frame.height * zoom)
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = _TIME_BASE
        stream.codec_context.thread_count = self._config.threads
        self._first_pts_s = frame.pts_s or 0.0
        return container, stream

    def _tick(self, frame: Frame) -> int:
        """The frame's time on the video's clock; strictly increasing, as the container demands."""
        seconds = frame.index * _STILL_S if frame.pts_s is None else frame.pts_s - self._first_pts_s
        self._last_tick = max(self._last_tick + 1, round(seconds / _TIME_BASE))
        return self._last_tick


def _even(length: float) -> int:
    """Round to an even number for x264, because yuv420p has one colour sample for two pixels."""
    return max(_SMALLEST_SIDE, 2 * round(length / 2))


def _fit(rgb_HW3: NDArray[np.uint8] | None, width: int, height: int) -> tuple[NDArray[np.uint8], float]:
    """Return a writable copy that fits into width x height from its upper left corner, and its scale."""
    assert rgb_HW3 is not None
    own_height, own_width = rgb_HW3.shape[:2]
    if (own_width, own_height) == (width, height):
        return rgb_HW3.copy(), 1.0
    zoom = min(width / own_width, height / own_height)
    size = max(1, min(width, round(own_width * zoom))), max(1, min(height, round(own_height * zoom)))
    scaled = cv2.resize(rgb_HW3, size, interpolation=cv2.INTER_AREA if zoom < 1 else cv2.INTER_CUBIC)
    canvas_HW3 = np.zeros((height, width, 3), np.uint8)
    canvas_HW3[: size[1], : size[0]] = scaled
    return canvas_HW3, zoom
