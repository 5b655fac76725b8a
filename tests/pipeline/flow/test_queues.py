"""Queues: bounds, order, policies, drops, lanes that come and go, and that no thread waits for ever."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from pipeline.flow.metrics import Metrics
from pipeline.flow.queues import Lane, Queue, QueueClosed

pytestmark = pytest.mark.timeout(20)


@dataclass(frozen=True)
class Item:
    """A numbered item of a source."""

    number: int
    source: str = "cam"


def one_lane(capacity: int, *, drop_oldest: bool = False) -> tuple[Queue[Item], Lane[Item]]:
    queue: Queue[Item] = Queue("stage", Metrics())
    return queue, queue.lane(capacity, drop_oldest=drop_oldest)


def in_background(action: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    return thread


def test_blocking_lane_loses_nothing_and_keeps_the_order() -> None:
    queue, lane = one_lane(3)

    def produce() -> None:
        for number in range(500):
            lane.put(Item(number))
        queue.close()

    in_background(produce)
    assert [item.number for item in queue] == list(range(500))
    assert queue.ended
    assert not queue.drops


def test_blocking_lane_makes_its_producer_wait_at_capacity() -> None:
    queue, lane = one_lane(2)
    done = threading.Event()

    def produce() -> None:
        for number in range(3):
            lane.put(Item(number))
        done.set()

    in_background(produce)
    assert not done.wait(0.2)
    assert queue.take() == [Item(0)]
    assert done.wait(2)


def test_drop_oldest_keeps_the_newest_and_counts_every_drop() -> None:
    queue, lane = one_lane(2, drop_oldest=True)
    for number in range(5):
        lane.put(Item(number))
    assert queue.drops == {("cam", "newer frame"): 3}
    assert queue.take(5) == [Item(3), Item(4)]


def test_closing_wakes_a_waiting_producer_and_a_waiting_consumer() -> None:
    full, lane = one_lane(1)
    lane.put(Item(0))
    empty, _ = one_lane(1)
    ended: list[str] = []

    def produce() -> None:
        with pytest.raises(QueueClosed):
            lane.put(Item(1))
        ended.append("producer")

    def consume() -> None:
        assert list(empty) == []
        ended.append("consumer")

    threads = [in_background(produce), in_background(consume)]
    time.sleep(0.1)
    full.close()
    empty.close()
    for thread in threads:
        thread.join(2)
    assert sorted(ended) == ["consumer", "producer"]
    assert full.drops == {("cam", "stopped"): 1}


def test_closed_queue_hands_out_what_waits_and_an_aborted_one_counts_it_as_dropped() -> None:
    queue, lane = one_lane(2)
    lane.put(Item(1))
    queue.close()
    assert list(queue) == [Item(1)]
    other, lane = one_lane(2)
    lane.put(Item(1))
    other.close(drop_waiting=True)
    assert list(other) == []
    assert other.drops == {("cam", "stopped"): 1}


def test_queue_of_several_producers_closes_with_the_last() -> None:
    queue: Queue[Item] = Queue("stage", Metrics(), producers=2)
    queue.lane(1)
    queue.close()
    queue.put(Item(1))
    queue.close()
    with pytest.raises(QueueClosed):
        queue.put(Item(2))
    assert list(queue) == [Item(1)]


def test_polled_yields_none_while_nothing_comes() -> None:
    queue, lane = one_lane(1)
    polled = queue.polled(0.01)
    assert next(polled) is None
    lane.put(Item(1))
    assert next(polled) == Item(1)
    queue.close()
    assert list(polled) == []


def test_lanes_are_served_in_turn() -> None:
    queue: Queue[Item] = Queue("stage", Metrics())
    for source, count in (("a", 4), ("b", 1), ("c", 2)):
        lane = queue.lane(9)
        for number in range(count):
            lane.put(Item(number, source))
    queue.close()
    names = [[f"{item.source}{item.number}" for item in queue.take(4)] for _ in range(3)]
    assert names == [["a0", "b0", "c0", "a1"], ["c1", "a2", "a3"], []]


def test_lanes_come_and_go_while_the_queue_is_read() -> None:
    queue: Queue[Item] = Queue("stage", Metrics())
    first = queue.lane(1)
    taken: list[Item] = []
    reader = in_background(lambda: taken.extend(queue))
    first.put(Item(1, "a"))
    first.close()
    second = queue.lane(1)
    for number in (2, 3):
        second.put(Item(number, "b"))
    third = queue.lane(1)
    third.put(Item(4, "c"))
    assert reader.is_alive()
    queue.close()
    reader.join(2)
    assert {item.number for item in taken} == {1, 2, 3, 4}
    assert not reader.is_alive()


def test_put_goes_to_the_lane_of_the_source() -> None:
    queue: Queue[Item] = Queue("stage", Metrics())
    queue.lane(1, "live", drop_oldest=True)
    queue.lane(2, "file")
    for number in range(2):
        for source in ("live", "file"):
            queue.put(Item(number, source))
    assert queue.drops == {("live", "newer frame"): 1}
    assert sorted(item.source for item in queue.take(9)) == ["file", "file", "live"]


def test_queue_tells_metrics_what_was_taken_and_dropped_and_how_long_it_waited() -> None:
    metrics = Metrics()
    queue: Queue[Item] = Queue("infer", metrics)
    lane = queue.lane(1, drop_oldest=True)
    lane.put(Item(1))
    lane.put(Item(2))
    time.sleep(0.05)
    queue.take()
    (infer,) = metrics.report()
    assert (infer.frames_in, infer.dropped) == (1, {"newer frame": 1})
    assert infer.waited.largest_s > 0.04


def test_lane_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        one_lane(0)


def live_lanes(count: int) -> tuple[Queue[Item], list[Lane[Item]]]:
    """Lanes of cameras that have each sent a frame, which was taken."""
    queue: Queue[Item] = Queue("stage", Metrics())
    lanes = [queue.lane(1, f"cam{index}", drop_oldest=True) for index in range(count)]
    for index, lane in enumerate(lanes):
        lane.put(Item(0, f"cam{index}"))
    assert len(queue.take(count)) == count
    return queue, lanes


FOR_EVER_S = 1000.0  # a test that waits for so long runs into its time-out


def test_an_item_waits_for_those_of_the_other_cameras() -> None:
    queue, lanes = live_lanes(3)
    taken: list[Item] = []
    lanes[0].put(Item(1, "cam0"))
    reader = in_background(lambda: taken.extend(queue.take(3, gather_s=FOR_EVER_S)))
    lanes[1].put(Item(1, "cam1"))
    reader.join(0.1)
    assert taken == []
    lanes[2].put(Item(1, "cam2"))
    reader.join(10)
    assert {item.source for item in taken} == {"cam0", "cam1", "cam2"}


def test_the_wait_for_other_cameras_is_bounded() -> None:
    queue, lanes = live_lanes(2)
    lanes[0].put(Item(1, "cam0"))
    assert queue.take(2, gather_s=0.05) == [Item(1, "cam0")]


def test_an_item_that_has_waited_for_the_engine_waits_no_longer() -> None:
    queue, lanes = live_lanes(2)
    lanes[0].items.append((Item(1, "cam0"), time.perf_counter() - FOR_EVER_S))
    assert queue.take(2, gather_s=FOR_EVER_S) == [Item(1, "cam0")]


@pytest.mark.parametrize("cameras", [1, 3])
def test_a_call_that_is_full_waits_for_nobody(cameras: int) -> None:
    """With one camera, that is every call."""
    queue, lanes = live_lanes(cameras)
    lanes[0].put(Item(1, "cam0"))
    assert queue.take(1 if cameras > 1 else 4, gather_s=FOR_EVER_S) == [Item(1, "cam0")]


@pytest.mark.parametrize("other", ["closed", "silent", "never seen", "file"])
def test_an_item_does_not_wait_for_who_sends_nothing_or_need_not_be_quick(other: str) -> None:
    queue, lanes = live_lanes(2)
    if other == "closed":
        lanes[1].close()
    elif other == "silent":
        lanes[1].last_put_s -= 60.0
    elif other == "never seen":
        lanes[1].close()
        queue.lane(1, "late", drop_oldest=True)
    else:
        lanes[1].close()
        queue.lane(4, "file").put(Item(0, "file"))
        queue.take(1)
    lanes[0].put(Item(1, "cam0"))
    assert queue.take(3, gather_s=FOR_EVER_S) == [Item(1, "cam0")]


@pytest.mark.parametrize("end", ["the camera", "the queue"])
def test_who_waits_for_another_camera_wakes_when_it_ends(end: str) -> None:
    queue, lanes = live_lanes(2)
    taken: list[Item] = []
    lanes[0].put(Item(1, "cam0"))
    reader = in_background(lambda: taken.extend(queue.take(2, gather_s=FOR_EVER_S)))
    reader.join(0.05)
    lanes[1].close() if end == "the camera" else queue.close()
    reader.join(10)
    assert taken == [Item(1, "cam0")]
