"""Queues: bounds, order, policies, and that no thread waits for ever."""

import threading
import time

import pytest

from pipeline.flow.queues import BoundedQueue, FanIn, QueueClosed

pytestmark = pytest.mark.timeout(20)


def in_background(action: object) -> threading.Thread:
    thread = threading.Thread(target=action, daemon=True)  # type: ignore[arg-type]
    thread.start()
    return thread


def test_blocking_queue_loses_nothing_and_keeps_the_order() -> None:
    queue: BoundedQueue[int] = BoundedQueue(3)

    def produce() -> None:
        for number in range(500):
            queue.put(number)
        queue.close()

    in_background(produce)
    assert [queue.get() for _ in range(500)] == list(range(500))
    with pytest.raises(QueueClosed):
        queue.get()


def test_blocking_queue_makes_its_producer_wait_at_capacity() -> None:
    queue: BoundedQueue[int] = BoundedQueue(2)
    done = threading.Event()

    def produce() -> None:
        for number in range(3):
            queue.put(number)
        done.set()

    in_background(produce)
    assert not done.wait(0.2)
    assert queue.get() == 0
    assert done.wait(2)


def test_drop_oldest_keeps_the_newest_and_reports_every_drop() -> None:
    dropped: list[int] = []
    queue: BoundedQueue[int] = BoundedQueue(2, "drop_oldest", on_drop=dropped.append)
    for number in range(5):
        queue.put(number)
    assert dropped == [0, 1, 2]
    assert [queue.get(), queue.get()] == [3, 4]


def test_closing_wakes_a_waiting_producer_and_a_waiting_consumer() -> None:
    full: BoundedQueue[int] = BoundedQueue(1)
    full.put(0)
    empty: BoundedQueue[int] = BoundedQueue(1)
    ended: list[str] = []

    def produce() -> None:
        with pytest.raises(QueueClosed):
            full.put(1)
        ended.append("producer")

    def consume() -> None:
        with pytest.raises(QueueClosed):
            empty.get()
        ended.append("consumer")

    threads = [in_background(produce), in_background(consume)]
    time.sleep(0.1)
    full.close()
    empty.close()
    for thread in threads:
        thread.join(2)
    assert sorted(ended) == ["consumer", "producer"]


def test_closed_queue_hands_out_what_waits_and_an_aborted_one_does_not() -> None:
    queue: BoundedQueue[int] = BoundedQueue(2)
    queue.put(1)
    queue.close()
    assert queue.get() == 1
    other: BoundedQueue[int] = BoundedQueue(2)
    other.put(1)
    assert other.abort() == [1]
    with pytest.raises(QueueClosed):
        other.get()


def test_get_with_a_timeout_returns_none_when_nothing_comes() -> None:
    assert BoundedQueue[int](1).get(timeout_s=0.01) is None


def test_fan_in_serves_its_queues_in_turn_and_ends_when_all_are_closed() -> None:
    changed = threading.Condition()
    queues: list[BoundedQueue[str]] = [BoundedQueue(9, changed=changed) for _ in range(3)]
    for queue, letters in zip(queues, ("aaaa", "b", "cc"), strict=True):
        for number, letter in enumerate(letters):
            queue.put(f"{letter}{number}")
        queue.close()
    fan_in = FanIn(queues)
    assert fan_in.take(4) == ["a0", "b0", "c0", "a1"]
    assert fan_in.take(4) == ["c1", "a2", "a3"]
    assert fan_in.take(4) == []


def test_fan_in_waits_for_whichever_queue_is_first() -> None:
    changed = threading.Condition()
    queues: list[BoundedQueue[int]] = [BoundedQueue(1, changed=changed) for _ in range(2)]
    threading.Timer(0.1, queues[1].put, [7]).start()
    assert FanIn(queues).take(4) == [7]


def test_fan_in_refuses_queues_that_it_could_not_wait_for() -> None:
    with pytest.raises(ValueError, match="share one condition"):
        FanIn([BoundedQueue[int](1), BoundedQueue[int](1)])


def test_queue_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        BoundedQueue[int](0)
