"""The user's folders, also for a user id without a name and without HOME, as in many containers."""

from __future__ import annotations

import os
import stat
import tempfile
from functools import cache
from pathlib import Path


def cache_root() -> Path:
    """Return `$XDG_CACHE_HOME/xpose-stream`, by default `home_cache()`."""
    named = os.environ.get("XDG_CACHE_HOME")
    return Path(named) / "xpose-stream" if named else home_cache()


def home_cache() -> Path:
    """Return ~/.cache/xpose-stream, or without a home a folder of the user's in /tmp.

    Compiled code is loaded from here, so a folder in /tmp that another user owns or may write to is not used.
    """
    home = expanded("~/.cache")
    return home / "xpose-stream" if home.is_absolute() else _in_temporary_folder()


def expanded(path: str) -> Path:
    """Return `path` with a leading ~ replaced by the home; unchanged where the user has none."""
    return Path(os.path.expanduser(path))


@cache
def _in_temporary_folder() -> Path:
    folder = Path(tempfile.gettempdir()) / f"xpose-stream-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return Path(tempfile.mkdtemp(prefix="xpose-stream-"))
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        return Path(tempfile.mkdtemp(prefix="xpose-stream-"))
    return folder
