"""Folders of results: on a disk that all machines see, or in object storage such as s3://bucket/folder.

Object storage is accessed through fsspec. The library for the kind of storage, such as s3fs, must be installed on every
machine. Object storage has no locks and no renaming, so results are made in a temporary folder and uploaded when they
are complete, the manifest last. If two batches write to the same folder at the same time, a file may be done twice.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from pipeline.errors import ConfigError, OutputError

if TYPE_CHECKING:
    from upath import UPath

Place: TypeAlias = "Path | UPath"


def place_of(text: str) -> Place:
    """Return the folder with the path or the address of object storage `text`.

    Raises:
        ConfigError: there is no library for this kind of storage, or it is not installed.
    """
    if "://" not in text:
        return Path(text)
    try:
        place: UPath = importlib.import_module("upath").UPath(text)
        _ = place.fs  # loads the library of this kind of storage
    except ImportError as error:
        raise ConfigError(f"{text}: a library is missing ({error}); install it, and xpose-stream[fleet]") from error
    except ValueError as error:
        raise ConfigError(f"{text}: is no kind of storage that fsspec knows ({error})") from error
    return place


@contextmanager
def working_folder(place: Place) -> Iterator[Path]:
    """Yield the local folder in which the results of `place` are made."""
    if isinstance(place, Path):
        yield place
        return
    with tempfile.TemporaryDirectory(prefix="xpose-batch-") as folder:
        yield Path(folder)


def upload(folder: Path, place: Place) -> None:
    """Copy all files of a working folder to their place, if the place is another folder.

    Raises:
        OutputError: a file cannot be written there.
    """
    if isinstance(place, Path):
        return
    try:
        place.mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.iterdir()):
            place.fs.put_file(str(path), (place / path.name).path)
    except Exception as error:  # each kind of storage has errors of its own
        raise OutputError(f"{place}: cannot be written ({error}); the results are lost; run the batch again") from error
