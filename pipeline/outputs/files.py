"""Poses as lines and frames as an annotated video, in files that are either whole or not there.

Each file is written under a temporary name beside its place. `close` finishes it; `commit` moves it into place and
`discard` removes it. Until `commit`, a file that stood there before stays untouched.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av
import cv2
import numpy as np
from av.container import OutputContainer
from av.video.stream import VideoStream
from numpy.typing import NDArray

from pipeline.errors import ConfigError, OutputError
from pipeline.frames import Frame
from pipeline.outputs.overlay import OverlayConfig, draw
from xpose_client.messages import Message, PoseMessage, SkeletonMessage, to_json_line

_TIME_BASE = Fraction(1, 90_000)  # MPEG's clock: exact for 24, 25, 30 and 60 frames per second
_STILL_S = 1.0
_SMALLEST_SIDE = 16  # px; below it x264 refuses
VIDEO_SUFFIXES = (".mp4", ".mkv", ".mov")


@dataclass(frozen=True)
class VideoConfig:
    """The annotated video.

    Attributes:
        longest_side: px; larger frames are scaled down to it.
        crf: x264's constant rate factor, 0 (lossless) to 51; smaller is better and larger.
        preset: x264's trade of speed for size.
        threads: of the encoder.
        queue: frames that may wait for the encoder. Files wait for it; a live source's oldest is dropped and counted.
        overlay: what is drawn.
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


class _StagedFile:
    """A path with its temporary name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.temporary = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
        self._created = False

    def create(self) -> BinaryIO:
        if self.path.exists() and not self.path.is_file():
            raise OutputError(f"{self.path}: is not a regular file; give the path of a file to write")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = self.temporary.open("wb")
        except OSError as error:
            raise OutputError(
                f"{self.path}: cannot be written ({error.strerror}); choose a folder that you may write to"
            ) from error
        self._created = True
        return file

    def commit(self) -> None:
        try:
            os.replace(self.temporary, self.path)
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be put into place ({error.strerror})") from error

    def discard(self) -> None:
        if self._created:
            self.temporary.unlink(missing_ok=True)


class PoseFile:
    """Pose messages as JSON lines, and skeleton messages beside them in `<stem>.skeletons.jsonl`.

    One line per frame, the same keys as on the wire. A line's keypoint names are in the skeleton line with the same
    source and prompt_id.
    """

    def __init__(self, path: Path) -> None:
        self._poses = _StagedFile(path)
        self._skeletons = _StagedFile(path.with_name(f"{path.stem}.skeletons.jsonl"))
        self._files: list[BinaryIO] = []

    @property
    def path(self) -> Path:
        """Where the lines are, once committed."""
        return self._poses.path

    def open(self) -> None:
        """Create both files.

        Raises:
            OutputError: they cannot be written.
        """
        for staged in (self._poses, self._skeletons):
            self._files.append(staged.create())

    def write(self, message: Message) -> None:
        """Append one message.

        Raises:
            OutputError: the disk is full or gone.
        """
        file = self._files[0 if isinstance(message, PoseMessage) else 1]
        _guard(self.path, lambda: file.write(to_json_line(message)))

    def close(self) -> None:
        """Finish the files. Idempotent."""
        while self._files:
            _guard(self.path, self._files.pop().close)

    def commit(self) -> list[Path]:
        """Move the finished files into place; return the poses' path."""
        self._poses.commit()
        self._skeletons.commit()
        return [self._poses.path]

    def discard(self) -> None:
        """Remove what was written."""
        self._poses.discard()
        self._skeletons.discard()


class VideoFile:
    """An annotated H.264 video of one source, with the source's own times.

    The first frame fixes the size; later frames of another size are fitted into it.
    """

    def __init__(self, path: Path, config: VideoConfig, rate: float | None = None) -> None:
        """Check the path's suffix; `rate` is the nominal one, for the encoder's rate control.

        Raises:
            OutputError: the suffix is not one of a video container.
        """
        if path.suffix.lower() not in VIDEO_SUFFIXES:
            raise OutputError(f"{path}: videos are written to {', '.join(VIDEO_SUFFIXES)}; choose one of these names")
        self._staged = _StagedFile(path)
        self._config = config
        self._rate = Fraction(rate or 25.0).limit_denominator(1001)
        self._container: OutputContainer | None = None
        self._stream: VideoStream | None = None
        self._first_pts_s = 0.0
        self._last_tick = -1

    @property
    def path(self) -> Path:
        """Where the video is, once committed."""
        return self._staged.path

    def open(self) -> None:
        """Create the file.

        Raises:
            OutputError: it cannot be written.
        """
        self._staged.create().close()

    def write(self, frame: Frame, message: PoseMessage, skeletons: SkeletonMessage) -> None:
        """Draw the message on its frame and encode it.

        Raises:
            OutputError: the encoder or the disk failed.
        """
        assert frame.rgb_HW3 is not None
        _guard(self.path, lambda: self._write(frame, message, skeletons))

    def close(self) -> None:
        """Flush the encoder and finish the file. Idempotent."""
        container, self._container = self._container, None
        if container is not None and self._stream is not None:
            stream = self._stream
            _guard(self.path, lambda: container.mux(stream.encode(None)))
            _guard(self.path, container.close)

    def commit(self) -> list[Path]:
        """Move the finished video into place and return its path; nothing where no frame was drawn."""
        if self._stream is None:
            self._staged.discard()
            return []
        self._staged.commit()
        return [self._staged.path]

    def discard(self) -> None:
        """Remove what was written."""
        self._staged.discard()

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
        container = av.open(str(self._staged.temporary), "w")
        options = {"crf": str(self._config.crf), "preset": self._config.preset}
        stream = container.add_stream("libx264", rate=self._rate, options=options)
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
    """The nearest even number that x264 takes; yuv420p has one colour sample for two pixels."""
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


def _guard(path: Path, action: Callable[[], object]) -> None:
    """Run `action`; turn a failure of the disk or the encoder into one sentence."""
    try:
        action()
    except (OSError, av.FFmpegError) as error:
        raise OutputError(
            f"{path}: writing failed ({error.strerror or error}); is the disk full? Nothing was kept"
        ) from error
