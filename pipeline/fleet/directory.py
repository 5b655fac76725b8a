"""The directory of a fleet: it tells which worker has which camera. Every client that may subscribe may ask; nothing
can be changed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
import zmq

from pipeline.errors import ConfigError, PublishError
from pipeline.keys import ServerKeys
from pipeline.outputs.endpoints import bind, check_endpoint, require_local
from pipeline.outputs.gate import Gate
from xpose_client.keys import load_client_keys

_OPTION = "directory"
_LINGER_MS = 200
_QUESTION = b"status"


class CameraEntry(msgspec.Struct, frozen=True):
    """One camera.

    Attributes:
        worker: number of its worker; null while no worker has it.
        session: session of its messages from this worker.
        state: as in its status messages; "waiting" while no worker has it, "starting" before the first message.
        frame_rate: frames per second that come from it.
        endpoint: address at which its worker publishes; "" while no worker has it.
        moves: how often it was moved to another worker.
        error: the last error; null if there was none.
    """

    name: str
    worker: int | None
    session: int
    state: str
    frame_rate: float
    endpoint: str
    moves: int
    error: str | None


class WorkerEntry(msgspec.Struct, frozen=True):
    """One worker.

    Attributes:
        state: "ready", "starting", "silent" (nothing is received from it; its cameras were moved) or "failed".
        host: address of its machine; "" before it is ready.
        node: Ray's id of its machine.
        pid: its process.
        endpoint: address at which it publishes; "" before it is ready.
        control: its control socket; "" if it has none.
        capacity_fps: frames per second that its engine sustains.
        load_fps: frames per second that its cameras need.
        error: why it failed; null if it did not.
    """

    number: int
    state: str
    host: str
    node: str
    pid: int
    endpoint: str
    control: str
    capacity_fps: float
    load_fps: float
    error: str | None


class FleetEntry(msgspec.Struct, frozen=True):
    """A whole fleet.

    Attributes:
        publish: the address for subscribers of all cameras.
    """

    publish: str
    cameras: list[CameraEntry]
    workers: list[WorkerEntry]


class Directory:
    """A bound REP socket. Belongs to the thread that makes it.

    Args:
        keys: keys of the clients that may ask; None for everybody on this machine.

    Attributes:
        endpoint: the address that was bound.

    Raises:
        ConfigError: the address is malformed, or other machines can reach it and there are no keys.
        PublishError: the address cannot be bound.
    """

    def __init__(self, endpoint: str, keys: ServerKeys | None = None) -> None:
        check_endpoint(_OPTION, endpoint)
        if keys is None:
            require_local(_OPTION, endpoint)
        self._context = zmq.Context()
        self.socket: zmq.Socket[bytes] = self._context.socket(zmq.REP)
        self._gate = None if keys is None else Gate(self.socket, keys, "directory")
        try:
            bind(_OPTION, self.socket, endpoint)
        except PublishError:
            self.close()
            raise
        self.endpoint = self.socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def answer(self, entry: Callable[[], FleetEntry]) -> None:
        """Answer a waiting question, if there is one."""
        if self.socket.poll(0):
            self.socket.recv_multipart()
            self.socket.send(msgspec.json.encode(entry()))

    def close(self) -> None:
        """Close the socket."""
        self.socket.close(linger=_LINGER_MS)
        if self._gate is not None:
            self._gate.close()
        self._context.term()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def ask(endpoint: str, timeout_s: float = 3.0, keys: str | Path | None = None) -> FleetEntry:
    """Ask a directory.

    Args:
        keys: key file of this client, if the fleet uses keys.
    Raises:
        KeyFileError: the key file cannot be used.
        ConfigError: the address is malformed, or no answer comes.
    """
    with zmq.Context() as context, context.socket(zmq.REQ) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        if keys is not None:
            load_client_keys(keys).apply_to(socket)
        try:
            socket.connect(endpoint)
        except zmq.ZMQError as error:
            raise ConfigError(f"{endpoint}: is not a ZeroMQ address; give tcp://ADDRESS:PORT") from error
        socket.send(_QUESTION)
        if not socket.poll(round(timeout_s * 1000)):
            raise ConfigError(f"{endpoint}: no fleet answers within {timeout_s:g} s; give the address of `directory`")
        return msgspec.json.decode(socket.recv(), type=FleetEntry)
