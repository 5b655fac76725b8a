"""States of a source, and how a late one catches up."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline.frames import Frame
from pipeline.sources import catch_up as catch_up_module
from pipeline.sources import status as status_module
from pipeline.sources.catch_up import CatchUp
from pipeline.sources.status import SourceStatus


class Time:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s

    def monotonic_ns(self) -> int:
        return round(self.now_s * 1e9)

    def time_ns(self) -> int:
        return round(self.now_s * 1e9) + 10**18


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Time:
    clock = Time()
    for module in (status_module, catch_up_module):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr("pipeline.frames.time", clock)
    return clock


def frame(clock: Time, age_s: float = 0.1) -> Frame:
    monotonic_ns = clock.monotonic_ns() - round(age_s * 1e9)
    return Frame(
        "cam", 0, np.zeros((2, 2, 3), np.uint8), 0.0, monotonic_ns + 10**18, monotonic_ns, "stream", lag_s=age_s
    )


def test_states_follow_the_pictures(clock: Time) -> None:
    status = SourceStatus(silence_s=5.0)
    states = [status.view(2.0).state]
    status.failed("nothing listens")
    states.append(status.view(2.0).state)
    status.connected()
    status.picture(frame(clock))
    states.append(status.view(2.0).state)
    clock.now_s += 3
    states.append(status.view(2.0).state)
    clock.now_s += 3
    states.append(status.view(2.0).state)
    status.picture(frame(clock, age_s=4.0))
    states.append(status.view(2.0).state)
    status.failed("cut")
    states.append(status.view(2.0).state)
    status.ended()
    states.append(status.view(2.0).state)
    assert states == ["connecting", "connecting", "live", "late", "lost", "late", "lost", "ended"]
    assert status.view().last_error == "cut"
    assert status.view().reconnects == 1


def test_since_is_when_the_state_began_and_the_rate_is_that_of_the_last_seconds(clock: Time) -> None:
    status = SourceStatus(silence_s=5.0)
    for _ in range(40):
        clock.now_s += 0.1
        status.picture(frame(clock))
        since_unix_ns = status.view(2.0).since_unix_ns
    assert since_unix_ns == 10**18 + round(1000.1 * 1e9)
    assert status.view(2.0).frame_rate == pytest.approx(10, abs=0.6)


def test_silence_of_an_open_connection_is_lost_and_has_a_sentence(clock: Time) -> None:
    """A thread that hangs in a decoder reports nothing itself."""
    status = SourceStatus(silence_s=5.0)
    status.picture(frame(clock))
    clock.now_s += 12
    view = status.view(2.0)
    assert view.state == "lost"
    assert view.last_error == "no picture for 12 s although the connection is open"


def packet(number: int, *, key: bool = False) -> Any:
    return SimpleNamespace(number=number, is_keyframe=key)


def taken(catch_up: CatchUp, item: Any, *, waiting: bool) -> list[int]:
    return [held.number for held in catch_up.take(item, waiting=waiting)]  # type: ignore[attr-defined]


def test_late_source_skips_to_the_newest_key_frame_that_waits(clock: Time) -> None:
    catch_up = CatchUp()
    assert taken(catch_up, packet(0, key=True), waiting=True) == [0]
    catch_up.picture(age_s=3.0, budget_s=2.0)
    for number in range(1, 20):
        assert taken(catch_up, packet(number, key=number % 8 == 0), waiting=True) == []
    assert taken(catch_up, packet(20), waiting=False) == [16, 17, 18, 19, 20]
    assert catch_up.skipped == 15
    catch_up.picture(age_s=0.1, budget_s=2.0)
    assert taken(catch_up, packet(21), waiting=True) == [21]


def test_without_a_key_frame_nothing_is_skipped(clock: Time) -> None:
    catch_up = CatchUp()
    catch_up.picture(age_s=3.0, budget_s=2.0)
    assert taken(catch_up, packet(1), waiting=True) == []
    assert taken(catch_up, packet(2), waiting=False) == [1, 2]
    assert catch_up.skipped == 0


def test_source_that_stays_late_connects_again_and_ever_more_rarely(clock: Time) -> None:
    catch_up = CatchUp()
    waits_s = []
    for _ in range(8):
        catch_up.connect()
        begun_s = clock.now_s
        while not catch_up.must_reconnect():
            clock.now_s += 0.1
            catch_up.picture(age_s=3.0, budget_s=2.0)
            assert clock.now_s - begun_s < 100
        waits_s.append(clock.now_s - begun_s)
    assert waits_s[0] == pytest.approx(2.0, abs=0.2)
    assert waits_s[1] == pytest.approx(4.0, abs=0.2)
    assert waits_s[-1] == pytest.approx(60.0, abs=0.2)
    catch_up.picture(age_s=0.1, budget_s=2.0)
    assert not catch_up.must_reconnect()


def test_without_a_budget_no_source_is_late(clock: Time) -> None:
    catch_up = CatchUp()
    catch_up.picture(age_s=300.0, budget_s=0.0)
    clock.now_s += 100
    assert not catch_up.must_reconnect()
    assert taken(catch_up, packet(1), waiting=True) == [1]
