"""Live addresses and devices: every picture as it arrives, also after lost connections.

One thread opens the connection, reads, decodes and yields. It never waits for a consumer: its frames go into a queue
that keeps the newest (`pipeline.flow.queues`). A picture becomes RGB only when somebody asks for it, so that a dropped
frame costs no conversion. It reconnects without a limit, after a lost or a failed connection.

FFmpeg cannot be woken from a blocking read, but every read has a time-out: after `stop` the iteration ends within
`read_timeout_s`, and sooner while packets come.

A picture that lost packets on its way shows older content in their place, so it is dropped and counted.

Times come from `pipeline.sources.clock`. If pictures are older than the age budget, the source catches up: it skips to
the newest key frame if packets are waiting, and otherwise connects again.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Generator, Iterator
from typing import cast

import av
from av.codec.context import Flags as CodecFlags
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from pipeline.errors import SourceError
from pipeline.frames import Frame, now_ns
from pipeline.sources.addresses import Address
from pipeline.sources.base import Source, SourceConfig
from pipeline.sources.catch_up import CatchUp
from pipeline.sources.clock import Arrival, PictureClock
from pipeline.sources.connect import Connector, RefusedError
from pipeline.sources.slices import SliceJoiner
from pipeline.sources.status import SourceStatus
from pipeline.sources.tap import StreamTap
from pipeline.sources.video import LazyPicture, RgbConverter, live_threads, reason, sender_unix_ns

logger = logging.getLogger(__name__)

_NO_TIMESTAMPS = 0x80  # AVFMT_NOTIMESTAMPS of libavformat/avformat.h
_PATIENT_S = 30.0  # wait after a refused login: cameras lock accounts after many failures
_STEADY_S = 5.0  # after a connection of this length, the back-off starts again at its first value
_LOG_EVERY_S = 60.0


class LiveSource(Source):
    """A camera or a stream. It ends after `stop`, or with a SourceError if the settings allow that."""

    live = True

    def __init__(self, address: Address, config: SourceConfig) -> None:
        super().__init__(config.name or address.name)
        self.status = SourceStatus(config.read_timeout_s)
        self._label = address.label
        self._config = config
        self._connector = Connector(address, config, self._stopped)
        self._clock = PictureClock(config.clock, address.label)
        self._rgb = RgbConverter(address.label)
        self._catch_up = CatchUp()
        self._decoded = 0
        self._newest_capture_ns = 0
        self._logged = ("", 0.0)

    def __iter__(self) -> Generator[Frame]:
        """Connect and yield until stopped.

        Raises:
            SourceError: the source is `required` and cannot be opened, or stays lost for `reconnect_give_up_s`.
        """
        lost_since_s = time.monotonic()
        retries = 0
        while not self._stopped.is_set():
            decoded, begun_s = self._decoded, time.monotonic()
            patient = False
            try:
                sentence = yield from self._connection()
            except SourceError as error:
                if self._config.required and not self._decoded:
                    raise
                sentence, patient = str(error), isinstance(error, RefusedError)
            if self._stopped.is_set():
                break
            self.status.failed(sentence)
            if self._decoded > decoded:
                lost_since_s = time.monotonic()
                retries = 0 if lost_since_s - begun_s > _STEADY_S else retries
            wait_s = _PATIENT_S if patient else self._back_off_s(retries)
            retries += 1
            if time.monotonic() - lost_since_s + wait_s > self._config.reconnect_give_up_s:
                raise SourceError(
                    f"{self._label}: not back within {self._config.reconnect_give_up_s:g} s ({sentence}); check the "
                    "camera and the network, or raise source.reconnect_give_up_s",
                    partial=self._decoded > 0,
                )
            self._log(sentence)
            self._stopped.wait(wait_s)

    def _back_off_s(self, retries: int) -> float:
        """Double the wait on each retry, with jitter so that many cameras do not connect at the same moment."""
        longest_s = min(self._config.reconnect_first_s * 2.0 ** min(retries, 30), self._config.reconnect_longest_s)
        return longest_s * random.uniform(0.5, 1.0)

    def _log(self, sentence: str) -> None:
        """Log every new reason; log the same reason again only once a minute."""
        before, at_s = self._logged
        if sentence != before or time.monotonic() - at_s > _LOG_EVERY_S:
            self._logged = (sentence, time.monotonic())
            logger.warning("%s; trying again until it is back", sentence)

    def _connection(self) -> Generator[Frame, None, str]:
        """Open the address, yield its frames, close it, and return why it ended."""
        opened_ns = time.monotonic_ns()
        container, stream = self._connector.open(self.status)
        with container:
            stream.thread_type = live_threads(stream.codec_context.name)
            stream.codec_context.flags |= CodecFlags.low_delay | CodecFlags.copy_opaque
            self.fps = float(stream.average_rate) if stream.average_rate else self.fps
            self.status.connected()
            self._clock.connect(opened_ns, counts_pictures=bool(container.format.flags & _NO_TIMESTAMPS))
            self._catch_up.connect()
            try:
                return (yield from self._frames(container, stream))
            except av.ExitError:
                return f"{self._label}: silent for {self._config.read_timeout_s:g} s although the connection is open"
            except av.EOFError:
                return f"{self._label}: the sender ended the stream"
            except av.FFmpegError as error:
                return f"{self._label}: the connection broke ({reason(error)})"

    def _frames(self, container: InputContainer, stream: VideoStream) -> Generator[Frame, None, str]:
        """Yield frames, and return why there are no more."""
        barren_s = time.monotonic()  # arrival of the first packet after the newest picture
        pictured = False
        tap = StreamTap(self, stream)
        for packet in self._packets(container, stream):
            if self._stopped.is_set():
                return ""
            started_s = time.perf_counter()
            try:
                pictures = packet.decode()
            except av.FFmpegError:
                self.drops["undecodable"] += 1
                pictures = []
            if pictured:
                barren_s = time.monotonic()
            whole = [picture for picture in pictures if self._config.keep_damaged or not picture.is_corrupt]
            if len(whole) < len(pictures):
                self.drops["damaged"] += len(pictures) - len(whole)
            pictured = bool(whole)
            if not pictured and time.monotonic() - barren_s > self._config.read_timeout_s:
                return self._barren(stream, damaged=bool(pictures))
            decode_s = (time.perf_counter() - started_s) / max(1, len(pictures))
            tap.packet(packet, packet.opaque)
            for picture in pictures:
                frame = self._frame(picture, decode_s) if picture in whole else None
                tap.frame(frame, picture.opaque, picture)
                if frame is not None:
                    yield frame
            if self._catch_up.must_reconnect():
                self.drops["connected again to catch up"] += 1
                return f"{self._label}: pictures are {self._catch_up.age_s:.1f} s old: connecting again to catch up"
        return f"{self._label}: the sender ended the stream"

    def _packets(self, container: InputContainer, stream: VideoStream) -> Iterator[av.Packet[VideoStream]]:
        """Yield packets with their arrival. A late source skips those before the newest key frame."""
        packets, joiner = container.demux(stream), SliceJoiner(stream)
        while True:
            asked_ns = time.monotonic_ns()
            packet = next(packets, None)
            if packet is None:
                yield from self._catch_up.rest()
                return
            if packet.size == 0:
                continue
            unix_ns, monotonic_ns = now_ns()
            packet.opaque = Arrival(None, monotonic_ns, unix_ns, sender_unix_ns(packet), packet.size)
            waiting = monotonic_ns - asked_ns < self._clock.interval_s / 4 * 1e9
            for whole in joiner.take(packet):
                yield from self._catch_up.take(whole, waiting=waiting)
            if self._catch_up.skipped:
                self.drops["skipped to catch up"] = self._catch_up.skipped

    def _barren(self, stream: VideoStream, *, damaged: bool) -> str:
        """Say that packets come and no picture."""
        codec, longest_s = stream.codec_context.name, self._config.read_timeout_s
        if damaged:
            return (
                f"{self._label}: every picture was damaged for {longest_s:g} s; check the network and the camera, or "
                "take damaged pictures with source.keep_damaged=true"
            )
        return f"{self._label}: packets come, but {codec} gave no picture for {longest_s:g} s"

    def _frame(self, picture: VideoFrame, decode_s: float) -> Frame | None:
        """Return the frame of a picture; None if it would be older than the previous frame."""
        arrival = cast(Arrival | None, picture.opaque)
        if arrival is None:
            unix_ns, monotonic_ns = now_ns()
            arrival = Arrival(None, monotonic_ns, unix_ns)
        stated_s = picture.time if picture.pts is not None else None
        stamp = self._clock.stamp(
            Arrival(stated_s, arrival.monotonic_ns, arrival.unix_ns, arrival.sender_unix_ns, arrival.size_bytes)
        )
        frame = Frame(
            source=self.name,
            index=self._decoded,
            picture=LazyPicture(picture, self._rgb),
            pts_s=stamp.pts_s,
            capture_unix_ns=stamp.capture_unix_ns,
            capture_monotonic_ns=stamp.capture_monotonic_ns,
            capture_clock=stamp.clock,
            lag_s=stamp.lag_s,
            capture_uncertainty_s=stamp.uncertainty_s,
            decode_s=decode_s,
        )
        self._decoded += 1
        self.status.picture(frame, self._clock.offset_s)
        self._catch_up.picture(frame.age_s, self.age_budget_s)
        if stamp.capture_monotonic_ns <= self._newest_capture_ns:
            # A new report of the sender showed that pictures are older than they seemed.
            self.drops["older than the frame before"] += 1
            return None
        self._newest_capture_ns = stamp.capture_monotonic_ns
        return frame
