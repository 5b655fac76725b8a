"""Adds the missing index to a recording: everything that can be read is copied into a new file."""

from __future__ import annotations

import fcntl
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.errors import OutputError, SourceError
from pipeline.outputs.part import PartFile, guard
from pipeline.sources.recording_file import RecordingFile

if TYPE_CHECKING:
    from mcap.records import McapRecord


class Recovered(NamedTuple):
    """The result of recovering a recording.

    Attributes:
        messages: number of messages that were kept.
        damage: one sentence that says what could not be read.
    """

    messages: int
    damage: str


def recover(path: Path) -> Recovered | None:
    """Replace a recording that has no end by one with an index. Works with any MCAP file.

    Returns:
        The result; None if the recording is complete, and was not changed.
    Raises:
        SourceError: there is no such file, it is not an MCAP file, or it is still being written.
        OutputError: the new file cannot be written; the old one is not changed.
    """
    recording = RecordingFile(path)
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            raise SourceError(f"{path}: is still being recorded; stop the recording first") from error
        if _is_whole(recording):
            return None
        part = PartFile(path)
        try:
            copy = _Copy(part.create())
            for record in recording.records():
                guard(part.part, partial(copy.add, record))
            guard(part.part, copy.finish)
        except OutputError:
            with suppress(OutputError):
                part.close()
            part.discard()
            raise
        part.close()
        part.commit()
    return Recovered(copy.messages, recording.damage)


def _is_whole(recording: RecordingFile) -> bool:
    for _ in recording.records():
        pass
    return recording.complete and not recording.damage


class _Copy:
    """Copies the records of one MCAP file into another; ids may change."""

    def __init__(self, output: Any) -> None:
        from mcap.writer import Writer

        self.messages = 0
        self._writer: Any = Writer(output)
        self._started = False
        self._schemas = {0: 0}
        self._channels: dict[int, int] = {}

    def add(self, record: McapRecord) -> None:
        """Write a record of the data section. Records of the summary are skipped; `finish` makes new ones."""
        from mcap.records import Attachment, Channel, Header, Message, Metadata, Schema

        if isinstance(record, Header):
            self._start(record.profile)
        elif isinstance(record, Schema) and record.id not in self._schemas:
            self._schemas[record.id] = self._writer.register_schema(record.name, record.encoding, record.data)
        elif isinstance(record, Channel) and record.id not in self._channels:
            schema = self._schemas.get(record.schema_id, 0)
            channel = self._writer.register_channel(record.topic, record.message_encoding, schema, record.metadata)
            self._channels[record.id] = channel
        elif isinstance(record, Message) and record.channel_id in self._channels:
            channel = self._channels[record.channel_id]
            self._writer.add_message(channel, record.log_time, record.data, record.publish_time, record.sequence)
            self.messages += 1
        elif isinstance(record, Metadata):
            self._writer.add_metadata(record.name, record.metadata)
        elif isinstance(record, Attachment):
            self._writer.add_attachment(
                record.create_time, record.log_time, record.name, record.media_type, record.data
            )

    def finish(self) -> None:
        """Write the index."""
        if not self._started:
            self._start("")
        self._writer.finish()

    def _start(self, profile: str) -> None:
        self._writer.start(profile, "xpose-stream")
        self._started = True
