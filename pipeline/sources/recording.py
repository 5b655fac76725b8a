"""Recordings as sources: the recorded packets are decoded again, and their frames have the times of the recording.

From a recording of a live source, only the frames that were inferred at the time are yielded. They carry the prompts
and the moment of prediction of that time, so the same configuration on the same machine gives the same tracks. A
recording of several sources gives several sources: out.mcap#cam1 is one of them.
"""

from __future__ import annotations

import bisect
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import av
import msgspec
import numpy as np
from av.codec.context import Flags as CodecFlags
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from pipeline.errors import SourceError
from pipeline.frames import Frame, Recorded
from pipeline.recording import (
    FORMAT_METADATA,
    FRAMES,
    IMAGES,
    PROMPTS,
    STREAMS,
    TRACKED,
    VIDEO,
    VIDEO_FORMATS,
    FrameRecord,
    PromptsRecord,
    StreamRecord,
    TrackedRecord,
    prompts_of,
)
from pipeline.sources.base import Source, SourceConfig
from pipeline.sources.images import read_image
from pipeline.sources.recording_file import RecordedMessage, RecordingFile
from pipeline.sources.video import RgbConverter, live_threads

if TYPE_CHECKING:
    from foxglove_schemas_protobuf.CompressedImage_pb2 import CompressedImage
    from foxglove_schemas_protobuf.CompressedVideo_pb2 import CompressedVideo

    from engines.prompts import PromptClass

_CODECS = {name: codec for codec, name in VIDEO_FORMATS.items()} | {"jpeg": "mjpeg"}
_T = TypeVar("_T", bound=msgspec.Struct)


@dataclass
class _RecordedSource:
    """What a recording says about one source."""

    has_pictures: bool = False
    frames: dict[int, FrameRecord] = field(default_factory=dict)  # by the number of the packet
    unreadable: int = 0  # stills without a picture
    tracked: dict[int, TrackedRecord] = field(default_factory=dict)  # by the index of the frame
    live: bool = False
    frame_rate: float | None = None


