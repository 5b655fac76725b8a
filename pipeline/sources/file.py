"""Video files in any format that FFmpeg reads: every frame, in order.

Damage does not end the reading. Everything that can be decoded is yielded, and one SourceError at the end says where
the first damage was. The frame count of a container is not trusted, but its length in bytes is (see `truncation`).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterator
from pathlib import Path

import av
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from pipeline.errors import SourceError
from pipeline.frames import Frame, now_ns
from pipeline.sources.base import Source, SourceConfig
from pipeline.sources.file_time import mend
from pipeline.sources.tap import StreamTap
from pipeline.sources.truncation import missing_bytes
from pipeline.sources.video import RgbConverter, open_video, reason

_MOST_DRAINS = 256  # more than the threads of a decoder; a decoder that cannot be opened fails for ever
_SAME_TIME_S = 1e-6
_PACKETS_BEFORE_A_JOINT = 3  # the parser looks ahead, so the flag may be two packets early
_LONGEST_STEP_S = 1.0  # a longer step, or a step backwards, starts another recording
_NO_TIME_STAMPS = 0x80  # AVFMT_NOTIMESTAMPS in libavformat/avformat.h: raw streams


class FileSource(Source):
    """A video file, a pipe, or a recording behind an http address.

    Memory does not grow: it holds the pictures of the decoder, and one RGB array per frame while the frame exists.
    """

    _container: InputContainer
    _stream: VideoStream
    _tap: StreamTap

    def __init__(self, address: str, config: SourceConfig, name: str, label: str = "") -> None:
        super().__init__(config.name or name)
        remote = address.startswith(("http://", "https://"))
        self._address = address
        self._config = config
        self._path = None if remote or _is_pipe(address) else Path(address)
        self._label = label or address
        self._rgb = RgbConverter(self._label)
        self._first_damage = ""
        self._damage_count = 0
        self._index = 0

    def __iter__(self) -> Generator[Frame]:
        if self._path is not None:
            _check_file(self._path)
        self._container, self._stream = self._open()
        with self._container:
            self._stream.thread_type = "AUTO"
            self._stream.thread_count = self._config.decode_threads
            self._has_times = not self._container.format.flags & _NO_TIME_STAMPS
            self.fps = self._rate()
            self.frame_count = self._stream.frames or _estimated_frames(self._container, self.fps)
            self._tap = StreamTap(self, self._stream)
            yield from self._frames()

    def _frames(self) -> Iterator[Frame]:
        stated = ((picture, self._stated_s(picture)) for picture in self._pictures())
        started_s = time.perf_counter()
        for picture, pts_s in mend(stated, 1 / (self.fps or self._config.rate)):
            if self._stopped.is_set():
                return
            frame = self._frame(picture, pts_s, started_s)
            self._tap.frame(frame, picture.pts, picture)
            yield frame
            started_s = time.perf_counter()
        self._tap.end()
        missing = missing_bytes(self._path) if self._path is not None else 0
        if missing:
            self._note(_too_short(missing))
        if self._index == 0:
            self._note("no picture could be decoded")
        if self._damage_count:
            raise SourceError(self._verdict(), partial=self._index > 0)

    def _open(self) -> tuple[InputContainer, VideoStream]:
        if self._address.startswith(("http://", "https://")):
            timeout_s = (self._config.open_timeout_s, self._config.read_timeout_s)
            return open_video(self._address, self._label, timeout_s=timeout_s)
        try:
            return open_video(f"file:{self._address}", self._label)
        except SourceError as error:
            missing = missing_bytes(self._path) if self._path is not None else 0
            if not missing:
                raise
            raise SourceError(
                f"{self._label}: cannot be opened: {_too_short(missing)}; copy or record it again"
            ) from error

    def _pictures(self) -> Iterator[VideoFrame]:
        """Decode everything that can be decoded. Damage is noted and skipped."""
        packets = self._container.demux(self._stream)
        recent: deque[av.Packet[VideoStream]] = deque(maxlen=_PACKETS_BEFORE_A_JOINT)
        while True:
            try:
                packet = next(packets, None)
            except av.FFmpegError as error:
                self._note(f"reading failed: {reason(error)}")
                break
            if packet is None or packet.size == 0:
                break
            if recent and self._is_joint(recent[-1], packet):
                recent.clear()
            elif len(recent) == recent.maxlen:
                self._note_incomplete(recent[0])
            recent.append(packet)
            self._tap.packet(packet, packet.pts)
            yield from self._decoded(packet)
        for packet in recent:
            self._note_incomplete(packet)
        yield from self._drained()

    def _is_joint(self, last: av.Packet[VideoStream], first: av.Packet[VideoStream]) -> bool:
        """Whether two transport streams are joined here: the time of a key frame does not follow from the previous one.

        At a joint the counter of the transport stream restarts. FFmpeg treats this as a lost packet and marks one of
        the last packets before it as incomplete.
        """
        last_s, first_s = self._seconds(last.dts), self._seconds(first.dts)
        if last_s is None or first_s is None:
            return False
        return first.is_keyframe and not 0 < first_s - last_s <= _LONGEST_STEP_S

    def _note_incomplete(self, packet: av.Packet[VideoStream]) -> None:
        if packet.is_corrupt:
            self._note("a packet is incomplete", packet.pts)

    def _decoded(self, packet: av.Packet[VideoStream]) -> Iterator[VideoFrame]:
        try:
            pictures = packet.decode()
        except av.FFmpegError as error:
            self._note(f"a packet cannot be decoded: {reason(error)}", packet.pts)
            return
        yield from pictures

    def _drained(self) -> Iterator[VideoFrame]:
        """Yield the pictures that the decoder still holds. Each call ends at a bad picture, so it is repeated."""
        for _ in range(_MOST_DRAINS):
            try:
                pictures = self._stream.decode(None)
            except av.EOFError:
                return
            except av.FFmpegError as error:
                self._note(f"a packet cannot be decoded: {reason(error)}")
                continue
            if not pictures:
                return
            yield from pictures

    def _frame(self, picture: VideoFrame, pts_s: float, started_s: float) -> Frame:
        if picture.is_corrupt:
            self._note("a picture is damaged", picture.pts)
        rgb_HW3 = self._rgb.rgb(picture)
        unix_ns, monotonic_ns = now_ns()
        stated_s = self._stated_s(picture)
        frame = Frame(
            source=self.name,
            index=self._index,
            picture=rgb_HW3,
            pts_s=pts_s,
            source_pts_s=None if stated_s is None or abs(stated_s - pts_s) < _SAME_TIME_S else stated_s,
            capture_unix_ns=unix_ns,
            capture_monotonic_ns=monotonic_ns,
            capture_clock="file",
            decode_s=time.perf_counter() - started_s,
        )
        self._index += 1
        return frame

    def _rate(self) -> float | None:
        """Return the nominal frame rate. FFmpeg gives raw streams 25 frames per second, whatever the stream states."""
        if self._has_times:
            rate = self._stream.average_rate or self._stream.guessed_rate
            return float(rate) if rate else None
        return float(self._stream.codec_context.framerate or self._config.rate)

    def _stated_s(self, picture: VideoFrame) -> float | None:
        """Return the time stamp of the picture. FFmpeg makes one up for some raw streams."""
        return self._seconds(picture.pts) if self._has_times else None

    def _seconds(self, pts: int | None) -> float | None:
        time_base = self._stream.time_base
        return None if pts is None or time_base is None else float(pts * time_base)

    def _note(self, damage: str, pts: int | None = None) -> None:
        """Note damage near `pts` (in stream units; decoder threads report late), or else after the current frame."""
        at_s = self._seconds(pts)
        where = f"after {self._index} frames" if at_s is None else f"near {at_s:.2f} s"
        self._first_damage = self._first_damage or f"{damage} {where}"
        self._damage_count += 1

    def _verdict(self) -> str:
        more = f", and {self._damage_count - 1} more such places" if self._damage_count > 1 else ""
        kept = f"the {self._index} frames that could be decoded are kept" if self._index else "nothing came out of it"
        return f"{self._label}: damaged or broken off: {self._first_damage}{more}; {kept}; copy or record it again"


def _is_pipe(address: str) -> bool:
    """Whether this is a pipe: standard input, a process substitution, a named pipe. A pipe can be read only once."""
    path = Path(address)
    return path.is_fifo() or path.is_socket()


def _check_file(path: Path) -> None:
    if not path.exists():
        raise SourceError(f"{path}: there is no such file; check the path")
    if not path.is_file():
        raise SourceError(f"{path}: is neither a file nor a folder; give a video file or a folder of images")
    try:
        with path.open("rb") as file:
            empty = not file.read(1)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    if empty:
        raise SourceError(f"{path}: is empty (0 bytes); copy or record it again")


def _too_short(missing: int) -> str:
    return f"the file ends {missing} bytes before the end that its header states"


def _estimated_frames(container: InputContainer, fps: float | None) -> int | None:
    if container.duration is None or fps is None:
        return None
    return round(container.duration / av.time_base * fps)
