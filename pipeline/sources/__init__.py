"""Sources: from an address to an iterator of frames.

clip.mp4                          a video file: every frame, in order
http://host/clip.mp4              a recording on a server: the same
photos/  photo.jpg                unrelated stills, in lexicographic order
rtsp://…  http://…  /dev/video0   live: the newest frame wins
testsrc://?size=640x480&…         drawn figures with known keypoints
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from pipeline.errors import SourceError
from pipeline.sources.base import Source, SourceConfig
from pipeline.sources.file import FileSource
from pipeline.sources.images import IMAGE_SUFFIXES, ImageSource
from pipeline.sources.live import LIVE_SCHEMES, LiveSource
from pipeline.sources.testsrc import TestSource

__all__ = ["Source", "SourceConfig", "open_source"]

_RECORDING_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".wmv"})
"""A server's file with one of these names is a recording, which has an end and loses nothing; all else is live."""


def open_source(address: str, config: SourceConfig | None = None) -> Source:
    """Return the source that `address` names. Only the address is looked at: iterating the source opens it.

    Raises:
        SourceError: the address is malformed, or a path that does not exist.
    """
    config = config or SourceConfig()
    if address.startswith("/dev/"):
        return LiveSource(address, config)
    if "://" not in address:
        return _source_of_path(address, config)
    parts = urlsplit(address)
    if parts.scheme == "testsrc":
        return TestSource(address, config)
    if parts.scheme == "file":
        return _source_of_path(parts.path, config)
    if parts.scheme in ("http", "https") and PurePosixPath(parts.path).suffix.lower() in _RECORDING_SUFFIXES:
        return FileSource(address, config, name=PurePosixPath(parts.path).stem)
    if parts.scheme in LIVE_SCHEMES:
        return LiveSource(address, config)
    allowed = ", ".join(f"{scheme}://" for scheme in (*sorted(LIVE_SCHEMES), "file", "testsrc"))
    raise SourceError(
        f"{parts.scheme}:// is not a kind of source; give a file, a folder, /dev/videoN or one of {allowed}"
    )


def _source_of_path(text: str, config: SourceConfig) -> Source:
    path = Path(text)
    if not path.exists():
        raise SourceError(f"{text}: there is no such file; check the path")
    if path.is_dir() or path.suffix.lower() in IMAGE_SUFFIXES:
        return ImageSource(path, config)
    return FileSource(text, config, name=path.stem)
