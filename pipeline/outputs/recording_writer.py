"""The work of a recorder's thread: it makes messages from the items in the queue, and chooses a file for each.

A recording may have several parts (files). Each source changes to the new part with its next key frame; until then, its
packets go into the old part. Late messages for frames of the old part go into the old part, too.
"""

from __future__ import annotations

import errno
import itertools
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from pipeline.frames import Frame
from pipeline.outputs.recording_part import Metadata, Part
from pipeline.outputs.recording_pictures import PictureEncoder, compressed_image, compressed_video, pose_annotations
from pipeline.recording import (
    ANNOTATIONS,
    FRAMES,
    IMAGE_FORMATS,
    IMAGES,
    PROMPTS,
    STREAMS,
    TRACKED,
    VIDEO,
    Piece,
    StreamRecord,
    TrackedRecord,
    frame_record,
    prompts_record,
)
from xpose_client.messages import PoseMessage, SkeletonMessage, StatusMessage, encode_body, topic_of

if TYPE_CHECKING:
    from engines.prompts import PromptClass

_log = logging.getLogger(__name__)

_LATE_S = 3.0  # after its last packet, an old part stays open for the poses of its last frames
_OVERLAP_S = 30.0  # a source without a key frame for this time changes to the new part without one
_encode = msgspec.json.Encoder().encode


class Tracked(NamedTuple):
    """An inferred frame with its prompts, and its message, if there is one."""

    record: TrackedRecord
    prompts: tuple[PromptClass, ...]
    message: PoseMessage | None


class Item(NamedTuple):
    """An item that waits for the disk."""

    source: str
    content: Piece | Tracked | SkeletonMessage | StatusMessage
    size_bytes: int
    log_ns: int


@dataclass
class _SourceState:
    """The writer's facts about one source."""

    part: Part
    stream: StreamRecord | None = None
    encoder: PictureEncoder | None = None
    skeleton: SkeletonMessage | None = None
    status: StatusMessage | None = None
    prompt_id: int | None = None
    packets: int = 0
    first_frame: int = 0  # of the source in `part`
    explained: set[str] = field(default_factory=set)


