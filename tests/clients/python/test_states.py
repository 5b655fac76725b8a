"""States of sources, and the silence of their publisher, without sockets; times are seconds of a made clock."""

from __future__ import annotations

import time

import pytest

from tests.clients.python.made import status
from xpose_client.events import SourceState
from xpose_client.messages import StatusMessage
from xpose_client.states import SourceStates

ELSEWHERE = "another machine"
OFFSET_S = 5000.0  # between the monotonic clocks of two machines


def sent(sent_s: float, state: str = "live", source: str = "cam1", **fields: object) -> StatusMessage:
    """A status message that another machine sent at `sent_s` of this machine's time."""
    values = {"host": ELSEWHERE, "publish_monotonic_ns": round((sent_s + OFFSET_S) * 1e9), **fields}
    return status(source, state, **values)


def words(changes: list[SourceState]) -> list[tuple[str, str]]:
    return [(change.source, change.state) for change in changes]


def test_nothing_is_known_before_the_first_status() -> None:
    states = SourceStates()
    assert states.state("cam1", 0.0) == "unknown"
    assert states.status("cam1") is None
    assert states.next_silence_s() is None
    assert not states.alive(0.0)
    assert not states.late(0.0)


def test_each_change_of_state_is_reported_once() -> None:
    states = SourceStates()
    changes = [
        states.take(sent(0.5 * beat, state), 0.5 * beat)
        for beat, state in enumerate(["connecting", "live", "live", "late", "late", "live"])
    ]
    assert [words(change) for change in changes] == [
        [("cam1", "connecting")], [("cam1", "live")], [], [("cam1", "late")], [], [("cam1", "live")]
    ]  # fmt: skip


def test_late_is_true_while_any_source_is_late() -> None:
    states = SourceStates()
    states.take(sent(0.0, "live", "cam1"), 0.0)
    assert not states.late(0.1)
    states.take(sent(0.0, "late", "cam2"), 0.0)
    assert states.late(0.1)
    states.take(sent(0.5, "live", "cam2"), 0.5)
    assert not states.late(0.6)


def test_publisher_is_silent_within_a_second_of_its_last_beat_and_heard_again_with_the_next() -> None:
    states = SourceStates()
    states.take(sent(0.0), 0.0)
    assert states.alive(0.85)
    assert states.silences(0.85) == []
    silence_s = states.next_silence_s()
    assert silence_s is not None
    assert 0.5 < silence_s < 1.0
    assert not states.alive(silence_s)
    assert words(states.silences(silence_s)) == [("cam1", "silent")]
    assert states.silences(silence_s + 1) == []
    assert states.state("cam1", silence_s) == "silent"
    assert words(states.take(sent(60.0), 60.0)) == [("cam1", "live")]
    assert states.alive(60.1)


def test_beats_that_are_read_long_after_they_came_do_not_make_a_dead_publisher_alive() -> None:
    states = SourceStates()
    states.take(sent(0.0), 0.002)
    for beat in range(1, 20):  # read together at 30 s; the last was sent at 9.5 s
        states.take(sent(0.5 * beat), 30.0)
    assert not states.alive(30.0)
    assert states.state("cam1", 30.0) == "silent"


def test_beats_of_this_machine_are_dated_by_its_clock_from_the_first_on() -> None:
    states = SourceStates()
    now_s = time.monotonic()
    states.take(status(publish_monotonic_ns=round((now_s - 5) * 1e9)), now_s)
    assert not states.alive(now_s)


@pytest.mark.parametrize("drift", [-200e-6, 200e-6])
def test_drift_between_two_clocks_never_silences_a_publisher(drift: float) -> None:
    states = SourceStates()
    for beat in range(3 * 24 * 120):  # three days, in which the clocks part by 52 s
        now_s = 30.0 * beat
        states.take(sent(now_s * (1 + drift), beat_s=30.0), now_s + 0.001)
        assert states.alive(now_s + 30)


def test_restart_of_the_publishing_machine_begins_again_with_its_clock() -> None:
    states = SourceStates()
    states.take(sent(1000.0, host="boot 1"), 0.0)
    rebooted = sent(-4990.0, host="boot 2", session=2)
    assert words(states.take(rebooted, 100.0)) == []
    assert states.alive(100.5)
    assert not states.alive(101.0)


def test_repeat_of_an_older_status_changes_nothing() -> None:
    states = SourceStates()
    states.take(sent(0.0, "connecting"), 0.0)
    states.take(sent(0.5, "live"), 0.5)
    assert states.take(sent(0.0, "connecting"), 0.6) == []
    assert states.state("cam1", 0.6) == "live"


def test_end_of_a_source_stays_the_end_when_its_publisher_falls_silent() -> None:
    states = SourceStates()
    states.take(sent(0.0, "ended"), 0.0)
    assert not states.alive(10.0)
    assert states.state("cam1", 10.0) == "ended"
    assert states.silences(10.0) == []
    assert states.next_silence_s() is None


def test_state_of_a_later_program_is_passed_on() -> None:
    states = SourceStates()
    assert words(states.take(sent(0.0, "asleep"), 0.0)) == [("cam1", "asleep")]
