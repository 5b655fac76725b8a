"""Writes one MCAP file: its channels, its chunks, and its index at the end.

Packets and messages are in separate chunks, so that a reader of messages need not decompress the packets. There is no
buffer in this process, so flushed data is kept however the process ends. After a failed write the file is truncated to
the last flush, so that it ends with a complete chunk.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import msgspec

from pipeline.errors import OutputError
from pipeline.recording import ANNOTATIONS, FRAMES, IMAGES, JSON_TOPICS, STREAMS, VIDEO, WIRE_TOPICS

if TYPE_CHECKING:
    from google.protobuf.descriptor import FileDescriptor

Metadata = Mapping[str, Mapping[str, str]]

_WITH_PACKETS = (VIDEO, IMAGES, STREAMS, FRAMES)
_PROTOBUF_TOPICS = {VIDEO: "CompressedVideo", IMAGES: "CompressedImage", ANNOTATIONS: "ImageAnnotations"}


def require_mcap() -> None:
    """Import the library that writes recordings.

    Raises:
        OutputError: the extra `record` is not installed.
    """
    try:
        import foxglove_schemas_protobuf
        import mcap.writer  # noqa: F401

        assert foxglove_schemas_protobuf
    except ImportError as error:
        raise OutputError(
            f"recordings need the extra `record` ({error.name} is missing): pip install 'xpose-stream[record]'"
        ) from error


class Part:
    """An MCAP file. Belongs to the thread that makes it.

    Args:
        path: the file; it must not exist.
        metadata: records of names and texts, by the name of the record; written first.
    Attributes:
        size_bytes: bytes on the disk.
    Raises:
        OSError: the file cannot be created.
    """

    def __init__(self, path: Path, metadata: Metadata) -> None:
        from mcap.writer import Writer

        self.path = path
        self.begun_s = time.monotonic()
        self._file = _DirectFile(path)
        self._flushed_bytes = 0
        self._channels: dict[str, int] = {}
        self._schemas: dict[str, int] = {}
        self._messages: list[tuple[str, int, bytes, int, int]] = []  # that wait for the next flush
        self._writer: Any = Writer(cast(IO[Any], self._file))
        try:
            self._writer.start(library="xpose-stream")
            for name, texts in metadata.items():
                self._writer.add_metadata(name, dict(texts))
            self.flush()
        except OSError:
            self._file.close()
            path.unlink()
            raise

    @property
    def size_bytes(self) -> int:
        return self._flushed_bytes

    def write(self, topic: str, data: bytes, log_ns: int, publish_ns: int, sequence: int = 0) -> None:
        """Add a message; it reaches the disk with the next flush, or before.

        Raises:
            OSError: a chunk could not be written.
        """
        message = (topic, log_ns, data, publish_ns, sequence & 0xFFFFFFFF)
        if topic.startswith(_WITH_PACKETS):
            self._add(*message)
        else:
            self._messages.append(message)

    def flush(self) -> None:
        """Write everything to the disk.

        Raises:
            OSError: it could not be written.
        """
        self._writer.flush()
        messages, self._messages = self._messages, []
        for message in messages:
            self._add(*message)
        self._writer.flush()
        self._flushed_bytes = self._file.tell()

    def finish(self) -> None:
        """Write the index and close the file.

        Raises:
            OSError: the index could not be written; the file is truncated to the last flush and closed.
        """
        try:
            self.flush()
            self._writer.finish()
        except OSError:
            self.cut()
            raise
        self._file.close()

    def cut(self) -> None:
        """Truncate the file to the last flush and close it without an index."""
        self._file.truncate(self._flushed_bytes)
        self._file.close()

    def _add(self, topic: str, log_ns: int, data: bytes, publish_ns: int, sequence: int) -> None:
        channel = self._channels.get(topic)
        if channel is None:
            channel = self._channels[topic] = self._register(topic)
        self._writer.add_message(channel, log_ns, data, publish_ns, sequence)

    def _register(self, topic: str) -> int:
        beginning = topic.partition("/")[0] + ("/" if "/" in topic else "")
        kind = WIRE_TOPICS.get(beginning) or JSON_TOPICS.get(beginning)
        encoding = "msgpack" if beginning in WIRE_TOPICS else "json" if kind is not None else "protobuf"
        schema = self._schemas.get(beginning)
        if schema is None:
            if kind is not None:
                name, described = f"xpose.{kind.__name__}", msgspec.json.encode(json_schema_of(kind))
            else:
                name, described = _protobuf_schema(_PROTOBUF_TOPICS[beginning])
            written = "protobuf" if kind is None else "jsonschema"
            schema = self._schemas[beginning] = self._writer.register_schema(name, written, described)
        return int(self._writer.register_channel(topic, encoding, schema))


class _DirectFile:
    """A new file without a buffer, as `mcap` writes to it."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        with suppress(OSError):  # some network disks have no locks
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._position = 0

    def write(self, data: bytes) -> int:
        view = memoryview(data)
        while view:
            written = os.write(self._descriptor, view)
            self._position += written
            view = view[written:]
        return len(data)

    def tell(self) -> int:
        return self._position

    def flush(self) -> None:
        """Do nothing: there is no buffer."""

    def truncate(self, length: int) -> None:
        os.ftruncate(self._descriptor, length)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1


def json_schema_of(kind: type[msgspec.Struct]) -> dict[str, Any]:
    """Return a JSON Schema whose root is an object, as readers of MCAP require."""
    (_, components) = msgspec.json.schema_components((kind,), ref_template="#/$defs/{name}")
    root = components.pop(kind.__name__)
    return {**root, "$defs": components} if components else root


def _protobuf_schema(message: str) -> tuple[str, bytes]:
    """Return the full name of a Foxglove schema, and its file with all files that it imports."""
    import importlib

    from google.protobuf.descriptor_pb2 import FileDescriptorSet

    module = importlib.import_module(f"foxglove_schemas_protobuf.{message}_pb2")
    files = FileDescriptorSet()
    seen: set[str] = set()

    def add(file: FileDescriptor) -> None:
        for needed in file.dependencies:
            add(needed)
        if file.name not in seen:
            seen.add(file.name)
            file.CopyToProto(files.file.add())

    add(module.DESCRIPTOR)
    return f"foxglove.{message}", files.SerializeToString()
