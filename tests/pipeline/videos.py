"""Small videos and pictures that the source tests make for themselves, with PyAV, in a temporary folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray


def quadrants(width: int, height: int, shade: int = 0) -> NDArray[np.uint8]:
    """Red top left, green top right, blue bottom left, white bottom right: tells every turn and mirroring apart."""
    rgb_HW3 = np.full((height, width, 3), 255 - shade, np.uint8)
    rgb_HW3[: height // 2, : width // 2] = (255 - shade, 0, 0)
    rgb_HW3[: height // 2, width // 2 :] = (0, 255 - shade, 0)
    rgb_HW3[height // 2 :, : width // 2] = (0, 0, 255 - shade)
    return rgb_HW3


def noise(index: int) -> NDArray[np.uint8]:
    """Incompressible 64 x 48 pixels, so that a file consists of pictures and hardly of anything else."""
    return np.random.default_rng(index).integers(0, 256, (48, 64, 3), np.uint8)


def corners(rgb_HW3: NDArray[np.uint8]) -> str:
    """The four quadrants' colours, top left, top right, bottom left, bottom right, as letters of r, g, b, w."""
    height, width = rgb_HW3.shape[:2]
    letters = ""
    for y, x in ((1, 1), (1, 3), (3, 1), (3, 3)):
        bright = rgb_HW3[height * y // 4, width * x // 4] > 128
        letters += {(1, 0, 0): "r", (0, 1, 0): "g", (0, 0, 1): "b", (1, 1, 1): "w"}.get(tuple(bright.astype(int)), "?")
    return letters


def write_video(
    path: Path,
    frames: int = 10,
    *,
    size: tuple[int, int] = (64, 48),
    rate: int = 25,
    codec: str = "mpeg4",
    pix_fmt: str = "yuv420p",
    pts: Sequence[int] | None = None,
    rotation: float | None = None,
    hflip: bool = False,
    picture: Callable[[int], NDArray[np.uint8]] | None = None,
    options: dict[str, str] | None = None,
    codec_options: dict[str, str] | None = None,
) -> Path:
    """Write a video; `pts` are in units of 1 / rate, default 0, 1, 2, …"""
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=rate, options=codec_options or {})
        stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
        stream.codec_context.time_base = Fraction(1, rate)
        if rotation is not None:
            stream.set_display_rotation(rotation, hflip=hflip)
        for index in range(frames):
            rgb_HW3 = picture(index) if picture else quadrants(*size, shade=index % 64)
            frame = av.VideoFrame.from_ndarray(rgb_HW3, format="rgb24")
            frame.pts = pts[index] if pts else index
            frame.time_base = Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path
