"""A publisher for tests of the client: a bare ZeroMQ socket that knows when somebody has subscribed."""

from __future__ import annotations

import time
from types import TracebackType

import zmq

from xpose_client.messages import Message, encode
from xpose_client.subscriber import PoseSubscriber


class Sender:
    """Sends messages on a port of its own, or on `endpoint`."""

    def __init__(self, endpoint: str = "tcp://127.0.0.1:*") -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.XPUB)
        self._socket.setsockopt(zmq.XPUB_VERBOSE, 1)
        self._socket.setsockopt(zmq.IPV6, "[" in endpoint)
        self._socket.bind(endpoint)
        self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def connect(self, *, source: str | None = None, conflate: bool = False) -> PoseSubscriber:
        """Return a subscriber whose three subscriptions have arrived, so that it misses nothing from now on."""
        subscriber = PoseSubscriber(self.endpoint, source=source, conflate=conflate)
        self.await_subscriptions(3, subscriber)
        return subscriber

    def await_subscriptions(self, count: int, subscriber: PoseSubscriber | None = None) -> None:
        """Wait for `count` subscriptions; fail after 5 s.

        ZeroMQ subscribes again after a reconnection when the subscriber is next used, so it is asked meanwhile.
        """
        deadline_s = time.monotonic() + 5
        while count > 0:
            assert time.monotonic() < deadline_s, f"{count} subscriptions did not come"
            assert subscriber is None or subscriber.receive(0) is None
            if self._socket.poll(50):
                count -= self._socket.recv()[:1] == b"\x01"

    def send(self, *messages: Message | bytes) -> None:
        """Send messages, or bytes as they are."""
        for message in messages:
            self._socket.send(message if isinstance(message, bytes) else encode(message))

    def close(self) -> None:
        self._context.destroy(linger=0)

    def __enter__(self) -> Sender:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