class RecordingWriter:
    """Writes the parts of one recording. All methods except the constructor belong to one thread.

    Args:
        path: path of the first part.
        part_bytes, part_s: size and age of a part after which a new one starts; 0 for no limit.
        crf: constant rate factor of the encoder.
        metadata: records to write at the beginning of every part.
    Attributes:
        path: path of the newest part.
        files: all parts, oldest first.
        packets: number of pictures that were written.
    """

    def __init__(self, path: Path, part_bytes: float, part_s: float, crf: int, metadata: Metadata) -> None:
        self.path = path
        self.files: list[Path] = []
        self.packets = 0
        self._named = path
        self._part_bytes = part_bytes
        self._part_s = part_s
        self._crf = crf
        self._metadata = metadata
        self._part: Part | None = None
        self._old: Part | None = None
        self._sources: dict[str, _SourceState] = {}
        self._prompts: dict[int, bytes] = {}
        self._prompts_in: dict[Part, set[int]] = {}

    def open(self) -> None:
        """Create the first part.

        Raises:
            OSError: it cannot be created.
        """
        self._named.parent.mkdir(parents=True, exist_ok=True)
        self._part = self._new_part()

    def write(self, item: Item) -> None:
        """Write one item into the part that it belongs to.

        Raises:
            OSError: the disk is full or gone.
        """
        state = self._state(item.source)
        if isinstance(item.content, Piece):
            self._write_piece(item, item.content, state)
        elif isinstance(item.content, Tracked):
            self._write_tracked(item, item.content, state)
        else:
            self._write_message(item, item.content, state)
        self._close_old()

    def flush(self) -> None:
        """Write everything to the disk.

        Raises:
            OSError: it could not be written.
        """
        for part in self._parts():
            part.flush()

    def finish(self) -> None:
        """Write the index of the open parts and close them.

        Raises:
            OSError: an index could not be written; that part is truncated and closed.
        """
        parts, self._part, self._old = self._parts(), None, None
        self._sources.clear()  # with their encoders, which belong to this thread
        failures = []
        for part in parts:
            try:
                part.finish()
            except OSError as error:
                failures.append(error)
        if failures:
            raise failures[0]

    def cut(self) -> None:
        """Close the open parts after a failure; each ends with a complete chunk."""
        for part in self._parts():
            part.cut()
        self._part = self._old = None
        self._sources.clear()

    def _parts(self) -> list[Part]:
        return [part for part in (self._old, self._part) if part is not None]

    def _new_part(self) -> Part:
        """Create the next file with a name that is free."""
        for number in itertools.count(len(self.files) + 1):
            numbered = self._named.with_name(f"{self._named.stem}-{number}{self._named.suffix}")
            self.path = self._named if number == 1 else numbered
            try:
                part = Part(self.path, self._metadata)
            except FileExistsError:
                continue
            self.files.append(self.path)
            self._prompts_in[part] = set()
            if self.path != self._named:
                _log.info("recording into %s", self.path)
            return part
        raise AssertionError("there are endless numbers")

    def _state(self, source: str) -> _SourceState:
        assert self._part is not None
        if source not in self._sources:
            self._sources[source] = _SourceState(self._part)
        return self._sources[source]

    def _write_piece(self, item: Item, piece: Piece, state: _SourceState) -> None:
        new_stream = piece.stream is not state.stream
        state.stream = piece.stream
        switched = piece.key and self._wants_new_part(state)
        if switched:
            self._switch(item, state, piece.frame)
        if new_stream or switched:
            self._write_stream(item, piece.stream, state)
        data, number = piece.data, None
        if piece.stream.reencoded and piece.frame is not None and piece.frame.rgb_HW3 is not None:
            state.encoder = state.encoder or PictureEncoder(self._crf)
            data, _ = state.encoder.encode(piece.frame.rgb_HW3, key=new_stream or switched)
        if data is not None:
            number, state.packets = state.packets, state.packets + 1
            self._write_picture(item, piece, data, number, state)
        if piece.frame is not None:
            record = frame_record(piece.frame, number)
            if piece.stream.reencoded:
                record = msgspec.structs.replace(record, width=piece.frame.width, height=piece.frame.height)
            state.part.write(FRAMES + item.source, _encode(record), item.log_ns, piece.unix_ns)

    def _write_picture(self, item: Item, piece: Piece, data: bytes, number: int, state: _SourceState) -> None:
        name = piece.stream.format
        still = name in IMAGE_FORMATS
        make = compressed_image if still else compressed_video
        message = make(data, name, item.source, piece.unix_ns)
        state.part.write((IMAGES if still else VIDEO) + item.source, message, item.log_ns, piece.unix_ns, number)
        self.packets += 1

    def _write_stream(self, item: Item, stream: StreamRecord, state: _SourceState) -> None:
        if stream.reencoded and stream.reencoded not in state.explained:
            state.explained.add(stream.reencoded)
            _log.warning(
                "%s: %s: its pictures are encoded again for the recording, so a replay finds almost the same poses",
                item.source, stream.reencoded,
            )  # fmt: skip
        state.part.write(STREAMS + item.source, _encode(stream), item.log_ns, item.log_ns)

    def _write_tracked(self, item: Item, tracked: Tracked, state: _SourceState) -> None:
        if state.stream is None and self._wants_new_part(state):
            self._switch(item, state, None)
        part = self._part_of(state, tracked.record.frame)
        prompt_id = tracked.record.prompt_id
        if prompt_id not in self._prompts:
            self._prompts[prompt_id] = _encode(prompts_record(prompt_id, tracked.prompts))
        state.prompt_id = prompt_id
        self._write_prompts(item, part, prompt_id)
        part.write(TRACKED + item.source, _encode(tracked.record), item.log_ns, item.log_ns)
        message = tracked.message
        if message is not None:
            part.write(topic_of(message), encode_body(message), item.log_ns, message.publish_unix_ns, message.seq)
            poses = pose_annotations(message, state.skeleton)
            part.write(ANNOTATIONS + item.source, poses, item.log_ns, message.capture_unix_ns, message.seq)

    def _write_prompts(self, item: Item, part: Part, prompt_id: int) -> None:
        if prompt_id not in self._prompts_in[part]:
            self._prompts_in[part].add(prompt_id)
            part.write(PROMPTS, self._prompts[prompt_id], item.log_ns, item.log_ns)

    def _write_message(self, item: Item, message: SkeletonMessage | StatusMessage, state: _SourceState) -> None:
        if isinstance(message, SkeletonMessage):
            state.skeleton = message
        else:
            state.status = message
        state.part.write(topic_of(message), encode_body(message), item.log_ns, message.publish_unix_ns)

    def _wants_new_part(self, state: _SourceState) -> bool:
        """Whether a source should change to a new part. Opens one if the present part is large or old enough."""
        assert self._part is not None
        if state.part is not self._part:
            return True
        if self._old is not None:
            return False
        due = 0 < self._part_bytes <= self._part.size_bytes
        due |= 0 < self._part_s <= time.monotonic() - self._part.begun_s
        if due:
            self._old, self._part = self._part, self._new_part()
        return due

    def _switch(self, item: Item, state: _SourceState, first: Frame | None) -> None:
        """Change to the new part, and write the skeletons, state and prompts of the source into it."""
        assert self._part is not None
        state.part = self._part
        state.first_frame = 0 if first is None else first.index
        for message in (state.skeleton, state.status):
            if message is not None:
                state.part.write(topic_of(message), encode_body(message), item.log_ns, message.publish_unix_ns)
        if state.prompt_id is not None:
            self._write_prompts(item, state.part, state.prompt_id)

    def _part_of(self, state: _SourceState, frame: int) -> Part:
        """Return the part that has the picture of a frame."""
        return self._old if self._old is not None and frame < state.first_frame else state.part

    def _close_old(self) -> None:
        """Finish the old part once all sources have left it and their last poses have come."""
        if self._old is None or self._part is None:
            return
        since_s = time.monotonic() - self._part.begun_s
        staying = [state for state in self._sources.values() if state.part is self._old]
        if since_s < _LATE_S or (staying and since_s < _OVERLAP_S):
            return
        for state in staying:
            state.part, state.first_frame, state.stream = self._part, 0, None
        old, self._old = self._old, None
        del self._prompts_in[old]
        old.finish()


def explained(path: Path, error: Exception) -> str:
    """Return one sentence that says why a recording ended."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        reason = "the disk is full"
    elif isinstance(error, OSError) and error.errno == errno.EFBIG:
        reason = "the file has reached the largest size that is allowed here"
    else:
        reason = getattr(error, "strerror", None) or str(error)
    return f"{path}: the recording ended ({reason}); what was written before is kept"
