"""Live addresses and devices: the newest frame wins.

A thread of its own opens the connection, reads and decodes without pause, and keeps the newest picture only; whoever
iterates takes that one and converts it, so that a slow consumer costs neither delay nor conversions. Each picture that
was replaced before it was taken is counted. A connection that is lost is opened again with growing waits.

What the thread opens, it closes. FFmpeg cannot be woken from a blocking read, but every read has a time-out: `close`
waits for the thread for at most `_JOIN_S` and then leaves it to its time-out.

Times: `capture_*` are the moment at which the picture's packet arrived (before decoding); `pts_s` is the stream's
own time since the first picture, which is free of network jitter, carried on across reconnects by the monotonic clock.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping
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
from pipeline.sources.video import RgbConverter, open_video, reason

logger = logging.getLogger(__name__)

LIVE_SCHEMES = frozenset({"rtsp", "rtsps", "http", "https", "rtmp", "udp", "rtp", "srt", "tcp"})

_JOIN_S = 0.5  # so that stop and close together stay under a second


@dataclass(frozen=True)
class _Arrival:
    """A decoded picture and when it arrived."""

    picture: VideoFrame
    index: int
    pts_s: float
    unix_ns: int
    monotonic_ns: int


class LiveSource(Source):
    """A camera or a stream; ends only by `stop`, or with a SourceError when it stays lost."""

    live = True

    def __init__(self, uri: str, config: SourceConfig) -> None:
        """Connect.

        Raises:
            SourceError: nothing answers within the open time-out, or what answers is no video.
        """
        super().__init__(config.name or _name(uri))
        self._address = _Address.of(uri, config)
        self._config = config
        self._changed = threading.Condition()
        self._newest: _Arrival | None = None
        self._connected = False
        self._failure: Exception | None = None
        self._decoded = 0
        self._replaced = 0
        self._undecodable = 0
        self._clock = _StreamClock()
        self._rgb = RgbConverter(self._address.label)
        self._thread = threading.Thread(target=self._run, name=f"live {self.name}", daemon=True)
        self._thread.start()
        self._await_connection()

    def __iter__(self) -> Iterator[Frame]:
        while (arrival := self._take()) is not None:
            yield Frame(
                source=self.name,
                index=arrival.index,
                rgb_HW3=self._rgb.rgb(arrival.picture),
                pts_s=arrival.pts_s,
                capture_unix_ns=arrival.unix_ns,
                capture_monotonic_ns=arrival.monotonic_ns,
                capture_clock="receipt",
            )

    def stop(self) -> None:
        super().stop()
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        self.stop()
        self._thread.join(_JOIN_S)

    def drops(self) -> Mapping[str, int]:
        return {"newer_frame": self._replaced, "undecodable": self._undecodable}

    # The consumer's side

    def _await_connection(self) -> None:
        # FFmpeg applies the limit twice, to connecting and to finding the streams; looking up a name has no limit.
        limit_s = 2 * self._config.open_timeout_s + 1.0
        with self._changed:
            self._changed.wait_for(lambda: self._connected or self._failure is not None, limit_s)
            if self._connected:
                return
            failure = self._failure
        self.stop()
        raise failure or SourceError(f"{self._address.label}: nothing within {limit_s:g} s; is it reachable?")

    def _take(self) -> _Arrival | None:
        """Wait for the next picture; None after `stop`."""
        with self._changed:
            self._changed.wait_for(lambda: self._newest or self._failure or self._stopped.is_set())
            arrival, self._newest = self._newest, None
            if self._stopped.is_set():
                return None
            if arrival is None and self._failure is not None:
                raise self._failure
            return arrival

    # The connection's thread

    def _run(self) -> None:
        try:
            self._keep_connected()
        except Exception as error:  # whatever it is, the consumer must get it rather than wait for ever
            with self._changed:
                self._failure = error
                self._changed.notify_all()

    def _keep_connected(self) -> None:
        """Connect and read until stopped; raise where it stays lost, or never was there."""
        lost_since_s = time.monotonic()
        wait_s = self._config.reconnect_first_s
        while not self._stopped.is_set():
            decoded_before = self._decoded
            try:
                lost = self._read_connection()
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

    def _read_connection(self) -> str:
        """Open, read until it ends, close; return why it ended."""
        container, stream = self._address.open(self._config)
        with container:
            stream.thread_type = "SLICE"  # frame threads would hold back one picture each
            stream.codec_context.flags |= CodecFlags.low_delay | CodecFlags.copy_opaque
            self.fps = float(stream.average_rate) if stream.average_rate else self.fps
            with self._changed:
                self._connected = True
                self._changed.notify_all()
            self._clock.connect()
            try:
                self._read(container, stream)
            except av.ExitError:
                return f"silent for {self._config.read_timeout_s:g} s"
            except av.FFmpegError as error:
                return reason(error)
        return "the stream ended"

    def _read(self, container: InputContainer, stream: VideoStream) -> None:
        for packet in container.demux(stream):
            if self._stopped.is_set():
                return
            packet.opaque = now_ns()
            try:
                pictures = packet.decode()
            except av.InvalidDataError:
                self._undecodable += 1
                continue
            for picture in pictures:
                self._keep_newest(picture)

    def _keep_newest(self, picture: VideoFrame) -> None:
        unix_ns, monotonic_ns = cast(tuple[int, int] | None, picture.opaque) or now_ns()
        stated_s = picture.time if picture.pts is not None else None
        arrival = _Arrival(picture, self._decoded, self._clock.pts_s(stated_s, monotonic_ns), unix_ns, monotonic_ns)
        self._decoded += 1
        with self._changed:
            if self._newest is not None:
                self._replaced += 1
            self._newest = arrival
            self._changed.notify_all()


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
