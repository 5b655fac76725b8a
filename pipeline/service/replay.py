"""Publishes the messages of a recording again on ZeroMQ, with their intervals and without an engine.

Every message gets new time stamps, as if it were made now, a new session, and `replay` set to true. The tracks of a
pose message are passed on as bytes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from pipeline.errors import SourceError
from pipeline.keys import ServerKeys
from pipeline.outputs.publisher import PublishConfig, Publisher
from pipeline.recording import WIRE_TOPICS
from pipeline.sources.recording_file import RecordedMessage, RecordingFile
from xpose_client.host import boot_id
from xpose_client.messages import POSES, SEPARATOR, SKELETONS, STATUS, PoseMessage

_SERVE_EVERY_S = 0.02  # new subscribers are answered at least this often
_SERVE_EVERY_MESSAGES = 256  # and at least this often if messages are sent without waiting


def _raw_tracks(kind: type[msgspec.Struct]) -> type[msgspec.Struct]:
    """Return the message type in which the tracks stay bytes."""
    fields: list[Any] = []
    for field in msgspec.structs.fields(kind):
        wanted = msgspec.Raw if field.name == "tracks" else field.type
        fields.append((field.name, wanted) if field.required else (field.name, wanted, field.default))
    return msgspec.defstruct(kind.__name__, fields, frozen=True)


_DECODERS: Final[dict[str, msgspec.msgpack.Decoder[Any]]] = {
    beginning: msgspec.msgpack.Decoder(_raw_tracks(kind) if kind is PoseMessage else kind)
    for beginning, kind in WIRE_TOPICS.items()
}
_encode = msgspec.msgpack.Encoder().encode


@dataclass(frozen=True)
class ReplayResult:
    """The result of a replay.

    Attributes:
        messages: number of published messages.
        duration_s: duration of the replay.
        damage: one sentence that says what could not be read; "" if everything could be read.
    """

    messages: int
    duration_s: float
    damage: str


class Replay:
    """Publishes the messages of one recording.

    Args:
        rate: speed; 0 is as fast as possible.
        skip_s: time at the beginning that is skipped; skeletons and states in it are published at once.
        loop: start again after the end, with a new session.
        stopped: event that ends the replay.
        keys: keys of the clients that may subscribe; None to allow everybody who can reach the address.
    """

    def __init__(
        self,
        path: Path,
        config: PublishConfig,
        *,
        rate: float = 1.0,
        skip_s: float = 0.0,
        loop: bool = False,
        stopped: threading.Event | None = None,
        keys: ServerKeys | None = None,
    ) -> None:
        self._file = RecordingFile(path)
        self._config = config
        self._keys = keys
        self._rate = rate
        self._skip_s = skip_s
        self._loop = loop
        self._stopped = stopped or threading.Event()
        self._count = 0

    def run(self) -> ReplayResult:
        """Publish everything, or until stopped; the calling thread owns the socket.

        Raises:
            SourceError: the recording has no poses after `skip_s`, or has a newer format.
            PublishError: the endpoint cannot be bound.
        """
        self._require_poses()
        begun_s = time.monotonic()
        with Publisher(self._config, self._keys) as publisher:
            while True:
                self._publish_once(publisher)
                if not self._loop or self._stopped.is_set():
                    break
        return ReplayResult(self._count, time.monotonic() - begun_s, self._file.damage)

    def _require_poses(self) -> None:
        topics: set[str] = set()
        clock = _Clock(self._rate, self._skip_s)
        for message in self._file.messages():
            skipped = clock.skips(message.log_ns)
            topics.add(message.topic)
            if message.topic.startswith(POSES) and not skipped:
                return
        if any(topic.startswith(POSES) for topic in topics):
            raise SourceError(
                f"{self._file.path}: ends after {clock.passed_s:.1f} s, but --from is {self._skip_s:g}; give less"
            )
        found = ", ".join(sorted(topics)[:5]) or "none"
        raise SourceError(
            f"{self._file.path}: holds no poses to replay (no topic {POSES}…; it has {found}); if it has pictures, "
            f"infer them: run --source {self._file.path}"
        )

    def _publish_once(self, publisher: Publisher) -> None:
        fresh, clock = _Fresh(self._rate), _Clock(self._rate, self._skip_s)
        skipped: dict[str, RecordedMessage] = {}
        try:
            for message in self._file.messages(*WIRE_TOPICS):
                if clock.skips(message.log_ns):
                    if not message.topic.startswith(POSES):
                        skipped[message.topic] = message
                    continue
                for earlier in (*skipped.values(), message):
                    self._wait(clock.due_s(), publisher)
                    if self._stopped.is_set():
                        return
                    self._send(publisher, fresh.message(earlier))
                skipped.clear()
        finally:
            for ended in fresh.ends():
                self._send(publisher, ended)

    def _send(self, publisher: Publisher, data: bytes) -> None:
        publisher.forward(data)
        self._count += 1
        if self._count % _SERVE_EVERY_MESSAGES == 0:
            publisher.serve_late_joiners()

    def _wait(self, due_s: float, publisher: Publisher) -> None:
        while (wait_s := due_s - time.monotonic()) > 0 and not self._stopped.is_set():
            publisher.serve_late_joiners()
            self._stopped.wait(min(wait_s, _SERVE_EVERY_S))


class _Clock:
    """Computes when a message is due. If a recorded time goes backwards, the previous time is used.

    Attributes:
        passed_s: recorded time since the first message.
    """

    def __init__(self, rate: float, skip_s: float) -> None:
        self.passed_s = 0.0
        self._rate = rate
        self._skip_s = skip_s
        self._first_ns: int | None = None
        self._begun_s: float | None = None

    def skips(self, log_ns: int) -> bool:
        """Take the time of the next message; return whether the message is skipped."""
        if self._first_ns is None:
            self._first_ns = log_ns
        self.passed_s = max(self.passed_s, (log_ns - self._first_ns) / 1e9)
        return self.passed_s < self._skip_s

    def due_s(self) -> float:
        """Return when that message is due, on `time.monotonic`."""
        if self._rate == 0:
            return 0.0
        if self._begun_s is None:
            self._begun_s = time.monotonic() - (self.passed_s - self._skip_s) / self._rate
        return self._begun_s + (self.passed_s - self._skip_s) / self._rate


class _Fresh:
    """Turns recorded messages into messages with present times."""

    def __init__(self, rate: float) -> None:
        self._session = time.time_ns()
        self._rate = rate
        self._seq: dict[str, int] = {}
        self._states: dict[str, Any] = {}
        self._makers: dict[str, Callable[[Any, str], Any]] = {
            POSES: self._pose,
            SKELETONS: self._skeleton,
            STATUS: self._status,
        }

    def message(self, recorded: RecordedMessage) -> bytes:
        """Return the ZeroMQ frame of a message."""
        beginning = recorded.topic[: recorded.topic.index("/") + 1]
        try:
            message = _DECODERS[beginning].decode(recorded.data)
        except msgspec.DecodeError as error:
            raise SourceError(
                f"a message on {recorded.topic} cannot be read ({error}); install the version that wrote the recording"
            ) from error
        return _framed(recorded.topic, self._makers[beginning](message, recorded.topic))

    def ends(self) -> Iterator[bytes]:
        """Yield states "ended" for sources whose end is not in the recording, or was not reached."""
        for topic, state in self._states.items():
            if state.state != "ended":
                now_ns = time.time_ns()
                yield _framed(
                    topic,
                    msgspec.structs.replace(
                        state,
                        state="ended",
                        since_unix_ns=now_ns,
                        publish_unix_ns=now_ns,
                        publish_monotonic_ns=time.monotonic_ns(),
                    ),
                )

    def _pose(self, message: Any, topic: str) -> Any:
        now_ns, monotonic_ns = time.time_ns(), time.monotonic_ns()
        age_ns = max(0, message.publish_unix_ns - message.capture_unix_ns)
        seq = self._seq[topic] = self._seq.get(topic, -1) + 1
        return msgspec.structs.replace(
            message,
            session=self._session,
            seq=seq,
            host=boot_id(),
            capture_unix_ns=now_ns - age_ns,
            capture_monotonic_ns=monotonic_ns - age_ns,
            publish_unix_ns=now_ns,
            replay=True,
        )

    def _skeleton(self, message: Any, topic: str) -> Any:
        return msgspec.structs.replace(message, session=self._session, publish_unix_ns=time.time_ns(), replay=True)

    def _status(self, message: Any, topic: str) -> Any:
        now_ns = time.time_ns()
        shift_ns = now_ns - message.publish_unix_ns
        captured_ns = message.last_capture_unix_ns
        fresh = self._states[topic] = msgspec.structs.replace(
            message,
            session=self._session,
            host=boot_id(),
            since_unix_ns=message.since_unix_ns + shift_ns,
            publish_unix_ns=now_ns,
            publish_monotonic_ns=time.monotonic_ns(),
            last_capture_unix_ns=None if captured_ns is None else captured_ns + shift_ns,
            beat_s=message.beat_s / self._rate if self._rate else message.beat_s,
            replay=True,
        )
        return fresh


def _framed(topic: str, message: Any) -> bytes:
    return topic.encode() + SEPARATOR + _encode(message)
