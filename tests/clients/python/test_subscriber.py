"""What a subscriber hands out: order, ages, gaps, restarts, states, silence."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.clients.python.made import pose, skeleton, status
from tests.clients.python.sending import Sender
from xpose_client import EndpointError, PoseMessage, PoseSubscriber, Received, SourceState, WireError

pytestmark = pytest.mark.timeout(30)


@pytest.fixture
def sender() -> Iterator[Sender]:
    with Sender() as sender:
        yield sender


def received(subscriber: PoseSubscriber) -> Received:
    got = subscriber.receive(2)
    assert got is not None
    return got


def await_state(subscriber: PoseSubscriber, source: str, state: str) -> None:
    """Poses and states come by sockets of their own, so either may be first."""
    deadline_s = time.monotonic() + 5
    while subscriber.state(source) != state:
        assert time.monotonic() < deadline_s, subscriber.state(source)
        time.sleep(0.005)


def test_messages_come_in_order_and_then_nothing(sender: Sender) -> None:
    with sender.connect() as subscriber:
        sender.send(*(pose(seq) for seq in range(50)))
        assert [received(subscriber).message.seq for _ in range(50)] == list(range(50))
        assert (subscriber.received, subscriber.missed, subscriber.restarts) == (50, 0, 0)
        assert subscriber.receive(0.01) is None
        assert subscriber.receive(0) is None


def shifted(message: PoseMessage, monotonic_s: float, unix_s: float, host: str) -> PoseMessage:
    """`message` as captured so much earlier by either clock."""
    return pose(
        message.seq,
        host=host,
        capture_monotonic_ns=message.capture_monotonic_ns - round(monotonic_s * 1e9),
        capture_unix_ns=message.capture_unix_ns - round(unix_s * 1e9),
    )


def test_age_is_taken_from_the_monotonic_clock_on_the_machine_that_took_it_and_else_from_the_wall_clock(
    sender: Sender,
) -> None:
    with sender.connect() as subscriber:
        sender.send(shifted(pose(0), monotonic_s=3, unix_s=500, host=pose().host))
        sender.send(shifted(pose(1), monotonic_s=500, unix_s=7, host="another machine"))
        here, elsewhere = received(subscriber), received(subscriber)
        assert 3 <= here.age_s < 5
        assert 7 <= elsewhere.age_s < 9
        time.sleep(0.05)
        assert here.age_now_s() >= here.age_s + 0.05


def test_gaps_and_restarts_are_known_to_the_message_and_to_the_subscriber(sender: Sender) -> None:
    with sender.connect() as subscriber:
        sender.send(pose(3), pose(7), pose(0, "cam2"), pose(2, session=2), pose(3, session=2))
        got = [received(subscriber) for _ in range(5)]
        assert [one.missed for one in got] == [0, 3, 0, 2, 0]
        assert [one.restarted for one in got] == [False, False, False, True, False]
        assert (subscriber.received, subscriber.missed, subscriber.restarts) == (5, 5, 1)


def test_repeats_for_late_joiners_are_skipped(sender: Sender) -> None:
    with sender.connect() as subscriber:
        sender.send(pose(0), pose(1), pose(1), pose(0), pose(2))
        assert [received(subscriber).message.seq for _ in range(3)] == [0, 1, 2]
        assert subscriber.receive(0.05) is None
        assert (subscriber.received, subscriber.missed) == (3, 0)


def test_one_source_alone_leaves_out_the_poses_and_states_of_names_that_begin_alike(sender: Sender) -> None:
    with sender.connect(source="cam1") as subscriber:
        sender.send(status("cam10"), pose(0, "cam10"), status("cam1", "late"), pose(0, "cam1"))
        assert received(subscriber).message.source == "cam1"
        assert subscriber.receive(0.05) is None
        await_state(subscriber, "cam1", "late")
        assert subscriber.state("cam10") == "unknown"


def test_conflate_keeps_the_newest_pose_and_every_state_and_skeleton(sender: Sender) -> None:
    with sender.connect(source="cam1", conflate=True) as subscriber:
        sender.send(skeleton(), status(state="connecting"), status(state="live"), *(pose(seq) for seq in range(20)))
        time.sleep(0.3)
        states = [subscriber.receive_event(2), subscriber.receive_event(2)]
        assert [event.state for event in states if isinstance(event, SourceState)] == ["connecting", "live"]
        got = received(subscriber)
        assert got.message.seq == 19
        assert subscriber.skeleton(got.message) is not None
        assert subscriber.receive(0.05) is None


def test_skeleton_of_other_prompts_or_another_session_is_not_given(sender: Sender) -> None:
    with sender.connect() as subscriber:
        sender.send(skeleton(prompt_id=1), status(state="first"))
        await_state(subscriber, "cam1", "first")
        sender.send(pose(0), pose(1, prompt_id=2), pose(2, session=2))
        first, second, third = (received(subscriber).message for _ in range(3))
        assert subscriber.skeleton(first) is not None
        assert subscriber.skeleton(second) is None
        assert subscriber.skeleton(third) is None
        sender.send(skeleton(prompt_id=2), status(state="second"))
        await_state(subscriber, "cam1", "second")
        assert subscriber.skeleton(second) is not None


def test_events_wake_on_poses_and_on_states(sender: Sender) -> None:
    with sender.connect() as subscriber:
        events = subscriber.events()
        sender.send(status(state="live"))
        change = next(events)
        assert isinstance(change, SourceState)
        assert (change.source, change.state, change.status.frame_rate) == ("cam1", "live", 30.0)
        assert (subscriber.alive, subscriber.late, subscriber.state("cam1")) == (True, False, "live")
        sender.send(pose(0))
        got = next(events)
        assert isinstance(got, Received)
        assert got.message.seq == 0
        sender.send(status(state="late"))
        assert isinstance(next(events), SourceState)
        assert subscriber.late


def test_iterating_over_a_subscriber_gives_poses_alone(sender: Sender) -> None:
    with sender.connect() as subscriber:
        sender.send(status(), pose(0), status(state="late"), pose(1))
        poses = iter(subscriber)
        assert [next(poses).message.seq, next(poses).message.seq] == [0, 1]
        await_state(subscriber, "cam1", "late")


def test_silent_publisher_wakes_a_subscriber_that_waits_without_limit(sender: Sender) -> None:
    with sender.connect() as subscriber:
        sender.send(status())
        events = subscriber.events()
        assert isinstance(next(events), SourceState)
        sender.close()
        event = next(events)
        assert isinstance(event, SourceState)
        assert event.state == "silent"
        assert (subscriber.alive, subscriber.state("cam1")) == (False, "silent")


def test_dead_publisher_is_known_at_once_by_a_program_that_did_not_look_for_a_while(sender: Sender) -> None:
    with sender.connect() as subscriber:
        for _ in range(3):
            sender.send(status(), pose(0))
        sender.close()
        time.sleep(1.0)
        assert not subscriber.alive
        assert subscriber.state("cam1") == "silent"


def test_publisher_that_restarts_is_found_again() -> None:
    with Sender() as first:
        subscriber = first.connect()
        first.send(pose(5))
        assert received(subscriber).message.seq == 5
    with subscriber, Sender(first.endpoint) as second:
        second.await_subscriptions(3, subscriber)
        second.send(pose(0, session=2))
        assert received(subscriber).restarted


def test_publisher_on_ipv6_is_heard() -> None:
    try:
        sender = Sender("tcp://[::1]:*")
    except Exception as error:
        pytest.skip(f"no IPv6 on this machine: {error}")
    with sender, sender.connect() as subscriber:
        sender.send(pose(0))
        assert received(subscriber).message.seq == 0


@pytest.mark.parametrize("data", [b"poses/cam1\0\xc1", b"status/cam1\0\x80"])
def test_message_that_is_none_of_ours_is_an_error(sender: Sender, data: bytes) -> None:
    with sender.connect() as subscriber:
        sender.send(data)
        with pytest.raises(WireError, match="cam1"):
            subscriber.receive(2)


@pytest.mark.parametrize("endpoint", ["5555", "tcp://127.0.0.1", "nonsense://127.0.0.1:1", ""])
def test_malformed_endpoint_is_refused(endpoint: str) -> None:
    with pytest.raises(EndpointError, match="is not a ZeroMQ address"):
        PoseSubscriber(endpoint)
