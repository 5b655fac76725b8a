"""Finds and decodes the image that an annotation names, in folders, zip files or an HDF5 file.

Annotation files name images in many ways: relative to an unknown folder, with the folders of somebody else's disk in
front (APT-36K, Human-Art), or inside a shard. The image with the longest matching end of its path is used.
"""

from __future__ import annotations

import functools
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import cv2
import h5py
import numpy as np
from numpy.typing import NDArray

from training.unikpt.schema import ImageError, Record

HDF5_SUFFIX = ".h5"
_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}


@dataclass(frozen=True)
class ImageReference:
    """A file on disk, a member of the zip file `archive`, or a row ("images/12") of the HDF5 file `archive`."""

    path: Path
    archive: Path | None = None


class ImageFinder:
    """All images below a folder, including members of zip files. The folder is walked once."""

    def __init__(self, folder: Path) -> None:
        self._by_name: dict[str, list[ImageReference]] = {}
        for directory, folders, files in os.walk(folder):
            folders.sort()
            for name in sorted(files):
                path = Path(directory) / name
                if path.suffix.lower() in _SUFFIXES:
                    self._by_name.setdefault(name, []).append(ImageReference(path))
                elif path.suffix.lower() == ".zip":
                    self._add_members(path)

    def _add_members(self, archive: Path) -> None:
        try:
            with zipfile.ZipFile(archive) as opened:
                names = opened.namelist()
        except (OSError, zipfile.BadZipFile) as error:
            raise ImageError(
                f"{archive} is not a readable zip file ({error}); fetch it again or move it away"
            ) from error
        for name in names:
            member = Path(name)
            if member.suffix.lower() in _SUFFIXES:
                self._by_name.setdefault(member.name, []).append(ImageReference(member, archive))

    def find(self, file_name: str, shard: str | None = None) -> ImageReference | None:
        """Return the image whose path has the longest common end with `file_name`; None if there is none or a tie.

        Args:
            shard: name of the zip file that must contain it.
        """
        wanted = PurePosixPath(file_name.replace("\\", "/")).parts
        candidates = self._by_name.get(wanted[-1], []) if wanted else []
        if shard is not None:
            candidates = [one for one in candidates if one.archive is not None and one.archive.name == shard]
        if len(candidates) <= 1:
            return candidates[0] if candidates else None
        lengths = [_common_end(wanted, one.path.parts) for one in candidates]
        best = max(lengths)
        return candidates[lengths.index(best)] if lengths.count(best) == 1 else None


def _common_end(first: tuple[str, ...], second: tuple[str, ...]) -> int:
    length = 0
    for one, other in zip(reversed(first), reversed(second), strict=False):
        if one != other:
            break
        length += 1
    return length


def read_image(reference: ImageReference | Record) -> NDArray[np.uint8]:
    """Decode to RGB, uint8 [height, width, 3], without EXIF rotation, because annotations ignore it.

    Raises:
        ImageError: the file is missing, truncated or not an image. The message names it.
    """
    path = reference.path if isinstance(reference, ImageReference) else reference.image_path
    if reference.archive is not None and reference.archive.suffix == HDF5_SUFFIX:
        return _read_row(reference.archive, path)
    try:
        raw = (
            path.read_bytes()
            if reference.archive is None
            else _open_archive(reference.archive, os.getpid()).read(path.as_posix())
        )
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise ImageError(f"cannot read {_named(path, reference.archive)} ({error})") from error
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    decoded = cv2.imdecode(np.frombuffer(raw, np.uint8), flags) if raw else None
    if decoded is None:
        raise ImageError(f"cannot decode {_named(path, reference.archive)}: {len(raw)} bytes that are no whole image")
    return np.asarray(decoded, dtype=np.uint8)


def _read_row(archive: Path, path: Path) -> NDArray[np.uint8]:
    try:
        row_HWC = np.asarray(_open_hdf5(archive, os.getpid())[path.parent.as_posix()][int(path.name)], np.uint8)
        return np.broadcast_to(row_HWC, (*row_HWC.shape[:2], 3)).copy()  # grey has one channel
    except (OSError, KeyError, IndexError, ValueError) as error:
        raise ImageError(f"cannot read {_named(path, archive)} ({error})") from error


def _named(path: Path, archive: Path | None) -> str:
    return f"{archive}!{path}" if archive else str(path)


@functools.lru_cache(maxsize=32)
def _open_archive(archive: Path, process: int) -> zipfile.ZipFile:
    """Open a file once per process. Forked loaders with a shared file would change each other's position."""
    return zipfile.ZipFile(archive)


@functools.lru_cache(maxsize=32)
def _open_hdf5(archive: Path, process: int) -> h5py.File:
    return h5py.File(archive)
