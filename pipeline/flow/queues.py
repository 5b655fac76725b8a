"""Bounded queues between stages.

A file must lose nothing, so `put` waits for room. A live source must never wait, so `put` on a `drop_oldest` lane drops
the oldest item. A queue counts what was dropped from it, by source and reason.

A queue is an iterable. After `close`, the iteration ends as soon as the queue is empty. Closing wakes producers and
consumers, so no thread waits for ever.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from pipeline.flow.metrics import NEWER_FRAME, STOPPED, Metrics


class FromSource(Protocol):
    """An item of a queue: it has the name of its source."""

    @property
    def source(self) -> str: ...


Item = TypeVar("Item", bound=FromSource)

_SILENT_S = 1.0
"""If a camera has sent nothing for this long, other frames do not wait for its next one."""


class QueueClosed(Exception):
    """`put` was called on a closed queue. The item will not be taken."""


@dataclass(eq=False)
class Lane(Generic[Item]):
    """The part of a queue that one producer fills. Made by `Queue.lane`."""

    queue: Queue[Item]
    capacity: int
    drop_oldest: bool
    items: deque[tuple[Item, float]] = field(default_factory=deque)  # with the time of `put`
    closed: bool = False
    last_put_s: float = -math.inf

    def put(self, item: Item) -> None:
        """Append `item`. If the lane is full, wait for room or drop the oldest item.

        Raises:
            QueueClosed: the lane is closed, or was closed while waiting. The item counts as dropped.
        """
        with self.queue.changed:
            if not self.drop_oldest:
                self.queue.waiting_producers += 1
                self.queue.changed.wait_for(lambda: self.closed or len(self.items) < self.capacity)
                self.queue.waiting_producers -= 1
            if self.closed:
                self.queue.drop(item, STOPPED)
                raise QueueClosed
            while len(self.items) >= self.capacity:
                self.queue.drop(self.items.popleft()[0], NEWER_FRAME)
            self.last_put_s = time.perf_counter()
            self.items.append((item, self.last_put_s))
            self.queue.changed.notify_all()

    def close(self, *, drop_waiting: bool = False) -> None:
        """Refuse further items. Waiting items can still be taken, unless `drop_waiting` drops them. Idempotent."""
        with self.queue.changed:
            self.closed = True
            while drop_waiting and self.items:
                self.queue.drop(self.items.popleft()[0], STOPPED)
            self.queue.changed.notify_all()


class Queue(Generic[Item]):
    """A queue of several lanes. They are read in turn, so that no lane starves. Lanes may be added at any time.

    Args:
        stage: name of the stage that reads the queue; `metrics` uses this name.
        producers: the queue closes when `close` was called this many times.

    Attributes:
        drops: number of dropped items, by (source, reason).
        taken_s: `time.perf_counter` of the last `take`.
        read: set when a stage begins to read the queue.
        waiting_producers: how many threads wait in `put` for room.
    """

    def __init__(self, stage: str, metrics: Metrics, *, producers: int = 1) -> None:
        self.stage = stage
        self.metrics = metrics
        self.drops: Counter[tuple[str, str]] = Counter()
        self.taken_s = 0.0
        self.read = threading.Event()
        self.changed = threading.Condition()
        self.waiting_producers = 0
        self._working_since_s: dict[int, float] = {}  # by thread; a thread that waits for an item is not here
        self._producers = producers
        self._lanes: deque[Lane[Item]] = deque()
        self._lane_of: dict[str | None, Lane[Item]] = {}
        metrics.watch(stage, lambda: self.drops)

    def lane(self, capacity: int, source: str | None = None, *, drop_oldest: bool = False) -> Lane[Item]:
        """Add a lane for the items of `source`; without a name, for all sources that have no lane of their own.

        A lane is removed when it is closed and empty.

        Raises:
            QueueClosed: the queue is closed.
        """
        if capacity < 1:
            raise ValueError(f"a lane needs a capacity of at least 1, got {capacity}")
        with self.changed:
            if self._producers <= 0:
                raise QueueClosed
            lane = self._lane_of[source] = Lane(self, capacity, drop_oldest)
            self._lanes = deque(other for other in self._lanes if other.items or not other.closed)
            self._lanes.append(lane)
            return lane

    def put(self, item: Item) -> None:
        """Put `item` on the lane of its source; see `Lane.put`."""
        (self._lane_of.get(item.source) or self._lane_of[None]).put(item)

    def take(
        self,
        limit: int = 1,
        timeout_s: float | None = None,
        *,
        gather_s: float = 0.0,
        alike: Callable[[Item], object] | None = None,
    ) -> list[Item]:
        """Wait for an item, then take at most `limit`, one from each lane in turn. Each lane keeps its order.

        Args:
            gather_s: how long an item may wait for items of other live lanes; see `_gather`.
            alike: takes only items for which this returns the same value as for the first item.
        Returns:
            The items. The list is empty if no item came within `timeout_s`, or if the queue has `ended`.
        """
        self.read.set()
        taken: list[Item] = []
        with self.changed:
            self._working_since_s.pop(threading.get_ident(), None)
            self.changed.wait_for(lambda: any(lane.items for lane in self._lanes) or self.ended, timeout_s)
            self._gather(limit, gather_s)
            self.taken_s = time.perf_counter()
            while len(taken) < limit and any(lane.items for lane in self._lanes):
                lane = self._lanes.popleft()
                if lane.items and taken and alike is not None and alike(lane.items[0][0]) != alike(taken[0]):
                    self._lanes.appendleft(lane)
                    break
                if lane.items:
                    item, put_s = lane.items.popleft()
                    taken.append(item)
                    self.metrics.count_in(self.stage, item.source, self.taken_s - put_s)
                if lane.items or not lane.closed:
                    self._lanes.append(lane)
            if taken:
                self._working_since_s[threading.get_ident()] = self.taken_s
            self.changed.notify_all()
        return taken

    def _gather(self, limit: int, gather_s: float) -> None:
        """Wait until there are `limit` items, or one in each busy live lane, or the oldest has waited for `gather_s`.

        It does not wait for files, for removed sources, or for cameras that have been silent for `_SILENT_S`.
        """
        oldest_s = min((lane.items[0][1] for lane in self._lanes if lane.items), default=None)
        if gather_s <= 0 or oldest_s is None:
            return
        now_s = time.perf_counter()
        busy = [lane for lane in self._lanes if lane.drop_oldest and now_s - lane.last_put_s < _SILENT_S]

        def complete() -> bool:
            waiting = sum(len(lane.items) for lane in self._lanes)
            return waiting >= limit or all(lane.items or lane.closed for lane in busy)

        self.changed.wait_for(complete, oldest_s + gather_s - now_s)

    def polled(self, timeout_s: float | None) -> Iterator[Item | None]:
        """Yield each item, and None each time that no item came within `timeout_s`."""
        while (items := self.take(1, timeout_s)) or not self.ended:
            yield items[0] if items else None

    def __iter__(self) -> Iterator[Item]:
        return (item for item in self.polled(None) if item is not None)

    @property
    def ended(self) -> bool:
        """Whether the queue is closed and empty."""
        with self.changed:
            return self._producers <= 0 and all(lane.closed and not lane.items for lane in self._lanes)

    def leave(self) -> None:
        """Note that the calling thread has finished the items that it took."""
        with self.changed:
            self._working_since_s.pop(threading.get_ident(), None)

    def working_s(self) -> float:
        """Return for how long a reader has been working on its items: the longest of all readers, 0 if all wait."""
        with self.changed:
            since_s = min(self._working_since_s.values(), default=None)
        return 0.0 if since_s is None else time.perf_counter() - since_s

    def __len__(self) -> int:
        with self.changed:
            return sum(len(lane.items) for lane in self._lanes)

    def drop(self, item: FromSource, reason: str) -> None:
        """Count an item as dropped."""
        with self.changed:
            self.drops[item.source, reason] += 1

    def close(self, *, drop_waiting: bool = False) -> None:
        """Refuse further items and lanes. Waiting items can still be taken.

        Args:
            drop_waiting: close for all producers, and drop the waiting items.
        """
        with self.changed:
            self._producers = 0 if drop_waiting else self._producers - 1
            for lane in self._lanes if self._producers <= 0 else ():
                lane.close(drop_waiting=drop_waiting)
            self.changed.notify_all()
