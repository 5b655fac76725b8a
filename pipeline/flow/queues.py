"""Bounded queues between stages.

A live source must never wait for a slow stage, so `drop_oldest` discards the stalest item and hands it to `on_drop`,
which counts it; a file must lose nothing, so `block` waits. Closing a queue wakes both ends: no thread waits for ever.

Several queues may share one condition: a `FanIn` then waits for all of them at once and serves them in turn.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, Literal, TypeVar

Item = TypeVar("Item")
Policy = Literal["block", "drop_oldest"]


class QueueClosed(Exception):
    """The other end is gone: nothing more can be put, or nothing more will come."""


class BoundedQueue(Generic[Item]):
    """A first-in-first-out queue for one or more producers and consumers.

    Args:
        capacity: items that may wait, at least 1.
        policy: what `put` does when they are that many: wait, or discard the oldest.
        on_drop: is handed each item that `drop_oldest` discards, on the producer's thread.
        changed: condition to share with other queues of a `FanIn`; its own one otherwise.
    """

    def __init__(
        self,
        capacity: int,
        policy: Policy = "block",
        *,
        on_drop: Callable[[Item], None] | None = None,
        changed: threading.Condition | None = None,
    ) -> None:
        if capacity < 1:
            raise ValueError(f"a queue needs a capacity of at least 1, got {capacity}")
        self.policy = policy
        self.changed = changed or threading.Condition()
        self._capacity = capacity
        self._on_drop = on_drop
        self._items: deque[Item] = deque()
        self._closed = False

    def put(self, item: Item) -> None:
        """Append `item`; at capacity wait for room, or discard the oldest.

        Raises:
            QueueClosed: the queue is closed, or was closed while waiting.
        """
        dropped: list[Item] = []
        with self.changed:
            if self.policy == "block":
                self.changed.wait_for(lambda: self._closed or len(self._items) < self._capacity)
            if self._closed:
                raise QueueClosed
            while len(self._items) >= self._capacity:
                dropped.append(self._items.popleft())
            self._items.append(item)
            self.changed.notify_all()
        if self._on_drop is not None:
            for old in dropped:
                self._on_drop(old)

    def get(self, timeout_s: float | None = None) -> Item | None:
        """Take the oldest item; None where none came within `timeout_s` (None: wait for ever).

        Raises:
            QueueClosed: the queue is closed and empty.
        """
        with self.changed:
            self.changed.wait_for(lambda: self._closed or bool(self._items), timeout_s)
            if self._items:
                return self._pop()
            if self._closed:
                raise QueueClosed
            return None

    def close(self) -> None:
        """Let nothing more in; what waits can still be taken. May be called again."""
        with self.changed:
            self._closed = True
            self.changed.notify_all()

    def abort(self) -> list[Item]:
        """Close, and return what was waiting: nothing is left to take."""
        with self.changed:
            waiting = list(self._items)
            self._items.clear()
            self._closed = True
            self.changed.notify_all()
        return waiting

    def __len__(self) -> int:
        return len(self._items)

    def _pop(self) -> Item:
        item = self._items.popleft()
        self.changed.notify_all()
        return item


class FanIn(Generic[Item]):
    """The consuming end of several queues, served in turn so that none starves.

    Args:
        queues: queues that share one condition.
    """

    def __init__(self, queues: Sequence[BoundedQueue[Item]]) -> None:
        if not queues:
            raise ValueError("a fan-in needs at least one queue")
        if any(queue.changed is not queues[0].changed for queue in queues):
            raise ValueError("the queues of a fan-in must share one condition: pass `changed` to each of them")
        self._queues = tuple(queues)
        self._changed = queues[0].changed
        self._turn = 0

    def take(self, limit: int) -> list[Item]:
        """Wait for an item, then take at most `limit`, one from each queue in turn until all are empty.

        Returns an empty list once every queue is closed and empty. Items of one queue keep their order.
        """
        with self._changed:
            self._changed.wait_for(lambda: any(q._items for q in self._queues) or all(q._closed for q in self._queues))
            taken: list[Item] = []
            empty_in_a_row = 0
            while len(taken) < limit and empty_in_a_row < len(self._queues):
                queue = self._queues[self._turn]
                self._turn = (self._turn + 1) % len(self._queues)
                if queue._items:
                    taken.append(queue._pop())
                    empty_in_a_row = 0
                else:
                    empty_in_a_row += 1
            return taken
