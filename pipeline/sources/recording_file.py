"""Reading MCAP files that may be damaged, cut off, or without an index.

The records are read in the order of the file, chunk by chunk, so that neither an index nor an end is needed. A chunk
that cannot be read is skipped. Reading ends where the file ends or cannot be parsed any more. One sentence describes
the damage.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from pipeline.errors import SourceError
from pipeline.recording import FORMAT, FORMAT_METADATA

if TYPE_CHECKING:
    from mcap.records import Channel, Chunk, McapRecord, Message, MessageIndex, Schema

_LARGEST_RECORD_BYTES = 1 << 28
_MAGIC = b"\x89MCAP"


class RecordedMessage(NamedTuple):
    """One message of a recording."""

    topic: str
    schema: str
    data: bytes
    log_ns: int
    sequence: int


def require_mcap(path: Path) -> None:
    """Import what reads recordings.

    Raises:
        SourceError: the extra `record` is not installed.
    """
    try:
        import foxglove_schemas_protobuf
        import mcap.stream_reader  # noqa: F401

        assert foxglove_schemas_protobuf
    except ImportError as error:
        raise SourceError(
            f"{path}: recordings need the extra `record` ({error.name} is missing): pip install 'xpose-stream[record]'"
        ) from error


class RecordingFile:
    """One MCAP file.

    Attributes:
        path: the file.
        metadata: texts by the name of their record and by their own name; complete after the first message.
        damage: one sentence that says what could not be read; "" if everything could be read so far.
        complete: whether the file was read to its end, and the end is complete.
    """

    def __init__(self, path: Path) -> None:
        """Check the first bytes.

        Raises:
            SourceError: there is no such file, it is empty or not MCAP, or the extra `record` is not installed.
        """
        require_mcap(path)
        self.path = path
        self.metadata: dict[str, Mapping[str, str]] = {}
        self.damage = ""
        self.complete = False
        try:
            with path.open("rb") as file:
                head = file.read(len(_MAGIC))
        except OSError as error:
            raise SourceError(f"{path}: cannot be read ({error.strerror}); check the path") from error
        if not head:
            raise SourceError(f"{path}: is empty (0 bytes); nothing was recorded")
        if head != _MAGIC:
            raise SourceError(f"{path}: is not an MCAP file; give a file that --record wrote")

    def records(self) -> Iterator[McapRecord]:
        """Yield all records in the order of the file. Chunks are not yielded, but their records are."""
        from mcap.records import Chunk, MessageIndex

        for record in self._top_level():
            if isinstance(record, Chunk):
                yield from self._inside(record)
            elif not isinstance(record, MessageIndex):
                yield record

    def messages(self, *beginnings: str) -> Iterator[RecordedMessage]:
        """Yield the messages whose topic begins with one of `beginnings`, in the order of the file; by default, all.

        Raises:
            SourceError: the recording is of a newer format.
        """
        from mcap.records import Chunk, MessageIndex

        wanted = _Channels(beginnings)
        indexed = self._take_summary(wanted)
        chunk: Chunk | None = None
        indexes: list[MessageIndex] = []
        for record in self._top_level():
            if isinstance(record, MessageIndex):
                if indexed:
                    indexes.append(record)
                continue
            yield from self._of_chunk(chunk, indexes, wanted)
            chunk, indexes = None, []
            if isinstance(record, Chunk):
                chunk = record
            else:
                yield from self._taken(record, wanted)
        yield from self._of_chunk(chunk, indexes, wanted)

    def _take_summary(self, wanted: _Channels) -> bool:
        """Read the channels at the end of the file; return whether they are there.

        Without them every chunk must be read completely, because any chunk may contain the description of a channel.
        """
        from mcap.reader import SeekingReader

        try:
            with self.path.open("rb") as file:
                summary = SeekingReader(file, record_size_limit=_LARGEST_RECORD_BYTES).get_summary()
        except Exception:  # a file without an end can hold anything there
            return False
        if summary is None or summary.statistics is None or len(summary.channels) < summary.statistics.channel_count:
            return False
        for schema in summary.schemas.values():
            wanted.schemas[schema.id] = schema
        for channel in summary.channels.values():
            for _ in self._taken(channel, wanted):
                pass
        return True

    def _top_level(self) -> Iterator[McapRecord]:
        from mcap.exceptions import McapError
        from mcap.records import Footer
        from mcap.stream_reader import StreamReader

        self.complete = False
        with self.path.open("rb") as file:
            records = StreamReader(file, emit_chunks=True, record_size_limit=_LARGEST_RECORD_BYTES).records
            while True:
                try:
                    record = next(records, None)
                except (McapError, ValueError, struct.error, EOFError, OverflowError) as error:
                    if not self.complete:
                        self._note(f"ends after {_place(file)} without its end ({_words(error)})")
                    return
                if record is None:
                    return
                self.complete |= isinstance(record, Footer)
                yield record

    def _inside(self, chunk: Chunk) -> list[McapRecord]:
        from mcap.stream_reader import breakup_chunk

        try:
            return breakup_chunk(chunk, validate_crc=True)
        except Exception as error:  # the libraries of compression have exceptions of their own
            self._note(f"has a damaged or incomplete chunk ({_words(error)})")
            return []

    def _of_chunk(
        self, chunk: Chunk | None, indexes: list[MessageIndex], wanted: _Channels
    ) -> Iterator[RecordedMessage]:
        """Yield the wanted messages of a chunk. The index after the chunk gives their places."""
        if chunk is None:
            return
        if not indexes or any(index.channel_id not in wanted.known for index in indexes):
            for record in self._inside(chunk):
                yield from self._taken(record, wanted)
            return
        offsets = sorted(offset for index in indexes if index.channel_id in wanted.names for _, offset in index.records)
        if offsets:
            for message in self._at(chunk, offsets):
                yield from self._taken(message, wanted)

    def _at(self, chunk: Chunk, offsets: list[int]) -> Iterator[Message]:
        from mcap.data_stream import ReadDataStream
        from mcap.opcode import Opcode
        from mcap.records import Message
        from mcap.stream_reader import get_chunk_data_stream

        try:
            whole, length = get_chunk_data_stream(chunk, validate_crc=True)
            file = io.BytesIO(whole.read(length))
            stream = ReadDataStream(file)
            for offset in offsets:
                file.seek(offset)
                if stream.read1() == Opcode.MESSAGE:
                    yield Message.read(stream, stream.read8())
        except Exception as error:  # the libraries of compression have exceptions of their own
            self._note(f"has a damaged or incomplete chunk ({_words(error)})")

    def _taken(self, record: McapRecord, wanted: _Channels) -> Iterator[RecordedMessage]:
        """Take the facts from a record, and yield it if it is a wanted message."""
        from mcap.records import Channel, Message, Metadata, Schema

        if isinstance(record, Message):
            names = wanted.names.get(record.channel_id)
            if names is not None:
                yield RecordedMessage(*names, record.data, record.log_time, record.sequence)
        elif isinstance(record, Channel):
            if wanted.add(record):
                self._note(f"holds two sources that write on {record.topic!r}, and the second one is left out")
        elif isinstance(record, Schema):
            wanted.schemas[record.id] = record
        elif isinstance(record, Metadata):
            self.metadata[record.name] = record.metadata
            if record.name == FORMAT_METADATA:
                self._check_format(record.metadata)

    def _check_format(self, metadata: Mapping[str, str]) -> None:
        number = metadata.get("format", "")
        if number.isdecimal() and int(number) > FORMAT:
            raise SourceError(
                f"{self.path}: is a recording of format {number}, and this version reads up to {FORMAT}; install the "
                "version that wrote it, or a newer one"
            )

    def _note(self, damage: str) -> None:
        self.damage = self.damage or f"{self.path}: {damage}; what could be read is used"


class _Channels:
    """The channels that were read so far; `names` has topic and schema of the wanted ones."""

    def __init__(self, beginnings: tuple[str, ...]) -> None:
        self.known: set[int] = set()
        self.names: dict[int, tuple[str, str]] = {}
        self.schemas: dict[int, Schema] = {}
        self._beginnings = beginnings
        self._first: dict[str, int] = {}

    def add(self, channel: Channel) -> bool:
        """Register a channel; return whether its topic belongs to another one."""
        self.known.add(channel.id)
        if self._first.setdefault(channel.topic, channel.id) != channel.id:
            return True
        if not self._beginnings or channel.topic.startswith(self._beginnings):
            schema = self.schemas.get(channel.schema_id)
            self.names[channel.id] = (channel.topic, "" if schema is None else schema.name)
        return False


def _place(file: BinaryIO) -> str:
    return f"{file.tell() / 1e6:.1f} MB"


def _words(error: Exception) -> str:
    return " ".join(str(error).split()) or "the file is cut off"
