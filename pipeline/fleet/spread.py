"""Which worker has which camera. Decisions only: nothing here opens a socket or speaks with Ray.

A camera goes to the worker with the most capacity left. Whoever is overloaded gives cameras to whoever has room. A
worker from which nothing is heard of one of its cameras loses all of them; it gets cameras again once it answers, and
before all others only where it has not failed more often than they have.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.fleet.config import Camera
from xpose_client.messages import StatusMessage


@dataclass
class Stay:
    """A camera and where it is.

    Attributes:
        worker: number of the worker; None while it waits for one.
        session: of this stay; 0 before the first.
        heard_s: when it was heard last, or given to the worker; seconds of `time.monotonic()`.
        status: its last status message of this stay.
        moves: how often it went to another worker.
        error: why the worker could not add it; None otherwise.
    """

    camera: Camera
    worker: int | None = None
    session: int = 0
    heard_s: float = 0.0
    status: StatusMessage | None = None
    moves: int = 0
    error: str | None = None


@dataclass
class Room:
    """A worker that takes cameras.

    Attributes:
        capacity_fps: frames per second that its engine sustains.
        losses: how often its cameras had to leave.
        left_fps: capacity that no camera needs; below 0 where it has too many. `place` works it out.
    """

    capacity_fps: float
    losses: int = 0
    left_fps: float = 0.0


@dataclass(frozen=True)
class Move:
    """A camera that goes to a worker, away from another one (`old`), if it was anywhere."""

    name: str
    stay: Stay
    old: int | None


@dataclass
class Spread:
    """Cameras and workers.

    Args:
        silence_s: a camera that is not heard for this long has lost its worker.
    """

    silence_s: float
    stays: dict[str, Stay] = field(default_factory=dict)
    ready: dict[int, Room] = field(default_factory=dict)
    _losses: dict[int, int] = field(default_factory=dict)
    _session: int = 0

    def set_cameras(self, cameras: Mapping[str, Camera]) -> dict[str, Stay]:
        """Take a new list of cameras; return those that have to leave their workers: removed, or of another address."""
        left = {}
        for name, stay in list(self.stays.items()):
            camera = cameras.get(name)
            if camera is not None and camera.address == stay.camera.address:
                stay.camera = camera
                continue
            left[name] = self.stays.pop(name)
        for name, camera in cameras.items():
            if name not in self.stays:
                self.stays[name] = Stay(camera, moves=left[name].moves if name in left else 0)
        return left

    def worker_ready(self, number: int, capacity_fps: float) -> None:
        """A worker takes cameras from now on."""
        self.ready[number] = Room(capacity_fps, self._losses.get(number, 0))

    def worker_lost(self, number: int) -> None:
        """A worker takes no cameras any more; those that it has wait for another one."""
        if self.ready.pop(number, None) is not None:
            self._losses[number] = self._losses.get(number, 0) + 1
        for stay in self.stays.values():
            if stay.worker == number:
                stay.worker, stay.status = None, None

    def heard(self, status: StatusMessage, now_s: float) -> None:
        """A status message came; one of an older stay says nothing."""
        stay = self.stays.get(status.source)
        if stay is not None and stay.worker is not None and status.session == stay.session:
            stay.heard_s, stay.status = now_s, status

    def excuse(self, pause_s: float) -> None:
        """Nobody could be heard for `pause_s`: nobody was silent then."""
        for stay in self.stays.values():
            stay.heard_s += pause_s

    def silent(self, now_s: float) -> set[int]:
        """Return the workers that are not heard of one of their cameras."""
        return {
            stay.worker
            for stay in self.stays.values()
            if stay.worker is not None and stay.error is None and now_s - stay.heard_s > self.silence_s
        }

    def place(self, now_s: float) -> list[Move]:
        """Give a worker to each camera that waits, and relieve who has too many; return what changed."""
        for number, room in self.ready.items():
            room.left_fps = room.capacity_fps - self.load_fps(number)
        moves = []
        for name, stay in self.stays.items():
            if stay.worker is None and self.ready:
                moves.append(self._move(name, stay, self._best(stay.camera.rate), now_s))
        for number, room in self.ready.items():
            for name, stay in self.stays.items():
                if room.left_fps >= 0:
                    break
                if stay.worker == number:
                    best = self._best(stay.camera.rate)
                    if self.ready[best].left_fps >= stay.camera.rate:
                        moves.append(self._move(name, stay, best, now_s))
        return moves

    def load_fps(self, number: int) -> float:
        """Frames per second that the cameras of a worker need."""
        return sum(stay.camera.rate for stay in self.stays.values() if stay.worker == number)

    def _move(self, name: str, stay: Stay, number: int, now_s: float) -> Move:
        old = stay.worker
        if old is not None:
            self.ready[old].left_fps += stay.camera.rate
        self.ready[number].left_fps -= stay.camera.rate
        stay.moves += stay.session > 0
        self._session = max(time.time_ns(), self._session + 1)
        stay.worker, stay.session, stay.heard_s, stay.status, stay.error = number, self._session, now_s, None, None
        return Move(name, stay, old)

    def _best(self, rate: float) -> int:
        """Return the best worker for a camera: one with room for it, of few losses, with the most room."""

        def goodness(number: int) -> tuple[bool, int, float]:
            room = self.ready[number]
            return room.left_fps >= rate, -room.losses, room.left_fps

        return max(self.ready, key=goodness)
