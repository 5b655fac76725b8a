"""Live addresses and devices: every picture as it arrives, across lost connections.

One thread opens the connection, reads, decodes and yields. It never waits for a consumer: its frames go into a queue
that keeps the newest (`pipeline.flow.queues`). A picture becomes RGB only when somebody asks for it, so that a dropped
frame costs no conversion. A lost connection is opened again after a back-off.

FFmpeg cannot be woken from a blocking read, but every read has a time-out: after `stop` the iteration ends within
`read_timeout_s`, and sooner while packets come.

Times: `capture_*` are the moment at which the picture's packet arrived (before decoding); `pts_s` is the stream's
own time since the first picture, which is free of network jitter, carried on across reconnects by the monotonic clock.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import cast
from urllib.parse import urlsplit

import av
from av.codec.context import Flags as CodecFlags
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from pipeline.errors import SourceError
from pipeline.frames import Frame, now_ns
from pipeline.sources.base import Source, SourceConfig
from pipeline.sources.video import LazyPicture, RgbConverter, open_video, reason

logger = logging.getLogger(__name__)

LIVE_SCHEMES = frozenset({"rtsp", "rtsps", "http", "https", "rtmp", "udp", "rtp", "srt", "tcp"})


class LiveSource(Source):
    """A camera or a stream. It ends by `stop`, or with a SourceError when it stays lost."""

    live = True

    def __init__(self, uri: str, config: SourceConfig) -> None:
        super().__init__(config.name or _name(uri))
        self._address = _Address.of(uri, config)
        self._config = config
        self._connected = False
        self._decoded = 0
        self._clock = _StreamClock()
        self._rgb = RgbConverter(self._address.label)

    def __iter__(self) -> Generator[Frame]:
        """Connect and yield until stopped.

        Raises:
            SourceError: nothing answered within the open time-out, what answered is no video, or the source stays lost.
        """
        lost_since_s = time.monotonic()
        wait_s = self._config.reconnect_first_s
        while not self._stopped.is_set():
            decoded_before = self._decoded
            try:
                lost = yield from self._connection()
            except SourceError as error:
                if not self._connected:
                    raise
                lost = str(error)
            if self._decoded > decoded_before:
                lost_since_s = time.monotonic()
                wait_s = self._config.reconnect_first_s
            if time.monotonic() - lost_since_s + wait_s > self._config.reconnect_give_up_s:
                raise SourceError(
                    f"{self._address.label}: lost, and not back within {self._config.reconnect_give_up_s:g} s "
                    f"({lost}); check the camera and the network",
                    partial=True,
                )
            if not self._stopped.is_set():
                logger.warning("%s: lost (%s); connecting again in %.1f s", self._address.label, lost, wait_s)
            self._stopped.wait(wait_s)
            wait_s = min(2 * wait_s, self._config.reconnect_longest_s)

    def _connection(self) -> Generator[Frame, None, str]:
        """Open the address, yield its frames until it ends, close it; return why it ended."""
        container, stream = self._address.open(self._config)
        with container:
            stream.thread_type = "SLICE"  # frame threads would hold back one picture each
            stream.codec_context.flags |= CodecFlags.low_delay | CodecFlags.copy_opaque
            self.fps = float(stream.average_rate) if stream.average_rate else self.fps
            self._connected = True
            self._clock.connect()
            try:
                yield from self._frames(container, stream)
            except av.ExitError:
                return f"silent for {self._config.read_timeout_s:g} s"
            except av.FFmpegError as error:
                return reason(error)
        return "the stream ended"

    def _frames(self, container: InputContainer, stream: VideoStream) -> Iterator[Frame]:
        for packet in container.demux(stream):
            if self._stopped.is_set():
                return
            packet.opaque = now_ns()
            try:
                pictures = packet.decode()
            except av.InvalidDataError:
                self.drops["undecodable"] += 1
                continue
            for picture in pictures:
                yield self._frame(picture)

    def _frame(self, picture: VideoFrame) -> Frame:
        unix_ns, monotonic_ns = cast(tuple[int, int] | None, picture.opaque) or now_ns()
        stated_s = picture.time if picture.pts is not None else None
        frame = Frame(
            source=self.name,
            index=self._decoded,
            picture=LazyPicture(picture, self._rgb),
            pts_s=self._clock.pts_s(stated_s, monotonic_ns),
            capture_unix_ns=unix_ns,
            capture_monotonic_ns=monotonic_ns,
            capture_clock="receipt",
        )
        self._decoded += 1
        return frame


class _StreamClock:
    """Seconds since the first picture: the stream's own time, joined across connections by the monotonic clock."""

    def __init__(self) -> None:
        self._first_ns: int | None = None
        self._offset_s: float | None = None
        self._last_s = -1.0

    def connect(self) -> None:
        """A new connection begins: its times have a zero of their own."""
        self._offset_s = None

    def pts_s(self, stated_s: float | None, arrived_ns: int) -> float:
        if self._first_ns is None:
            self._first_ns = arrived_ns
        since_first_s = (arrived_ns - self._first_ns) / 1e9
        if stated_s is not None and self._offset_s is None:
            self._offset_s = since_first_s - stated_s
        seconds = since_first_s if stated_s is None or self._offset_s is None else stated_s + self._offset_s
        self._last_s = max(seconds, self._last_s + 1e-6)
        return self._last_s


@dataclass(frozen=True)
class _Address:
    """What to open, how, and what to call it in messages (without the password)."""

    url: str
    label: str
    format_name: str | None
    options: dict[str, str]

    @classmethod
    def of(cls, uri: str, config: SourceConfig) -> _Address:
        options = {"fflags": "nobuffer"}
        if uri.startswith("/dev/"):
            if not Path(uri).exists():
                present = ", ".join(sorted(str(path) for path in Path("/dev").glob("video*"))) or "none"
                raise SourceError(f"{uri}: there is no such device; present: {present}")
            return cls(uri, uri, "v4l2", options | dict(config.options))
        if uri.startswith("rtsp"):
            options["rtsp_transport"] = config.rtsp_transport
        parts = urlsplit(uri)
        label = parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()
        return cls(uri, label, None, options | dict(config.options))

    def open(self, config: SourceConfig) -> tuple[InputContainer, VideoStream]:
        timeout_s = (config.open_timeout_s, config.read_timeout_s)
        return open_video(self.url, self.label, format_name=self.format_name, options=self.options, timeout_s=timeout_s)


def _name(uri: str) -> str:
    """A topic-friendly name: "video0", or host and path of an address, never a user or a password."""
    if uri.startswith("/dev/"):
        return PurePosixPath(uri).name
    parts = urlsplit(uri)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.hostname or parts.scheme}{port}{parts.path.rstrip('/')}"
