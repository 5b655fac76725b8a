"""Common parts of file and live sources: opens a video with PyAV and converts its pictures to upright RGB.

swscale converts a picture once, from the decoder's own format to RGB at source size. Files convert in the decode
thread, because every frame is used. Live sources convert when inference takes the frame (`LazyPicture`), because most
frames may be dropped before. Converting and scaling to the engine's input in one call would be slower: scaling with
swscale takes twice as long as conversion (measured on 640 × 480), and the overlay needs the source size anyway. swscale
uses one thread: at these sizes, slices cost more than they gain, and the decoder's threads use the other cores.

Shape suffixes: H, W = height and width in pixels; 3 = red, green, blue.
"""

from __future__ import annotations

import struct
import threading
import time
from dataclasses import replace
from typing import Any, cast

import av
import cv2
import numpy as np
from av.container import InputContainer
from av.sidedata.sidedata import SideData
from av.video.frame import VideoFrame
from av.video.plane import VideoPlane
from av.video.reformatter import ColorRange, VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from engines.nv12 import BT601, BT709, Nv12
from pipeline.errors import SourceError


def open_video(
    address: str,
    label: str,
    *,
    format_name: str | None = None,
    options: dict[str, str] | None = None,
    timeout_s: tuple[float, float] | None = None,
) -> tuple[InputContainer, VideoStream]:
    """Open `address` and return the container with its main video stream.

    Args:
        address: address for FFmpeg.
        label: its name in messages, without passwords.
        format_name: FFmpeg's name of the input format; None lets it probe.
        options: FFmpeg's input options.
        timeout_s: limits for opening and reading; None waits for ever, as for local files.
    Raises:
        SourceError: the address does not exist, is no video or has no decoder, or the time is over.
    """
    started_s = time.monotonic()
    try:
        container = av.open(address, mode="r", format=format_name, options=options or {}, timeout=timeout_s)
    except (av.FFmpegError, OSError, ValueError) as error:
        # After a time-out FFmpeg reports an arbitrary error of the protocol, so the clock is checked.
        if timeout_s is not None and time.monotonic() - started_s >= timeout_s[0]:
            raise SourceError(
                f"{label}: no video within {timeout_s[0]:g} s; check that it is on and reachable, or wait longer"
            ) from error
        raise SourceError(
            f"{label}: cannot be opened as video ({reason(error)}); give a video that FFmpeg reads"
        ) from error
    stream = container.streams.best("video")
    if not isinstance(stream, VideoStream):
        container.close()
        raise SourceError(f"{label}: has no video stream that FFmpeg can decode; give a file or address with pictures")
    return container, stream


def reason(error: Exception) -> str:
    """Return FFmpeg's text for `error`, without numbers and without the address, which may contain a password."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def live_threads(codec: str) -> str:
    """Return the type of threads for a decoder that must not hold pictures back, as frame threads do.

    With slice threads, FFmpeg's H.264 decoder neither conceals nor reports lost slices, and the picture shows whatever
    its memory held before: pictures that are many seconds old.
    """
    return "NONE" if codec == "h264" else "SLICE"


def sender_unix_ns(packet: av.Packet[VideoStream]) -> int | None:
    """Return the sender's wall time at the capture of the packet, ns since 1970; None before its first report.

    Source: AVProducerReferenceTime in libavcodec/defs.h: int64 microseconds since 1970, int flags.
    """
    if not packet.has_sidedata("prft"):
        return None
    microseconds: int = struct.unpack_from("=q", bytes(packet.get_sidedata("prft")))[0]
    return microseconds * 1000


class RgbConverter:
    """Converts decoded pictures to upright RGB arrays. Thread-safe. Caches swscale's tables for similar pictures."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._reformatter = VideoReformatter()
        self._lock = threading.Lock()

    def rgb(self, picture: VideoFrame) -> NDArray[np.uint8]:
        """Return `picture` as uint8 rgb_HW3, upright: its display matrix is applied, to the nearest quarter turn.

        Raises:
            SourceError: swscale cannot convert this pixel format.
        """
        try:
            with self._lock:
                rgb_HW3 = self._reformatter.reformat(picture, format="rgb24", threads=1).to_ndarray()
        except (av.FFmpegError, ValueError) as error:
            raise SourceError(
                f"{self._label}: pixel format {picture.format.name} cannot be converted to RGB ({reason(error)}); "
                "transcode the video"
            ) from error
        return upright(rgb_HW3, picture)


