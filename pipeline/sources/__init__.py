"""Sources: from an address to an iterator of frames.

clip.mp4                          a video file: every frame, in order
http://host/clip.mp4              a recording on a server: the same
photos/  photo.jpg                unrelated stills, in lexicographic order
rtsp://…  http://…  /dev/video0   live: older frames are dropped for the newest one
out.mcap  out.mcap#camera         a recording, or one of its sources: decoded again with the recorded times
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
from pipeline.sources.recording import Recording, RecordingSource
from pipeline.sources.testsrc import TestSource
from pipeline.sources.video import reason

__all__ = ["RecordingSource", "Source", "SourceConfig", "open_source", "open_sources"]

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


def open_sources(text: str, config: SourceConfig | None = None) -> list[Source]:
    """Return the sources for the address `text`: all sources of a recording, or the one that `open_source` returns.

    Raises:
        SourceError: as `open_source`.
    """
    config = config or SourceConfig()
    address = parse_address(text)
    path, name = _recording_of(address)
    if path is None or name:
        return [open_source(text, config)]
    recording = Recording(path, own_prompts=config.recorded_prompts, all_frames=config.all_frames)
    return [RecordingSource(recording, name, config) for name in recording.names]


def _source_of_address(text: str, address: Address, config: SourceConfig) -> Source:
    if address.kind == "testsrc":
        return TestSource(text, config)
    if address.kind == "path":
        return _source_of_path(address, config)
    if address.kind == "recording" or (address.kind == "playlist" and _is_complete(address, config)):
        return FileSource(address.url, config, name=Path(address.name).stem, label=address.label)
    return LiveSource(address, config)


def _source_of_path(address: Address, config: SourceConfig) -> Source:
    path, name = _recording_of(address)
    if path is not None:
        recording = Recording(path, own_prompts=config.recorded_prompts, all_frames=config.all_frames)
        if not name and len(recording.names) > 1:
            names = ", ".join(f"{path}#{name}" for name in recording.names)
            raise SourceError(f"{path}: holds {len(recording.names)} sources; give one of {names}")
        return RecordingSource(recording, name or recording.names[0], config)
    path = Path(address.url)
    if not path.exists():
        raise SourceError(f"{address.label}: there is no such file; check the path")
    if path.is_dir() or is_still(path):
        return ImageSource(path, config)
    return FileSource(address.url, config, name=address.name)


def _recording_of(address: Address) -> tuple[Path | None, str]:
    """Return the file of a recording and the name after the "#"; (None, "") for all other addresses."""
    if address.kind != "path":
        return None, ""
    whole = Path(address.url)
    text, _, name = (address.url, "", "") if whole.exists() else address.url.partition("#")
    path = Path(text)
    if path.suffix.lower() == ".mcap" and path.is_file():
        return path, name
    return None, ""


def _is_complete(address: Address, config: SourceConfig) -> bool:
    """Whether a playlist has an end marker. A playlist that cannot be read counts as live."""
    try:
        return playlist_is_complete(address.url, config.open_timeout_s)
    except OSError as error:
        logger.warning("%s: the playlist cannot be read yet (%s); it is treated as live", address.label, reason(error))
        return False
