"""Recordings: the packets of all sources and all messages, in MCAP files.

Sources pass on their packets (`Recorder.tap`), and the publish stage its messages. Both go into one queue, and a thread
writes them to the disk. If the queue is full, packets of live sources are dropped and counted, up to the next key
frame; packets of files wait. A failed write ends the recording, but not the pipeline.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import av

from pipeline.errors import ConfigError, OutputError
from pipeline.frames import FrameTracks
from pipeline.outputs.recording_part import Metadata, require_mcap
from pipeline.outputs.recording_writer import Item, RecordingWriter, Tracked, explained
from pipeline.recording import Piece, Tap, TrackedRecord
from xpose_client.messages import PoseMessage, SkeletonMessage, StatusMessage

_log = logging.getLogger(__name__)

_MEGABYTE = 1_000_000
_ITEM_BYTES = 500  # assumed size of an item without pixels
_TRACK_BYTES = 2000
_STOP_S = 20.0  # longest wait at the end for a slow disk
_LONGEST_FLUSH_S = 1.0

SLOW_DISK = "slow disk"


@dataclass(frozen=True)
class RecordConfig:
    """How recordings are written.

    Attributes:
        part_mb: size in megabytes after which a new file starts, at a key frame; 0 for no limit.
        part_s: time in seconds after which a new file starts, at a key frame; 0 for no limit.
        queue_mb: megabytes of packets and pictures that may wait for the disk. If it is full, those of live sources are
            dropped, and files wait.
        flush_s: longest time until data is written; at most 1 s.
        crf: constant rate factor of x264, 0 (lossless) to 51, for pictures whose packets cannot be recorded.
        folder: folder for recordings that are started by the control socket; "" allows none.
    """

    part_mb: float = 0.0
    part_s: float = 0.0
    queue_mb: float = 64.0
    flush_s: float = 0.5
    crf: int = 18
    folder: str = ""

    def __post_init__(self) -> None:
        if not self.part_mb >= 0 or not self.part_s >= 0:
            raise ConfigError(f"record.part_mb and record.part_s are {self.part_mb} and {self.part_s}: give 0 or more")
        if not self.queue_mb > 0:
            raise ConfigError(f"record.queue_mb is {self.queue_mb}: give megabytes above 0")
        if not 0 < self.flush_s <= _LONGEST_FLUSH_S:
            raise ConfigError(f"record.flush_s is {self.flush_s}: give a time above 0 s, up to {_LONGEST_FLUSH_S:g} s")
        if not 0 <= self.crf <= 51:
            raise ConfigError(f"record.crf is {self.crf}: give 0 to 51")


@dataclass(frozen=True)
class RecordingReport:
    """The state of a recording, or its result.

    Attributes:
        active: whether the recording still runs.
        files: files that were written so far, oldest first.
        packets: pictures that were recorded.
        dropped: pictures and messages that were not recorded, by source, because the disk was too slow.
        failure: one sentence if the recording ended because of an error; None otherwise.
    """

    active: bool
    files: tuple[Path, ...]
    packets: int
    dropped: dict[str, int]
    failure: str | None


class Recorder:
    """One recording. All methods are for any thread.

    Args:
        path: the first file. If it exists, and for further parts, `-2`, `-3`, … is added to its stem.
        metadata: names and texts to write at the beginning of every file.
    Raises:
        OutputError: the extra `record` is not installed.
    """

    def __init__(self, path: Path, config: RecordConfig, metadata: Metadata) -> None:
        require_mcap()
        self._config = config
        self._limit_bytes = config.queue_mb * _MEGABYTE
        self._zero_ns = time.time_ns() - time.monotonic_ns()
        self._changed = threading.Condition()
        self._items: deque[Item] = deque()
        self._waiting_bytes = 0
        self._dropped: Counter[str] = Counter()
        self._ready = threading.Event()
        self._stopping = False
        self._active = True
        self._failure: str | None = None
        self._writer = RecordingWriter(path, config.part_mb * _MEGABYTE, config.part_s, config.crf, metadata)
        self._thread = threading.Thread(target=self._run, name="record", daemon=True)

    def start(self) -> None:
        """Create the file.

        Raises:
            OutputError: the file cannot be created, or its name does not end in .mcap.
        """
        path = self._writer.path
        if path.is_dir():
            raise OutputError(f"{path}: is a folder; give a file in it, such as {path / 'out.mcap'}")
        if path.suffix.lower() != ".mcap":
            raise OutputError(f"{path}: must end in .mcap, so that `run --source` knows it as a recording")
        self._thread.start()
        self._ready.wait()
        if self._failure is not None:
            raise OutputError(self._failure)

    @property
    def report(self) -> RecordingReport:
        """Return the state of the recording."""
        with self._changed:
            files, packets = tuple(self._writer.files), self._writer.packets
            return RecordingReport(self._active, files, packets, dict(self._dropped), self._failure)

    def tap(self, source: str, *, live: bool) -> Tap:
        """Return the tap that takes the packets of a source."""
        return _SourceTap(self, source, live)

    def tracked(self, tracked: FrameTracks, message: PoseMessage | None) -> None:
        """Take an inferred frame with its message; None if the frame was too old for a message."""
        frame, found = tracked.frame, tracked.detections
        record = TrackedRecord(frame.index, found.prompt_id, tracked.age_s, message is not None)
        if message is not None and frame.live and self._waiting_bytes > self._limit_bytes:
            self.count_drop(frame.source)
            message = None
        size_bytes = _ITEM_BYTES + (0 if message is None else _TRACK_BYTES * len(message.tracks))
        self.put(frame.source, Tracked(record, found.prompts, message), size_bytes)

    def message(self, message: SkeletonMessage | StatusMessage) -> None:
        """Take a message. There are few of these, and they are never dropped."""
        self.put(message.source, message, _ITEM_BYTES)

    def put(self, source: str, content: Piece | Tracked | SkeletonMessage | StatusMessage, size_bytes: int) -> None:
        """Append to the queue without waiting."""
        item = Item(source, content, size_bytes, self._zero_ns + time.monotonic_ns())
        with self._changed:
            if self._active and not self._stopping:
                self._items.append(item)
                self._waiting_bytes += size_bytes
                self._changed.notify_all()

    def has_room(self, *, wait: bool) -> bool:
        """Whether the queue has room for more pixels. With `wait`, wait for room or the end of the recording."""
        with self._changed:
            if wait:
                self._changed.wait_for(lambda: self._waiting_bytes <= self._limit_bytes or not self._active)
            return self._waiting_bytes <= self._limit_bytes

    def count_drop(self, source: str) -> None:
        """Count an item that is not recorded."""
        with self._changed:
            self._dropped[source] += 1

    def stop(self) -> RecordingReport:
        """Write the waiting items, finish the file, and return the result. Idempotent."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join(_STOP_S)
            if self._thread.is_alive():
                _log.warning("the recording does not end within %g s: the disk is too slow", _STOP_S)
        return self.report

    def _run(self) -> None:
        try:
            self._guarded(self._writer.open)
            self._ready.set()
            if self._failure is None:
                self._guarded(self._write_all)
            self._guarded(self._writer.finish if self._failure is None else self._writer.cut)
        finally:
            with self._changed:
                self._active = False
                self._items.clear()
                self._waiting_bytes = 0
                self._changed.notify_all()
            self._ready.set()

    def _guarded(self, action: Callable[[], None]) -> None:
        """Run `action`. If the disk or the encoder fails, note the failure, which ends the recording."""
        try:
            action()
        except (OSError, av.FFmpegError) as error:
            if not self._ready.is_set():
                reason = getattr(error, "strerror", None) or str(error)
                self._failure = f"{self._writer.path}: cannot be created ({reason}); choose another file"
                return
            self._failure = self._failure or explained(self._writer.path, error)
            _log.warning("%s", self._failure)

    def _write_all(self) -> None:
        """Write items until `stop` was called and all are written; flush at least every `flush_s`."""
        flushed_s = time.monotonic()
        while True:
            wait_s = flushed_s + self._config.flush_s - time.monotonic()
            with self._changed:
                self._changed.wait_for(lambda: self._items or self._stopping, max(0.0, wait_s))
                item = self._items.popleft() if self._items else None
                ended = item is None and self._stopping
            if item is not None:
                self._writer.write(item)
                with self._changed:
                    self._waiting_bytes -= item.size_bytes
                    self._changed.notify_all()
            if ended:
                return
            if time.monotonic() - flushed_s >= self._config.flush_s:
                self._writer.flush()
                flushed_s = time.monotonic()


class _SourceTap:
    """Takes the pieces of one source, from a key frame on, while the disk is fast enough."""

    def __init__(self, recorder: Recorder, source: str, live: bool) -> None:
        self._recorder = recorder
        self._source = source
        self._live = live
        self._stream: object = None
        self._from_key = True
        self._dropping = False

    def __call__(self, piece: Piece) -> None:
        if piece.stream is not self._stream:
            self._stream, self._from_key, self._dropping = piece.stream, True, False
        if not self._from_key or piece.key:
            if self._recorder.has_room(wait=not self._live):
                self._from_key = self._dropping = False
                self._recorder.put(self._source, piece, _size_bytes(piece))
                return
            self._from_key = self._dropping = True
        if self._dropping:
            self._recorder.count_drop(self._source)


def _size_bytes(piece: Piece) -> int:
    if piece.data is not None:
        return _ITEM_BYTES + len(piece.data)
    if piece.frame is None or piece.frame.picture is None:
        return _ITEM_BYTES
    return _ITEM_BYTES + 3 * piece.frame.width * piece.frame.height
