"""Output files that appear under their own name only when they are complete.

A file is written as `<stem>.part<suffix>` in the same folder. `commit` renames it. If the program ends before that, for
example after a failure or a power cut, the part stays, and an older file with the final name is not changed.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import av

from pipeline.errors import OutputError


class PartFile:
    """A path and its `.part` name, locked while it is written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.part = path.with_name(f"{path.stem}.part{path.suffix}")
        self._file: BinaryIO | None = None

    def create(self) -> BinaryIO:
        """Create the part, and its folder if it does not exist.

        Raises:
            OutputError: the file cannot be written, or another program is writing it.
        """
        if self.path.exists() and not self.path.is_file():
            raise OutputError(f"{self.path}: is not a regular file; give the path of a file to write")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = self.part.open("ab")
        except OSError as error:
            raise OutputError(
                f"{self.path}: cannot be written ({error.strerror}); choose a folder that you may write to"
            ) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            raise OutputError(f"{self.part}: another program writes this file; choose another path") from error
        file.truncate(0)
        self._file = file
        return file

    def close(self) -> None:
        """Close the part and release its lock. Idempotent.

        Raises:
            OutputError: the last lines could not be written.
        """
        if self._file is not None:
            guard(self.part, self._file.close)

    def commit(self) -> Path:
        """Rename the part to its own name and return that.

        Raises:
            OutputError: it cannot be renamed.
        """
        try:
            os.replace(self.part, self.path)
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be renamed from {self.part.name} ({error.strerror})") from error
        return self.path

    def discard(self) -> None:
        """Remove the part, if this program made it."""
        if self._file is not None:
            self.part.unlink(missing_ok=True)


def guard(part: Path, action: Callable[[], object]) -> None:
    """Call `action`; turn an error of the disk or the encoder into an OutputError of one sentence."""
    try:
        action()
    except (OSError, av.FFmpegError) as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
        raise OutputError(f"{part}: writing failed ({reason}); what was written before is kept") from error
