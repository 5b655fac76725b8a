"""A folder of images, or one image, as unrelated stills.

The files of a folder are read in lexicographic order of their names. Subfolders, hidden files and files without the
suffix of an image are skipped. A file that cannot be read becomes a frame without pixels that carries the reason. At
the end a SourceError gives the number of such files. Only the first page of a file with several pages (TIFF stack,
animation) is read, and a warning says how many pages were skipped.

PIL decodes the pixels, as in the official inference script: alpha is dropped, not blended; palette colours are looked
up; 16-bit values keep their upper 8 bits. Unlike the official script, this module applies the EXIF orientation, as
image viewers do. Width, height and coordinates are those of the upright picture.
"""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pipeline.errors import SourceError
from pipeline.frames import Frame, now_ns
from pipeline.names import readable
from pipeline.recording import IMAGE_FORMATS, Piece, StreamRecord
from pipeline.sources.base import Source, SourceConfig

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".jp2", ".avif"}
)
_HEAD_BYTES = 65536  # the animation chunk of a PNG comes before its pixels, often after a colour profile
_PAGED_FORMATS = ("TIFF", "WEBP", "PNG")  # the other pictures of a JPEG are previews of the first
_TIFF_HEADS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

_log = logging.getLogger(__name__)


def is_still(path: Path) -> bool:
    """Whether a file is read as a still: its name says so, or it is a TIFF or WebP, which FFmpeg does not read fully.

    An animated PNG is a video under any name: FFmpeg reads all its pictures.
    """
    head = b""
    if path.is_file():
        with suppress(OSError), path.open("rb") as file:  # the source reports an unreadable file later
            head = file.read(_HEAD_BYTES)
    if head.startswith(b"\x89PNG"):
        before_pixels, _, _ = head.partition(b"IDAT")
        return path.suffix.lower() in IMAGE_SUFFIXES and b"acTL" not in before_pixels
    by_content = head.startswith(_TIFF_HEADS) or (head.startswith(b"RIFF") and head[8:12] == b"WEBP")
    return by_content or path.suffix.lower() in IMAGE_SUFFIXES


class ImageSource(Source):
    """Stills. The frames are unrelated; each has its file name and no presentation time."""

    def __init__(self, path: Path, config: SourceConfig) -> None:
        super().__init__(config.name or (path.resolve().name if path.is_dir() else path.stem))
        self._path = path
        self._streams = {name: StreamRecord(live=False, format=name) for name in IMAGE_FORMATS}

    def __iter__(self) -> Generator[Frame]:
        errors = []
        files = _image_files(self._path)
        self.frame_count = len(files)
        for index, path in enumerate(files):
            if self._stopped.is_set():
                return
            frame = self._frame(index, path)
            if frame.error is not None:
                errors.append(frame.error)
            if self.tap is not None:
                self.tap(self._piece(path, frame))
            yield frame
        if errors:
            raise SourceError(
                f"{self._path}: {len(errors)} of {len(files)} images could not be read, first {errors[0]}; "
                "replace or remove them",
                partial=len(errors) < len(files),
            )

    def _piece(self, path: Path, frame: Frame) -> Piece:
        """Return the file itself, or the picture as PNG if viewers do not read such files."""
        name, data = "png", None
        if frame.rgb_HW3 is not None:
            with Image.open(path) as image:
                name = (image.format or "").lower()
            if name in IMAGE_FORMATS:
                data = path.read_bytes()
            else:
                name, encoded = "png", io.BytesIO()
                Image.fromarray(frame.rgb_HW3).save(encoded, "png")
                data = encoded.getvalue()
        return Piece(self._streams[name], data, True, frame, frame.capture_unix_ns)

    def _frame(self, index: int, path: Path) -> Frame:
        unix_ns, monotonic_ns = now_ns()
        started_s = time.perf_counter()
        rgb_HW3, error = None, None
        try:
            rgb_HW3 = read_image(path)
        except SourceError as caught:
            error = str(caught)
        return Frame(
            source=self.name,
            index=index,
            picture=rgb_HW3,
            pts_s=None,
            capture_unix_ns=unix_ns,
            capture_monotonic_ns=monotonic_ns,
            capture_clock="file",
            file=readable(path.name),
            still=True,
            error=error,
            decode_s=time.perf_counter() - started_s,
        )


def read_image(path: Path, content: bytes | None = None) -> NDArray[np.uint8]:
    """Read any image that PIL knows as upright uint8 rgb_HW3.

    Args:
        path: the file.
        content: bytes of the file; None to read them from `path`.
    Raises:
        SourceError: the file is not an image, is damaged, or has pixels without a defined conversion to 8-bit RGB (such
            as floats).
    """
    try:
        with Image.open(path if content is None else io.BytesIO(content)) as image:
            pages = getattr(image, "n_frames", 1)
            if pages > 1 and image.format in _PAGED_FORMATS:
                _log.warning(
                    "%s: only the first page is read, %d of %d are skipped; save the pages as a video or as images",
                    path.name, pages - 1, pages,
                )  # fmt: skip
            return np.array(_to_rgb(ImageOps.exif_transpose(image)))
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise SourceError(f"{path.name}: cannot be read as an image ({_one_line(error, path)})") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("floating-point pixels have no stated range; store it with 8 or 16 bits")
    if image.mode.startswith("I"):  # how PIL holds 16-bit grey
        grey_HW = np.asarray(image)
        if grey_HW.min() < 0 or grey_HW.max() > 0xFFFF:
            raise ValueError("pixels of more than 16 bits; store it with 8 or 16")
        return Image.fromarray((grey_HW >> 8).astype(np.uint8)).convert("RGB")
    if "transparency" in image.info:  # PIL warns where the conversion is ambiguous
        image = image.convert("RGBA")
    return image.convert("RGB")


def _one_line(error: Exception, path: Path) -> str:
    """Return the text of `error` without the path, because the sentence around it already names the file."""
    words = " ".join(str(error).split()).replace(repr(str(path)), "").strip(" :")
    return words or type(error).__name__


def _image_files(path: Path) -> list[Path]:
    if path.is_dir():
        files = sorted(
            entry
            for entry in path.iterdir()
            if entry.suffix.lower() in IMAGE_SUFFIXES and not entry.name.startswith(".") and entry.is_file()
        )
        if not files:
            kinds = " ".join(sorted(IMAGE_SUFFIXES))
            raise SourceError(f"{path}: the folder holds no image; give one with files that end in {kinds}")
        return files
    if not path.exists():
        raise SourceError(f"{path}: there is no such file; check the path")
    return [path]
