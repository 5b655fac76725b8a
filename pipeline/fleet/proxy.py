"""One address for the subscribers of all workers: a proxy process between the workers' publishers and the subscribers.

It subscribes to everything that the workers publish and forwards it with a `Publisher`, so a subscriber that joins late
gets the skeletons, the states and the last poses of every camera. For each camera it forwards only the newest session.
So a worker that was disconnected while its camera moved to another worker cannot add old messages.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
from collections.abc import Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import msgspec
import zmq

from pipeline.errors import ERRORS, PublishError
from pipeline.keys import ServerKeys
from pipeline.outputs.publisher import PublishConfig, Publisher
from xpose_client.keys import load_client_keys
from xpose_client.messages import SEPARATOR

FLEET_KEY = "fleet.key"

_LATE_JOINER_WAIT_MS = 20
_LONGEST_RECONNECT_MS = 1000
_MOST_AT_ONCE = 200  # messages that are forwarded before other work is done
_WORKERS_QUEUE = 10_000  # messages of one worker that may wait while the proxy is busy


class Proxy:
    """Starts the proxy process and controls it. The proxy ends with the process that starts it.

    Args:
        keys: key folder of the fleet; "" for no keys. The proxy uses it on both sides: it accepts subscribers as `run`
            does, and connects to the workers as the client `fleet`.

    Raises:
        ConfigError: other machines can reach the address, and there are no keys.
        PublishError: the address cannot be bound.
        KeyFileError: the keys cannot be used.
    """

    def __init__(self, config: PublishConfig, keys: str = "") -> None:
        if not keys:
            config.require_keys()
        self._config = config
        self._keys = keys
        self._wanted = _Wanted(frozenset(), frozenset())
        self._start()

    @property
    def endpoint(self) -> str:
        """The address that was bound."""
        return self._config.endpoint

    @property
    def pid(self) -> int:
        """Process id of the proxy."""
        return self._process.pid or 0

    def follow(self, workers: Iterable[str], cameras: Iterable[str]) -> None:
        """Forward the messages of these workers (addresses); late joiners get the last messages of these cameras."""
        wanted = _Wanted(frozenset(workers), frozenset(cameras))
        if wanted != self._wanted:
            self._wanted = wanted
            self._commands.send(wanted)

    def revive(self) -> bool:
        """Start the process again if it has died; return whether it has died."""
        if self._process.is_alive():
            return False
        self._commands.close()
        self._start()
        self._commands.send(self._wanted)
        return True

    def close(self) -> None:
        """End the process after it has forwarded the messages that came."""
        self._commands.close()
        self._process.join()

    def _start(self) -> None:
        self._commands, commands = multiprocessing.Pipe()
        self._process = multiprocessing.get_context("spawn").Process(
            target=_serve, args=(self._config, self._keys, commands), name="fleet proxy", daemon=True
        )
        self._process.start()
        commands.close()
        try:
            answer = self._commands.recv()
        except EOFError as error:
            raise PublishError(f"{self._config.endpoint}: the proxy ended at its start") from error
        if isinstance(answer, Exception):
            raise answer
        self._config = dataclasses.replace(self._config, endpoint=answer)


@dataclass(frozen=True)
class _Wanted:
    """Orders for the proxy: the addresses of the workers, and the names of the cameras."""

    workers: frozenset[str]
    cameras: frozenset[str]


class NewestSession:
    """Accepts only messages of each camera's newest session."""

    def __init__(self) -> None:
        self._newest: dict[bytes, int] = {}
        self._decoder = msgspec.msgpack.Decoder(_Session)

    def allows(self, data: bytes) -> bool:
        """Whether a message belongs to the newest session of its camera; False for other bytes."""
        topic, separator, body = data.partition(SEPARATOR)
        source = topic.partition(b"/")[2]
        try:
            session = self._decoder.decode(body).session
        except (msgspec.DecodeError, UnicodeDecodeError):
            return False
        newest = self._newest.get(source, 0)
        if not separator or session < newest:
            return False
        self._newest[source] = session
        return True


class _Session(msgspec.Struct):
    """The only field that the proxy reads from every message."""

    session: int


def listening_socket(context: zmq.Context[zmq.Socket[bytes]], keys: str) -> zmq.Socket[bytes]:
    """Make a SUB socket for the fleet's own use. If there are keys, it is the client `fleet`.

    Args:
        keys: key folder; "" for no keys.
    Raises:
        KeyFileError: the folder has no usable `fleet.key`.
    """
    client = load_client_keys(Path(keys).expanduser() / FLEET_KEY) if keys else None
    socket = context.socket(zmq.SUB)
    socket.setsockopt(zmq.IPV6, 1)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, _LONGEST_RECONNECT_MS)
    if client is not None:
        client.apply_to(socket)
    return socket


def _serve(config: PublishConfig, keys: str, commands: Connection) -> None:
    """Run until the other end of `commands` is closed."""
    context = zmq.Context()
    try:
        workers = listening_socket(context, keys)
        workers.setsockopt(zmq.RCVHWM, _WORKERS_QUEUE)
        workers.subscribe(b"")
        with Publisher(config, ServerKeys(keys) if keys else None) as publisher:
            commands.send(publisher.endpoint)
            _forward(publisher, workers, commands)
    except ERRORS as error:
        commands.send(error)
    except KeyboardInterrupt:  # the terminal sends it to this process as well
        pass
    finally:
        context.destroy(linger=0)


def _forward(publisher: Publisher, workers: zmq.Socket[bytes], commands: Connection) -> None:
    connected: frozenset[str] = frozenset()
    sessions = NewestSession()
    poller = zmq.Poller()
    poller.register(workers, zmq.POLLIN)
    poller.register(commands.fileno(), zmq.POLLIN)
    while True:
        ready = dict(poller.poll(_LATE_JOINER_WAIT_MS))
        if workers in ready:
            for _ in range(_MOST_AT_ONCE):
                try:
                    data = workers.recv(zmq.NOBLOCK)
                except zmq.Again:
                    break
                if sessions.allows(data):
                    publisher.forward(data)
        if commands.fileno() in ready:
            try:
                wanted: _Wanted = commands.recv()
            except (EOFError, OSError):
                return
            for endpoint in connected - wanted.workers:
                workers.disconnect(endpoint)
            for endpoint in wanted.workers - connected:
                workers.connect(endpoint)
            connected = wanted.workers
            publisher.keep_only(wanted.cameras, wanted.cameras)
        publisher.serve_late_joiners()
