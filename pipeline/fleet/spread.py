"""Decides which worker runs which camera. Nothing here opens a socket or calls Ray.

A camera is given to the worker with the most free capacity. An overloaded worker gives cameras to workers with free
capacity. If no states of one of its cameras come, a worker loses all its cameras. It gets cameras again when it
answers; workers that have failed less often are preferred.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.fleet.config import Camera
from xpose_client.messages import StatusMessage


@dataclass
class Stay:
    """A camera and its present stay on a worker.

    Attributes:
        worker: number of the worker; None while the camera waits for one.
        session: session number of this stay; 0 before the first.
        heard_s: time of its last status message, or when it was given to the worker; seconds of `time.monotonic()`.
        status: its last status message of this stay.
        moves: how often it was moved to another worker.
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
        losses: how often its cameras were taken away.
        left_fps: free capacity; below 0 if the worker is overloaded. `place` computes it.
    """

    capacity_fps: float
    losses: int = 0
    left_fps: float = 0.0


@dataclass(frozen=True)
class Move:
    """A camera that moves to a worker, from the worker `old` if it had one."""

    name: str
    stay: Stay
    old: int | None


@dataclass
class Spread:
    """Cameras and workers.

    Args:
        silence_s: if no status message of a camera comes for this long, its worker counts as lost.
    """

    silence_s: float
    stays: dict[str, Stay] = field(default_factory=dict)
    ready: dict[int, Room] = field(default_factory=dict)
    _losses: dict[int, int] = field(default_factory=dict)
    _session: int = 0

    def set_cameras(self, cameras: Mapping[str, Camera]) -> dict[str, Stay]:
        """Set the list of cameras. Return those that must be stopped: removed ones, and those with a new address."""
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
        """Note that a worker takes cameras from now on."""
        self.ready[number] = Room(capacity_fps, self._losses.get(number, 0))

    def worker_lost(self, number: int) -> None:
        """Note that a worker takes no cameras any more. Its cameras wait for another worker."""
        if self.ready.pop(number, None) is not None:
            self._losses[number] = self._losses.get(number, 0) + 1
        for stay in self.stays.values():
            if stay.worker == number:
                stay.worker, stay.status = None, None

    def heard(self, status: StatusMessage, now_s: float) -> None:
        """Take a status message. Messages of older stays are ignored."""
        stay = self.stays.get(status.source)
        if stay is not None and stay.worker is not None and status.session == stay.session:
            stay.heard_s, stay.status = now_s, status

    def excuse(self, pause_s: float) -> None:
        """Do not count the last `pause_s` as silence, because no message could be received in this time."""
        for stay in self.stays.values():
            stay.heard_s += pause_s

    def silent(self, now_s: float) -> set[int]:
        """Return the workers for which the status messages of a camera have stopped."""
        return {
            stay.worker
            for stay in self.stays.values()
            if stay.worker is not None and stay.error is None and now_s - stay.heard_s > self.silence_s
        }

    def place(self, now_s: float) -> list[Move]:
        """Give a worker to each waiting camera, and move cameras away from overloaded workers; return the moves."""
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
        """Return the best worker for a camera: by room for it, then by fewest losses, then by most free capacity."""

        def goodness(number: int) -> tuple[bool, int, float]:
            room = self.ready[number]
            return room.left_fps >= rate, -room.losses, room.left_fps

        return max(self.ready, key=goodness)
