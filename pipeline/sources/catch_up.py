"""How a late source catches up: it skips waiting packets, or connects again if no packets are waiting."""

from __future__ import annotations

import time
from collections.abc import Iterator

import av
from av.video.stream import VideoStream

_STAYS_LATE_S = 1.0
"""A source that is late for this long without waiting packets connects again."""

_BETWEEN_CONNECTIONS_S = 2.0
_BETWEEN_CONNECTIONS_LONGEST_S = 60.0
_MOST_WAITING = 1000  # packets; after so many without a key frame, all of them are decoded


class CatchUp:
    """Decides, from the age of each picture, which packets to skip and when to connect again.

    Attributes:
        age_s: age of the newest picture when it was decoded.
        skipped: number of packets that were skipped.
    """

    def __init__(self) -> None:
        self.age_s = 0.0
        self.skipped = 0
        self._late_since_s: float | None = None
        self._connected_s = time.monotonic()
        self._wait_s = _BETWEEN_CONNECTIONS_S
        self._held: list[av.Packet[VideoStream]] = []

    def connect(self) -> None:
        """Begin a new connection."""
        self._held.clear()
        self._late_since_s = None
        self._connected_s = time.monotonic()

    def picture(self, age_s: float, budget_s: float) -> None:
        """Note the age of a decoded picture; a budget of 0 allows every age."""
        self.age_s = age_s
        if budget_s <= 0 or age_s <= budget_s:
            self._late_since_s = None
            self._wait_s = _BETWEEN_CONNECTIONS_S
        elif self._late_since_s is None:
            self._late_since_s = time.monotonic()

    def take(self, packet: av.Packet[VideoStream], *, waiting: bool) -> Iterator[av.Packet[VideoStream]]:
        """Yield the packets to decode now.

        Args:
            packet: the next packet.
            waiting: the packet had already arrived when it was requested, so more may be waiting.
        """
        if self._late_since_s is None and not self._held:
            yield packet
            return
        if packet.is_keyframe:
            self.skipped += len(self._held)
            self._held.clear()
        self._held.append(packet)
        if not waiting or len(self._held) > _MOST_WAITING:
            yield from self.rest()

    def rest(self) -> Iterator[av.Packet[VideoStream]]:
        """Yield the packets that were held back."""
        held, self._held = self._held, []
        yield from held

    def must_reconnect(self) -> bool:
        """Whether to connect again because skipping did not help. The time between these connections doubles."""
        now_s = time.monotonic()
        if self._late_since_s is None or self._held:
            return False
        if now_s - self._late_since_s < _STAYS_LATE_S or now_s - self._connected_s < self._wait_s:
            return False
        self._wait_s = min(2 * self._wait_s, _BETWEEN_CONNECTIONS_LONGEST_S)
        return True
