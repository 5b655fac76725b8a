"""Sources: from an address to an iterator of frames.

clip.mp4                          a video file: every frame, in order
http://host/clip.mp4              a recording on a server: the same
photos/  photo.jpg                unrelated stills, in lexicographic order
rtsp://…  http://…  /dev/video0   live: the newest frame wins
testsrc://?size=640x480&…         drawn figures with known keypoints
"""

from __future__ import annotations

import logging
from pathlib import Path

from pipeline.errors import SourceError
from pipeline.sources.addresses import Address, parse_address
from pipeline.sources.base import Source, SourceConfig
from pipeline.sources.file import FileSource
from pipeline.sources.images import ImageSource, is_still
from pipeline.sources.live import LiveSource
from pipeline.sources.playlist import playlist_is_complete
from pipeline.sources.testsrc import TestSource
from pipeline.sources.video import reason

__all__ = ["Source", "SourceConfig", "open_source"]

logger = logging.getLogger(__name__)


def open_source(text: str, config: SourceConfig | None = None) -> Source:
    """Return the source for the address `text`. Iterating the source opens it.

    This function does not open anything, with one exception: it reads a playlist (.m3u8) from its server. A playlist
    with an end marker is a recording, otherwise it is live.

    Raises:
        SourceError: the address is malformed, or the path does not exist.
    """
    config = config or SourceConfig()
    address = parse_address(text)
    source = _source_of_address(text, address, config)
    if config.options and not source.live:
        names = ", ".join(sorted(config.options))
        logger.warning("%s: source.options %s: not used, because these are for live sources", source.name, names)
    return source


def _source_of_address(text: str, address: Address, config: SourceConfig) -> Source:
    if address.kind == "testsrc":
        return TestSource(text, config)
    if address.kind == "path":
        return _source_of_path(address, config)
    if address.kind == "recording" or (address.kind == "playlist" and _is_complete(address, config)):
        return FileSource(address.url, config, name=Path(address.name).stem, label=address.label)
    return LiveSource(address, config)


def _source_of_path(address: Address, config: SourceConfig) -> Source:
    path = Path(address.url)
    if not path.exists():
        raise SourceError(f"{address.label}: there is no such file; check the path")
    if path.is_dir() or is_still(path):
        return ImageSource(path, config)
    return FileSource(address.url, config, name=address.name)


def _is_complete(address: Address, config: SourceConfig) -> bool:
    """Whether a playlist has an end marker. A playlist that cannot be read counts as live."""
    try:
        return playlist_is_complete(address.url, config.open_timeout_s)
    except OSError as error:
        logger.warning("%s: the playlist cannot be read yet (%s); it is treated as live", address.label, reason(error))
        return False
