"""Poses and states on the robot's side.

with PoseSubscriber("tcp://127.0.0.1:5555") as subscriber:
    for event in subscriber.events():
        if isinstance(event, SourceState):
            print(event.source, "is", event.state)
        elif event.age_s < 0.2:
            act_on(event.message.tracks)
"""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Iterator
from types import TracebackType

import zmq

from xpose_client.errors import EndpointError
from xpose_client.events import Event, Received, SourceState, age_s
from xpose_client.keys import load_client_keys
from xpose_client.messages import (
    POSES,
    SEPARATOR,
    SKELETONS,
    STATUS,
    PoseMessage,
    SkeletonMessage,
    StatusMessage,
    decode,
)
from xpose_client.states import SourceStates

_LONGEST_RECONNECT_MS = 1000
_MOST_CHANGES = 1000
"""Changes of state that are kept for `receive_event`; a program that only asks for `state` never takes them."""


class PoseSubscriber:
    """Receives the pose messages of one publisher, in order, and counts those that are missing.

    A subscriber belongs to one thread: the one that makes it, receives, and closes it.

    Args:
        endpoint: the publisher's ZeroMQ address.
        source: receive this source alone; None for all.
        conflate: keep the newest pose message only, for a control loop that is slower than the camera. Only one message
            is kept for all sources together, so give `source` if there are several. Skipped messages count as missed.
            States and skeletons are never skipped.
        keys: key file of this client (`NAME.key`), if the publisher uses keys.

    Attributes:
        received: pose messages handed out.
        missed: pose messages that the publisher sent and that never came, counted by the gaps in their sequence
            numbers. Messages sent before the first one received are not counted.
        restarts: how often a source came back with a new session, because its publisher restarted.
        skeletons: last skeleton message of each source: keypoint names and edges.

    Raises:
        EndpointError: the endpoint is malformed.
        KeyFileError: the key file cannot be used.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        source: str | None = None,
        conflate: bool = False,
        keys: str | os.PathLike[str] | None = None,
    ) -> None:
        self.received = 0
        self.missed = 0
        self.restarts = 0
        self.skeletons: dict[str, SkeletonMessage] = {}
        self._states = SourceStates()
        self._changes: deque[SourceState] = deque(maxlen=_MOST_CHANGES)
        self._last: dict[str, tuple[int, int]] = {}
        self._sockets: list[zmq.Socket[bytes]] = []
        self._poller = zmq.Poller()
        self._keys = None if keys is None else load_client_keys(keys)
        exact = "" if source is None else source + SEPARATOR.decode()
        try:
            # Skeletons and states have a socket of their own: CONFLATE would let the next pose overwrite them.
            self._side = self._connect(endpoint, (SKELETONS + exact, STATUS + exact), conflate=False)
            self._poses = self._connect(endpoint, (POSES + exact,), conflate=conflate)
        except zmq.ZMQError as error:
            self.close()
            raise EndpointError(
                f"{endpoint}: is not a ZeroMQ address ({error.strerror}); give tcp://ADDRESS:PORT or ipc://FILE"
            ) from error

    def receive(self, timeout_s: float | None = None) -> Received | None:
        """Wait for the next pose message; return None if none comes within `timeout_s` (None: wait without limit).

        Messages that were sent again for another subscriber are skipped. Changes of state that come in the meantime
        update `state`, but are not returned.

        Raises:
            WireError: the publisher uses another schema, or is not one of ours.
        """
        deadline_s = math.inf if timeout_s is None else time.monotonic() + timeout_s
        while True:
            event = self._next(deadline_s)
            if event is None or isinstance(event, Received):
                return event

    def receive_event(self, timeout_s: float | None = None) -> Event | None:
        """Wait like `receive`, and also return when the state of a source changes or its publisher falls silent.

        Raises:
            WireError: the publisher uses another schema, or is not one of ours.
        """
        return self._next(math.inf if timeout_s is None else time.monotonic() + timeout_s)

    def events(self) -> Iterator[Event]:
        """Iterate over poses and changes of state, without an end."""
        while True:
            event = self.receive_event()
            if event is not None:
                yield event

    def __iter__(self) -> Iterator[Received]:
        """Iterate over poses, without an end."""
        while True:
            received = self.receive()
            if received is not None:
                yield received

    @property
    def alive(self) -> bool:
        """Whether the publisher is alive: a status message came within its beat. False before the first message."""
        self._take_side()
        return self._states.alive(time.monotonic())

    @property
    def late(self) -> bool:
        """Whether any source is late: its newest picture is older than the publisher's age budget."""
        self._take_side()
        return self._states.late(time.monotonic())

    def state(self, source: str) -> str:
        """Return the state of `source`.

        It is "connecting", "live", "late", "lost" or "ended" as in the last status message; "silent" if no status
        messages come any more; "unknown" before the first status message.
        """
        self._take_side()
        return self._states.state(source, time.monotonic())

    def status(self, source: str) -> StatusMessage | None:
        """Return the last status message of `source`; None before the first."""
        self._take_side()
        return self._states.status(source)

    def skeleton(self, message: PoseMessage) -> SkeletonMessage | None:
        """Return the names and edges that belong to `message`; None if its skeleton message has not come yet."""
        self._take_side()
        skeleton = self.skeletons.get(message.source)
        if skeleton is None or (skeleton.session, skeleton.prompt_id) != (message.session, message.prompt_id):
            return None
        return skeleton

    def close(self) -> None:
        """Disconnect. Call it on the thread that receives: ZeroMQ sockets belong to one thread."""
        for socket in self._sockets:
            socket.close(linger=0)

    def __enter__(self) -> PoseSubscriber:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _connect(self, endpoint: str, prefixes: tuple[str, ...], *, conflate: bool) -> zmq.Socket[bytes]:
        socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.SUB)
        self._sockets.append(socket)
        socket.setsockopt(zmq.CONFLATE, conflate)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, _LONGEST_RECONNECT_MS)
        socket.setsockopt(zmq.IPV6, "[" in endpoint)
        if self._keys is not None:
            self._keys.apply_to(socket)
        for prefix in prefixes:
            socket.setsockopt_string(zmq.SUBSCRIBE, prefix)
        socket.connect(endpoint)
        self._poller.register(socket, zmq.POLLIN)
        return socket

    def _next(self, deadline_s: float) -> Event | None:
        """Return what comes first: a change of state, a pose message, or the deadline (None)."""
        while True:
            self._take_side()
            now_s = time.monotonic()
            self._changes.extend(self._states.silences(now_s))
            if self._changes:
                return self._changes.popleft()
            received = self._take_pose()
            if received is not None:
                return received
            if now_s >= deadline_s:
                return None
            silence_s = self._states.next_silence_s()
            wait_s = min(deadline_s, math.inf if silence_s is None else silence_s) - now_s
            self._poller.poll(None if wait_s == math.inf else max(0, math.ceil(wait_s * 1000)))

    def _take_side(self) -> None:
        """Take the skeletons and states that have come."""
        while _readable(self._side):
            message = decode(self._side.recv())
            if isinstance(message, SkeletonMessage):
                self.skeletons[message.source] = message
            elif isinstance(message, StatusMessage):
                self._changes.extend(self._states.take(message, time.monotonic()))

    def _take_pose(self) -> Received | None:
        """Return the next new pose message that has come."""
        while _readable(self._poses):
            message = decode(self._poses.recv())
            if not isinstance(message, PoseMessage):
                continue
            session, seq = self._last.get(message.source, (message.session, message.seq - 1))
            restarted = session != message.session
            if restarted:
                seq = -1
            elif message.seq <= seq:
                continue  # a repeat for a late joiner
            missed = message.seq - seq - 1
            self._last[message.source] = (message.session, message.seq)
            self.received += 1
            self.missed += missed
            self.restarts += restarted
            return Received(message, age_s(message), missed, restarted)
        return None


def _readable(socket: zmq.Socket[bytes]) -> bool:
    return bool(int(socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN)