class LazyPicture:
    """A decoded picture that is converted on the first call of `rgb`; a `pipeline.frames.Picture`."""

    def __init__(self, picture: VideoFrame, converter: RgbConverter) -> None:
        height, width = picture.height, picture.width
        self.size_hw = (width, height) if _turn(picture)[0] else (height, width)
        self._picture: VideoFrame | None = picture
        self._converter = converter
        self._rgb_HW3: NDArray[np.uint8] | None = None
        self._nv12: Nv12 | None = None
        self._lock = threading.Lock()

    def rgb(self) -> NDArray[np.uint8]:
        """Return read-only uint8 rgb_HW3.

        Raises:
            SourceError: swscale cannot convert this pixel format.
        """
        with self._lock:
            if self._picture is not None:
                self._rgb_HW3 = self._converter.rgb(self._picture)
                self._rgb_HW3.flags.writeable = False
                self._picture = None  # so that the decoder can use its buffer again
            assert self._rgb_HW3 is not None
            return self._rgb_HW3

    def nv12(self) -> Nv12 | None:
        """Return the picture as NV12, read-only; None in the cases of `nv12_of`, or if it is RGB already."""
        with self._lock:
            if self._nv12 is None and self._picture is not None:
                self._nv12 = nv12_of(self._picture)
            return self._nv12


def nv12_of(picture: VideoFrame) -> Nv12 | None:
    """Copy the planes of `picture` into one array, without any conversion.

    Returns:
        None if a conversion is needed: an odd size, a rotation, another pixel format or another colour matrix.
    """
    height, width = picture.height, picture.width
    matrix = _MATRICES.get(picture.colorspace)
    if picture.format.name not in _NV12_LIKE or matrix is None or height % 2 or width % 2 or is_turned(picture):
        return None
    full_range = picture.format.name == "yuvj420p" or picture.color_range == ColorRange.JPEG
    planes = np.empty((height * 3 // 2, width), np.uint8)
    luma, *chroma = picture.planes
    planes[:height] = _rows(luma, width)
    if len(chroma) == 1:
        planes[height:] = _rows(chroma[0], width)
    else:
        planes[height:, 0::2], planes[height:, 1::2] = (_rows(plane, width // 2) for plane in chroma)
    planes.flags.writeable = False
    return Nv12(planes, replace(matrix, full_range=full_range))


_NV12_LIKE = ("nv12", "yuv420p", "yuvj420p")
_MATRICES = {1: BT709, 2: BT601, 5: BT601, 6: BT601}
"""Colour matrices by AVColorSpace (libavutil/pixfmt.h), as swscale takes them: 2 is unspecified, 6 is SMPTE 170M."""


def _rows(plane: VideoPlane, width: int) -> NDArray[np.uint8]:
    """The rows of a plane without the bytes that pad them."""
    rows: NDArray[np.uint8] = np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, plane.line_size)
    return rows[:, :width]


def upright(rgb_HW3: NDArray[Any], picture: VideoFrame) -> NDArray[np.uint8]:
    """Apply the display matrix of `picture`, if any, rounded to the nearest of the eight rotations and mirrorings."""
    transposed, mirror_x, mirror_y = _turn(picture)
    if transposed:
        rgb_HW3 = cv2.transpose(rgb_HW3)
    if mirror_x or mirror_y:
        rgb_HW3 = cv2.flip(rgb_HW3, -1 if mirror_x and mirror_y else 1 if mirror_x else 0)
    return rgb_HW3


def is_turned(picture: VideoFrame) -> bool:
    """Whether `upright` changes the picture."""
    return any(_turn(picture))


def _turn(picture: VideoFrame) -> tuple[bool, bool, bool]:
    """Return (transposed, mirrored left to right, mirrored top to bottom) by the display matrix of `picture`.

    Source: libavutil/display.h: x' = a·x + c·y, y' = b·x + d·y; the matrix is [a, b, u; c, d, v; x, y, w] in 16.16.
    """
    side_data = cast(SideData | None, picture.side_data.get("DISPLAYMATRIX"))
    if side_data is None:
        return False, False, False
    a, b, _, c, d = struct.unpack_from("=5i", bytes(side_data))
    if abs(b) > abs(a):
        return True, c < 0, b < 0
    return False, a < 0, d < 0