class Recording:
    """The records of a recording, read once, without its pictures.

    Args:
        path: the MCAP file.
        own_prompts: use the recorded prompts; otherwise those of the present run.
        all_frames: also yield the frames that were not inferred at the time.
    Attributes:
        metadata: facts about the recorded run, by the names in `pipeline.recording`.
        prompts: the recorded prompts, by id.
    Raises:
        SourceError: the file is not a recording, or has no pictures.
    """

    def __init__(self, path: Path, *, own_prompts: bool = True, all_frames: bool = False) -> None:
        self.all_frames = all_frames
        self.path = path
        self._file = RecordingFile(path)
        self._sources: dict[str, _RecordedSource] = {}
        self._prompt_records: dict[int, PromptsRecord] = {}
        topics = set()
        for message in self._file.messages():
            topics.add(message.topic)
            self._take(message)
        self._tracked_frames = {name: sorted(source.tracked) for name, source in self._sources.items()}
        self.metadata = self._file.metadata
        self._host = str(self.metadata.get(FORMAT_METADATA, {}).get("host", ""))
        self.prompts: dict[int, tuple[PromptClass, ...]] = {}
        if own_prompts:
            self.prompts = {number: prompts_of(record) for number, record in self._prompt_records.items()}
        if not self.names:
            found = ", ".join(sorted(topics)[:5]) or "none"
            raise SourceError(
                f"{path}: holds no pictures of a recording (no topic {VIDEO}… or {IMAGES}… with {FRAMES}…); "
                f"its topics: {found}"
            )

    @property
    def names(self) -> list[str]:
        """Names of the sources that have pictures, in the order of their first picture."""
        return [name for name, source in self._sources.items() if source.has_pictures and source.frames]

    @property
    def damage(self) -> str:
        """One sentence that says what could not be read; "" if everything could be read."""
        return self._file.damage

    def source(self, name: str) -> _RecordedSource:
        """Return the facts about a source.

        Raises:
            SourceError: it is not in the recording.
        """
        if name not in self.names:
            raise SourceError(f"{self.path}: has no source {name!r}; it has {', '.join(self.names)}")
        return self._sources[name]

    def pictures(self, name: str) -> Iterator[RecordedMessage]:
        """Yield the packets of a source, its stream records and its frame records, in order."""
        topics = {VIDEO + name, IMAGES + name, STREAMS + name, FRAMES + name}
        file = RecordingFile(self.path)
        return (message for message in file.messages(*topics) if message.topic in topics)

    def recorded(self, name: str, frame: int) -> Recorded | None:
        """Return the recorded facts about a frame; None if the frame must not be yielded."""
        source = self._sources[name]
        tracked = source.tracked.get(frame)
        if tracked is None:
            if source.tracked and source.live and not self.all_frames:
                return None
            known = self._tracked_frames[name]
            place = bisect.bisect(known, frame)
            prompt_id = source.tracked[known[max(0, place - 1)]].prompt_id if known else next(iter(self.prompts), 0)
            return Recorded(self._host, None, True, prompt_id, self.prompts.get(prompt_id))
        published = tracked.published or self.all_frames
        prompts = self.prompts.get(tracked.prompt_id)
        return Recorded(self._host, tracked.age_s, published, tracked.prompt_id, prompts)

    def _take(self, message: RecordedMessage) -> None:
        beginning, slash, name = message.topic.partition("/")
        beginning += slash
        if beginning == PROMPTS:
            record = self._record(message, PromptsRecord)
            if record is not None:
                self._prompt_records[record.prompt_id] = record
            return
        if beginning not in (VIDEO, IMAGES, STREAMS, FRAMES, TRACKED):
            return
        source = self._sources.setdefault(name, _RecordedSource())
        if beginning in (VIDEO, IMAGES):
            source.has_pictures = True
        elif beginning == STREAMS:
            stream = self._record(message, StreamRecord)
            if stream is not None:
                source.live, source.frame_rate = stream.live, stream.frame_rate or source.frame_rate
        elif beginning == FRAMES:
            frame = self._record(message, FrameRecord)
            if frame is not None and frame.packet is None:
                source.unreadable += 1
            elif frame is not None and frame.packet is not None:
                source.frames[frame.packet] = frame
        else:
            tracked = self._record(message, TrackedRecord)
            if tracked is not None:
                source.tracked[tracked.frame] = tracked

    def _record(self, message: RecordedMessage, kind: type[_T]) -> _T | None:
        record = _decoded(message, kind)
        if record is None:
            self._file.damage = self._file.damage or (
                f"{self.path}: a message on {message.topic} cannot be read; what could be read is used"
            )
        return record


