"""The gate of a socket that uses keys: it accepts clients, disconnects revoked ones, and counts refused ones.

ZeroMQ asks a handler (ZAP, https://rfc.zeromq.org/spec/27) about each client during its CURVE handshake, and not later.
A client whose key was revoked must be disconnected at once. So the gate remembers the connection of each client that
has sent a message, and closes it. The client connects again by itself, and is refused.

The answer to a refused client is "temporary failure" (status 300), so that it tries again and is accepted after its key
was added. After status 400 it would never try again.
"""

from __future__ import annotations

import itertools
import logging
import os
import socket as sockets
import threading
import time
from typing import Any

import zmq
from zmq.utils import z85
from zmq.utils.monitor import parse_monitor_message

from pipeline.keys import ServerKeys

_log = logging.getLogger(__name__)

_ZAP_ENDPOINT = "inproc://zeromq.zap.01"
_CHECK_EVERY_MS = 100  # how soon a change of the allow-list is noticed
_HANDSHAKE_MS = 2000  # a client that is not accepted within this time is disconnected, and tries again
_LOG_EVERY_S = 10.0
_REFUSED = zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_AUTH
_numbers = itertools.count(1)


class Gate:
    """Accepts the clients of an allow-list and counts the others.

    Make it before the socket is bound, and close it after the socket. The handler has a thread of its own. The other
    methods are for the thread that owns the socket.

    Args:
        socket: not bound yet; its context has no other gate.
        keys: the keys of the pipeline.
        what: name of the socket in the log.
    """

    def __init__(self, socket: zmq.Socket[Any], keys: ServerKeys, what: str) -> None:
        self._keys = keys
        self._what = what
        self._context = socket.context
        self._monitor = f"inproc://gate-{next(_numbers)}"
        self._connections: dict[int, tuple[int, str]] = {}  # by file descriptor: its inode and the client's key
        self._lock = threading.Lock()
        self._logged_s = -_LOG_EVERY_S
        self._ready, self._closing = threading.Event(), threading.Event()
        socket.curve_server = True
        socket.curve_secretkey = keys.pair.secret.encode()
        socket.setsockopt(zmq.ZAP_DOMAIN, what.encode())
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # without a handler nobody is let in
        socket.setsockopt(zmq.HANDSHAKE_IVL, _HANDSHAKE_MS)
        socket.monitor(self._monitor, _REFUSED)
        self._thread = threading.Thread(target=self._run, name=f"gate of {what}", daemon=True)
        self._thread.start()
        self._ready.wait()

    def admits(self, message: zmq.Frame) -> bool:
        """Whether the sender of a received message is still allowed. If not, its connection is closed."""
        try:
            key, descriptor = str(message.get("User-Id")), int(message.get(zmq.SRCFD))
        except zmq.ZMQError:
            return False  # made by the socket itself: the sender is gone
        with self._lock:
            self._remember(key, descriptor)
        if self._keys.allowed.name_of(key) is not None:
            return True
        self._cut_off()
        return False

    def close(self) -> None:
        """End the handler."""
        self._closing.set()
        self._thread.join()

    def _remember(self, key: str, descriptor: int) -> None:
        try:
            self._connections[descriptor] = (os.fstat(descriptor).st_ino, key)
        except OSError:
            self._connections.pop(descriptor, None)  # closed since

    def _run(self) -> None:
        with self._context.socket(zmq.REP) as handler, self._context.socket(zmq.PAIR) as monitor:
            handler.linger = monitor.linger = 0
            handler.bind(_ZAP_ENDPOINT)
            monitor.connect(self._monitor)
            self._ready.set()
            poller = zmq.Poller()
            for socket in (handler, monitor):
                poller.register(socket, zmq.POLLIN)
            while not self._closing.is_set():
                for socket, _ in poller.poll(_CHECK_EVERY_MS):
                    if socket is handler:
                        handler.send_multipart(self._reply(handler.recv_multipart()))
                    elif parse_monitor_message(monitor.recv_multipart())["event"] & _REFUSED:
                        self._count_refused()
                self._cut_off()

    def _reply(self, request: list[bytes]) -> list[bytes]:
        """Answer the question whether a client may connect."""
        mechanism, credentials = request[5], request[6:]
        key = z85.encode(credentials[0]) if mechanism == b"CURVE" and credentials else b""
        if self._keys.allowed.name_of(key.decode()) is None:
            return [b"1.0", request[1], b"300", b"not allowed", b"", b""]
        return [b"1.0", request[1], b"200", b"OK", key, b""]

    def _count_refused(self) -> None:
        self._keys.count_refused()
        if time.monotonic() - self._logged_s >= _LOG_EVERY_S:
            self._logged_s = time.monotonic()
            count = self._keys.refused
            _log.warning("%s: refused a client without an allowed key (%d attempts so far)", self._what, count)

    def _cut_off(self) -> None:
        """Close the connections of clients that are not allowed any more."""
        with self._lock:
            for descriptor, (inode, key) in list(self._connections.items()):
                if self._keys.allowed.name_of(key) is None:
                    del self._connections[descriptor]
                    _shut(descriptor, inode)
                    _log.info("%s: a client was cut off, because its key was taken away", self._what)


def _shut(descriptor: int, inode: int) -> None:
    """Shut a connection that ZeroMQ owns, if the descriptor is still that connection's.

    ZeroMQ has no call for this. The duplicate keeps the connection from being replaced between the check and the end.
    """
    try:
        duplicate = os.dup(descriptor)
    except OSError:
        return  # closed since
    try:
        if os.fstat(duplicate).st_ino == inode:
            with sockets.socket(fileno=os.dup(duplicate)) as connection:
                connection.shutdown(sockets.SHUT_RDWR)
    except OSError:
        pass  # the client was faster
    finally:
        os.close(duplicate)
