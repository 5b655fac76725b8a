"""Poses on the robot's side: an iterator that needs msgspec and pyzmq, and no torch.

with PoseSubscriber("tcp://127.0.0.1:5555") as subscriber:
    for message in subscriber:
        if subscriber.age_s < 0.2:
            act_on(message.tracks)
"""

import time
from collections.abc import Iterator
from types import TracebackType
from typing import Self

import zmq

from xpose_client.errors import EndpointError
from xpose_client.messages import POSES, SEPARATOR, SKELETONS, PoseMessage, SkeletonMessage, decode

_LOOPBACK = ("tcp://127.", "tcp://localhost:", "tcp://[::1]", "ipc://")


class PoseSubscriber:
    """Receives the pose messages of one publisher, in order, and knows what it did not get.

    Args:
        endpoint: the publisher's ZeroMQ address.
        source: receive this source alone; None for all.
        conflate: keep the newest message only, for a control loop slower than the camera. All sources share that one
            place: give `source` where there are several. What was skipped counts as missed.
        same_host: take ages from the monotonic clock, which no clock change disturbs; only right on the publisher's own
            machine. None: as the endpoint tells (loopback and ipc are the same host). Elsewhere ages come from the wall
            clocks, and are as good as their synchronisation.

    Attributes:
        received: pose messages handed out.
        missed: pose messages that the publisher sent and that never came, by the gaps in their sequence numbers. What
            was sent before the first message is not counted.
        restarts: how often the publisher came back with a new session.
        skeletons: last skeleton message of each source: keypoint names and edges.

    Raises:
        EndpointError: the endpoint is malformed.
    """

    def __init__(
        self, endpoint: str, *, source: str | None = None, conflate: bool = False, same_host: bool | None = None
    ) -> None:
        self.received = 0
        self.missed = 0
        self.restarts = 0
        self.skeletons: dict[str, SkeletonMessage] = {}
        self._same_host = endpoint.startswith(_LOOPBACK) if same_host is None else same_host
        self._last: dict[str, tuple[int, int]] = {}
        self._age_s = float("inf")
        self._sockets: list[zmq.Socket[bytes]] = []
        exact = "" if source is None else source + SEPARATOR.decode()
        try:
            # Skeletons have a socket of their own: CONFLATE would let the next pose overwrite them.
            self._skeletons = self._connect(endpoint, SKELETONS + exact, conflate=False)
            self._poses = self._connect(endpoint, POSES + exact, conflate=conflate)
        except zmq.ZMQError as error:
            self.close()
            raise EndpointError(
                f"{endpoint}: is not a ZeroMQ address ({error.strerror}); give tcp://ADDRESS:PORT or ipc://FILE"
            ) from error

    @property
    def age_s(self) -> float:
        """Age of the last message when it was received: seconds since its frame was captured; infinite before one."""
        return self._age_s

    def age_now_s(self, message: PoseMessage) -> float:
        """Seconds from the capture of the message's frame until now."""
        if self._same_host:
            return (time.monotonic_ns() - message.capture_monotonic_ns) / 1e9
        return (time.time_ns() - message.capture_unix_ns) / 1e9

    def receive(self, timeout_s: float | None = None) -> PoseMessage | None:
        """Wait for the next pose message; None where none came within `timeout_s` (None: wait for ever).

        A message that was seen before, sent again for somebody who joined late, is passed over.

        Raises:
            WireError: the publisher speaks another schema, or is none of ours.
        """
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            left_ms = None if deadline_s is None else max(0, round((deadline_s - time.monotonic()) * 1000))
            if not self._poses.poll(left_ms):
                self._take_skeletons()
                return None
            message = decode(self._poses.recv())
            self._take_skeletons()
            if isinstance(message, PoseMessage) and self._is_new(message):
                self.received += 1
                self._age_s = self.age_now_s(message)
                return message

    def skeleton(self, message: PoseMessage) -> SkeletonMessage | None:
        """Return the names and edges that belong to `message`; None while its skeleton message is on its way."""
        self._take_skeletons()
        found = self.skeletons.get(message.source)
        matches = found is not None and (found.session, found.prompt_id) == (message.session, message.prompt_id)
        return found if matches else None

    def close(self) -> None:
        """Disconnect. An iteration that is under way must be in this thread: sockets belong to one."""
        for socket in self._sockets:
            socket.close(linger=0)

    def __iter__(self) -> Iterator[PoseMessage]:
        while True:
            message = self.receive()
            if message is not None:
                yield message

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _connect(self, endpoint: str, prefix: str, *, conflate: bool) -> zmq.Socket[bytes]:
        socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.SUB)
        self._sockets.append(socket)
        socket.setsockopt(zmq.CONFLATE, conflate)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)  # ms; a publisher that restarts is found again within a second
        socket.setsockopt_string(zmq.SUBSCRIBE, prefix)
        socket.connect(endpoint)
        return socket

    def _take_skeletons(self) -> None:
        while self._skeletons.poll(0):
            message = decode(self._skeletons.recv())
            if isinstance(message, SkeletonMessage):
                self.skeletons[message.source] = message

    def _is_new(self, message: PoseMessage) -> bool:
        """Count the gap before `message`; False where its source had it, or a later one, before."""
        session, seq = self._last.get(message.source, (message.session, message.seq - 1))
        if session != message.session:
            self.restarts += 1
            seq = -1
        elif message.seq <= seq:
            return False
        self.missed += message.seq - seq - 1
        self._last[message.source] = (message.session, message.seq)
        return True
