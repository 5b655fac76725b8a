"""Publishes messages over ZeroMQ, to any number of subscribers. No subscriber can slow the pipeline down.

The publisher is an XPUB socket. A subscriber that joins late gets the skeletons, the states and the last poses of the
topics that it subscribed to, so that it knows the keypoints at once. ZeroMQ cannot send to a single subscriber, so the
others get these messages again with their old sequence numbers, and `PoseSubscriber` skips them. Late joiners are
answered at a bounded rate, so that frequent subscriptions do not delay poses. If a subscriber is too slow, up to
`send_queue` messages wait for it; further messages are lost, and it sees the gap in the sequence numbers.
"""

import time
from collections.abc import Container
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import zmq

from pipeline.errors import ConfigError, PublishError
from pipeline.keys import ServerKeys
from pipeline.outputs.endpoints import bind, check_endpoint, require_local
from pipeline.outputs.gate import Gate
from xpose_client.messages import POSES, SEPARATOR, STATUS, Message, encode

_SUBSCRIBE = b"\x01"
_UNSUBSCRIBE = b"\x00"
_READ_FOR_S = 0.005  # longest time that one call spends on reading subscriptions
_ANSWER_EVERY_S = 0.02  # at most one prefix is answered in this time, …
_ANSWER_MESSAGE_S = 0.002  # … plus this for each message of the answer
_OPTION = "--publish"


@dataclass(frozen=True)
class PublishConfig:
    """Where and how messages are published.

    Attributes:
        endpoint: ZeroMQ address to bind, such as tcp://127.0.0.1:5555, tcp://*:5555, tcp://[::1]:5555 or
            ipc:///tmp/poses; "" for none. tcp://[::]:5555 takes IPv4 and IPv6.
        send_queue: messages that may wait for one slow subscriber; if more come, it loses them.
        linger_s: longest wait at the end for messages that are still being sent.
        beat_s: time between two status messages of a source.
        without_keys: allow an address that other machines can reach, although there are no keys.
    """

    endpoint: str = ""
    send_queue: int = 1000
    linger_s: float = 0.5
    beat_s: float = 0.5
    without_keys: bool = False

    def __post_init__(self) -> None:
        if self.endpoint:
            check_endpoint(_OPTION, self.endpoint)
        if self.send_queue < 1:
            raise ConfigError(f"publish.send_queue is {self.send_queue}: give 1 message or more")
        if not self.linger_s >= 0:
            raise ConfigError(f"publish.linger_s is {self.linger_s}: give 0 s or more")
        if not 0.02 <= self.beat_s <= 60:
            raise ConfigError(f"publish.beat_s is {self.beat_s}: give 0.02 s to 60 s")

    def require_keys(self) -> None:
        """Refuse an address that other machines can reach. For a pipeline without keys.

        Raises:
            ConfigError: other machines can reach it, and `without_keys` does not allow this.
        """
        if self.endpoint and not self.without_keys:
            require_local(_OPTION, self.endpoint, ", or insist with --set publish.without_keys=true")


class Publisher:
    """A bound XPUB socket. Belongs to the thread that makes it.

    Args:
        keys: keys of the clients that may subscribe; None to allow everybody who can reach the address.

    Attributes:
        subscriptions: number of subscriptions of all subscribers. Any thread may read it.

    Raises:
        PublishError: the endpoint is malformed, in use, or not an address of this machine.
    """

    def __init__(self, config: PublishConfig, keys: ServerKeys | None = None) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.XPUB)
        self._socket.setsockopt(zmq.XPUB_VERBOSER, 1)  # report every subscription and every end of one
        self._socket.setsockopt(zmq.SNDHWM, config.send_queue)
        self._socket.setsockopt(zmq.LINGER, round(config.linger_s * 1000))
        self.subscriptions = 0
        self._last: dict[bytes, bytes] = {}
        self._waiting: dict[bytes, None] = {}  # prefixes that were subscribed to and not answered, oldest first
        self._next_answer_s = 0.0
        self._gate = None if keys is None else Gate(self._socket, keys, "publisher")
        try:
            bind(_OPTION, self._socket, config.endpoint)
        except PublishError:
            self.close()
            raise

    @property
    def endpoint(self) -> str:
        """The address that was bound. For `tcp://…:*`, it has the port that the system chose."""
        return self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def publish(self, message: Message) -> None:
        """Send `message` to the subscribers of its topic; never waits."""
        self.forward(encode(message))

    def forward(self, data: bytes) -> None:
        """Send a message that is encoded already."""
        self._last[data[: data.index(SEPARATOR) + 1]] = data
        self._socket.send(data)

    def serve_late_joiners(self) -> int:
        """Send the last messages to new subscribers: skeletons, states, then poses. Call it often.

        Topic prefixes are answered one at a time and at a bounded rate; one answer serves all that subscribed to the
        prefix in the meantime. So a flood of subscriptions takes a bounded share of the time.

        Returns the number of subscriptions that were read.
        """
        read = 0
        begun_s = now_s = time.monotonic()
        while now_s - begun_s < _READ_FOR_S and self._socket.poll(0):
            frame = self._socket.recv(copy=False)
            request = frame.bytes
            now_s = time.monotonic()
            self.subscriptions += {_SUBSCRIBE: 1, _UNSUBSCRIBE: -1}.get(request[:1], 0)
            if request[:1] == _SUBSCRIBE and self._gate is not None and not self._gate.admits(frame):
                continue
            if request[:1] == _SUBSCRIBE:
                read += 1
                prefix = request[1:]
                if prefix not in self._waiting and any(topic.startswith(prefix) for topic in self._last):
                    self._waiting[prefix] = None
        if self._waiting and now_s >= self._next_answer_s:
            prefix = next(iter(self._waiting))
            del self._waiting[prefix]
            topics = sorted((topic for topic in self._last if topic.startswith(prefix)), key=_order)
            for topic in topics:
                self._socket.send(self._last[topic])
            self._next_answer_s = now_s + _ANSWER_EVERY_S + len(topics) * _ANSWER_MESSAGE_S
        return read

    def keep_only(self, sources: Container[str], reported: Container[str]) -> None:
        """Forget stored messages of sources that are not in `sources`; sources in `reported` keep their states."""
        for topic in list(self._last):
            prefix, _, name = topic.removesuffix(SEPARATOR).decode().partition("/")
            if name not in (reported if f"{prefix}/" == STATUS else sources):
                del self._last[topic]

    def close(self) -> None:
        """Close the socket. Wait for at most `linger_s` until its messages are sent."""
        self._socket.close()
        if self._gate is not None:
            self._gate.close()
        self._context.destroy()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _order(topic: bytes) -> tuple[bool, bytes]:
    """Sort key: poses come last, so that a subscriber already has the skeletons and the states."""
    return topic.startswith(POSES.encode()), topic