class RecordingSource(Source):
    """One source of a recording. It is read like a file, so no frame is lost.

    Attributes:
        recording: the whole recording.

    Raises:
        SourceError: the recording does not have this source.
    """

    recorded = True

    def __init__(self, recording: Recording, name: str, config: SourceConfig) -> None:
        known = recording.source(name)
        super().__init__(config.name or name)
        self.recording = recording
        self._recorded_name = name
        self._config = config
        self._rgb = RgbConverter(f"{recording.path}#{name}")
        wanted = [record for record in known.frames.values() if recording.recorded(name, record.frame) is not None]
        self.frame_count = len(wanted) + known.unreadable
        self.fps = known.frame_rate
        self._frames = known.frames
        self._lost = 0
        self._count = 0

    def __iter__(self) -> Generator[Frame]:
        decoder: VideoCodecContext | None = None
        stream: StreamRecord | None = None
        following: int | None = None  # number of the next packet, where none is missing
        for message in self.recording.pictures(self._recorded_name):
            if self._stopped.is_set():
                return
            if message.topic.startswith(STREAMS):
                yield from self._drained(decoder)
                stream = _decoded(message, StreamRecord)
                decoder = None
                continue
            if message.topic.startswith(FRAMES):
                yield from self._unreadable(message)
                continue
            record = self._frames.get(message.sequence)
            if record is not None and record.still:
                yield from self._still(message, record)
                continue
            if decoder is None or message.sequence != following:
                # After a gap, a new decoder gives nothing before the next key frame; the old one would give garbage.
                decoder = self._decoder(stream or StreamRecord(live=False, format=_content(message).format))
            following = message.sequence + 1
            yield from self._decoded(decoder, message)
        yield from self._drained(decoder)
        if self._lost or self.recording.damage:
            lost = f"{self._lost} pictures could not be decoded; " if self._lost else ""
            damage = self.recording.damage or f"{self.recording.path}: is damaged"
            raise SourceError(f"{damage} ({lost}{self._count} frames are kept)", partial=self._count > 0)

    def _decoder(self, stream: StreamRecord) -> VideoCodecContext:
        """Make a new decoder, as at the start of every recorded connection.

        Raises:
            SourceError: this version does not know the format.
        """
        if stream.format not in _CODECS:
            raise SourceError(
                f"{self.recording.path}: {self.name} has pictures of the format {stream.format!r}; install the version "
                "that wrote the recording"
            )
        decoder = av.CodecContext.create(_CODECS[stream.format], "r")
        assert isinstance(decoder, VideoCodecContext)
        decoder.thread_type = live_threads(decoder.name)
        decoder.thread_count = self._config.decode_threads
        decoder.flags |= CodecFlags.low_delay
        if stream.colors is not None:
            decoder.color_range, decoder.colorspace, decoder.color_primaries, decoder.color_trc = stream.colors
        return decoder

    def _decoded(self, decoder: VideoCodecContext, message: RecordedMessage) -> Iterator[Frame]:
        packet: av.Packet[Any] = av.Packet(bytes(_content(message).data))
        packet.pts = packet.dts = message.sequence
        started_s = time.perf_counter()
        try:
            pictures = decoder.decode(packet)
        except av.FFmpegError:
            if message.sequence in self._frames:
                self._lost += 1
            return
        yield from self._frames_of(pictures, started_s)

    def _drained(self, decoder: VideoCodecContext | None) -> Iterator[Frame]:
        if decoder is not None:
            started_s = time.perf_counter()
            try:
                pictures = decoder.decode(None)
            except av.FFmpegError:
                return
            yield from self._frames_of(pictures, started_s)

    def _frames_of(self, pictures: list[VideoFrame], started_s: float) -> Iterator[Frame]:
        for picture in pictures:
            record = self._frames.get(-1 if picture.pts is None else picture.pts)
            if record is not None and self.recording.recorded(self._recorded_name, record.frame) is not None:
                rgb_HW3 = self._rgb.rgb(picture)
                if record.width and record.height:
                    rgb_HW3 = np.ascontiguousarray(rgb_HW3[: record.height, : record.width])
                yield from self._frame(record, rgb_HW3, time.perf_counter() - started_s)
                started_s = time.perf_counter()

    def _still(self, message: RecordedMessage, record: FrameRecord) -> Iterator[Frame]:
        started_s = time.perf_counter()
        try:
            rgb_HW3 = read_image(Path(record.file or "still"), bytes(_content(message).data))
        except SourceError:
            self._lost += 1
            return
        yield from self._frame(record, rgb_HW3, time.perf_counter() - started_s)

    def _unreadable(self, message: RecordedMessage) -> Iterator[Frame]:
        record = _decoded(message, FrameRecord)
        if record is not None and record.packet is None and record.error is not None:
            yield from self._frame(record, None, 0.0)

    def _frame(self, record: FrameRecord, rgb_HW3: NDArray[np.uint8] | None, decode_s: float) -> Iterator[Frame]:
        recorded = self.recording.recorded(self._recorded_name, record.frame)
        if recorded is None:
            return
        self._count += 1
        yield Frame(
            source=self.name,
            index=record.frame,
            picture=rgb_HW3,
            pts_s=record.pts_s,
            source_pts_s=record.source_pts_s,
            capture_unix_ns=record.capture_unix_ns,
            capture_monotonic_ns=record.capture_monotonic_ns,
            capture_clock=record.capture_clock,
            lag_s=record.lag_s,
            capture_uncertainty_s=record.capture_uncertainty_s,
            file=record.file,
            still=record.still,
            error=record.error,
            decode_s=decode_s,
            recorded=recorded,
        )


def _decoded(message: RecordedMessage, kind: type[_T]) -> _T | None:
    """Decode a record; None for one that `Recording` has reported."""
    try:
        return msgspec.json.decode(message.data, type=kind)
    except msgspec.DecodeError:
        return None


def _content(message: RecordedMessage) -> CompressedVideo | CompressedImage:
    """Return what the message on video/ or images/ holds."""
    from foxglove_schemas_protobuf.CompressedImage_pb2 import CompressedImage
    from foxglove_schemas_protobuf.CompressedVideo_pb2 import CompressedVideo

    kind = CompressedVideo if message.topic.startswith(VIDEO) else CompressedImage
    return kind.FromString(message.data)
