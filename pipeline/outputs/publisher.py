"""Messages out over ZeroMQ, to any number of subscribers, none of which can slow the line down.

An XPUB socket: a subscriber that joins late is sent the skeletons and the last poses of what it subscribed to, so that
it knows at once what the keypoints are. ZeroMQ cannot address one subscriber, so the others see these messages again
with the sequence number that they had; `PoseSubscriber` passes repeats over. A subscriber that does not keep up loses
messages after `send_queue` of them and sees the gap in the sequence numbers.
"""

import errno
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import zmq

from pipeline.errors import ConfigError, PublishError
from xpose_client.messages import SEPARATOR, Message, encode, topic_of

_SUBSCRIBE = b"\x01"
_LARGEST_PORT = 65535
_ALLOWED = "tcp://ADDRESS:PORT such as tcp://127.0.0.1:5555, or ipc://FILE"


@dataclass(frozen=True)
class PublishConfig:
    """Where and how messages go out.

    Attributes:
        endpoint: ZeroMQ address to bind, such as tcp://127.0.0.1:5555, tcp://*:5555 or ipc:///tmp/poses; "" for none.
        send_queue: messages that wait for one slow subscriber before newer ones are lost to it.
        linger_s: longest wait at the end for messages that are still on their way.
    """

    endpoint: str = ""
    send_queue: int = 1000
    linger_s: float = 0.5

    def __post_init__(self) -> None:
        if self.endpoint:
            _check_endpoint(self.endpoint)
        if self.send_queue < 1:
            raise ConfigError(f"publish.send_queue is {self.send_queue}: give 1 message or more")
        if not self.linger_s >= 0:
            raise ConfigError(f"publish.linger_s is {self.linger_s}: give 0 s or more")


class Publisher:
    """A bound XPUB socket. Belongs to the thread that makes it.

    Raises:
        PublishError: the endpoint is malformed, taken, or not one of this machine.
    """

    def __init__(self, config: PublishConfig) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.XPUB)
        self._socket.setsockopt(zmq.XPUB_VERBOSE, 1)  # every subscription is told, not only the first of its prefix
        self._socket.setsockopt(zmq.SNDHWM, config.send_queue)
        self._socket.setsockopt(zmq.LINGER, round(config.linger_s * 1000))
        self._last: dict[bytes, bytes] = {}
        try:
            self._socket.bind(config.endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise PublishError(_explain(config.endpoint, error)) from error

    @property
    def endpoint(self) -> str:
        """The address that was bound, with its port where `tcp://…:*` left the choice to the system."""
        return self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def publish(self, message: Message) -> None:
        """Send `message` to whoever subscribed to its topic; never waits."""
        data = encode(message)
        self._last[topic_of(message).encode() + SEPARATOR] = data
        self._socket.send(data)

    def serve_late_joiners(self) -> int:
        """Send what each new subscription missed: skeletons first, then the last poses. Call it now and then.

        Returns how many subscriptions were new.
        """
        served = 0
        while self._socket.poll(0):
            request = self._socket.recv()
            if request[:1] == _SUBSCRIBE:
                served += 1
                prefix = request[1:]
                for topic in sorted(self._last, reverse=True):  # "skeletons/" before "poses/"
                    if topic.startswith(prefix):
                        self._socket.send(self._last[topic])
        return served

    def close(self) -> None:
        """Close the socket, waiting for messages on their way for at most `linger_s`."""
        self._context.destroy()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _check_endpoint(endpoint: str) -> None:
    """Refuse what ZeroMQ would take and do something else with: ports wrap around, and ipc removes the file there."""
    kind, separator, rest = endpoint.partition("://")
    port = rest.rpartition(":")[2]
    if not separator or kind not in ("tcp", "ipc") or not rest or (kind == "tcp" and ":" not in rest):
        raise ConfigError(f"--publish {endpoint}: is not an address to publish on; give {_ALLOWED}")
    if kind == "tcp" and port != "*" and not (port.isdecimal() and int(port) <= _LARGEST_PORT):
        raise ConfigError(f"--publish {endpoint}: {port!r} is not a port; give a number up to {_LARGEST_PORT}, or *")
    if kind == "ipc" and Path(rest).exists() and not Path(rest).is_socket():
        raise ConfigError(f"--publish {endpoint}: {rest} exists and is not a socket; choose another path")


def _explain(endpoint: str, error: zmq.ZMQError) -> str:
    """One sentence that says what to do about an endpoint that cannot be bound."""
    reasons = {
        errno.EADDRINUSE: "another program uses this address; stop it or choose another port",
        errno.EADDRNOTAVAIL: "no network interface of this machine has this address; take 127.0.0.1 or *",
        errno.ENODEV: "no network interface of this machine has this name; take 127.0.0.1 or *",
        errno.EACCES: "not permitted; take a port from 1024 on, or a folder that you may write to",
        errno.ENOENT: "the folder of this socket does not exist; create it or choose another",
    }
    reason = reasons.get(error.errno or 0, f"cannot be bound ({error.strerror}); give {_ALLOWED}")
    return f"--publish {endpoint}: {reason}"
