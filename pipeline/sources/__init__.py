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


def open_source(uri: str, config: SourceConfig | None = None) -> Source:
    """Open what `uri` names.

    Raises:
        SourceError: it does not exist, cannot be reached in time, or is not something that this program reads.
    """
    config = config or SourceConfig()
    if uri.startswith("/dev/"):
        return LiveSource(uri, config)
    if "://" not in uri:
        return _open_path(uri, config)
    parts = urlsplit(uri)
    if parts.scheme == "testsrc":
        return TestSource(uri, config)
    if parts.scheme == "file":
        return _open_path(parts.path, config)
    if parts.scheme in ("http", "https") and PurePosixPath(parts.path).suffix.lower() in _RECORDING_SUFFIXES:
        return FileSource(uri, config, name=PurePosixPath(parts.path).stem)
    if parts.scheme in LIVE_SCHEMES:
        return LiveSource(uri, config)
    allowed = ", ".join(f"{scheme}://" for scheme in (*sorted(LIVE_SCHEMES), "file", "testsrc"))
    raise SourceError(
        f"{parts.scheme}:// is not a kind of source; give a file, a folder, /dev/videoN or one of {allowed}"
    )


def _open_path(text: str, config: SourceConfig) -> Source:
    path = Path(text)
    if path.is_dir() or path.suffix.lower() in IMAGE_SUFFIXES:
        return ImageSource(path, config)
    return FileSource(text, config, name=path.stem)
