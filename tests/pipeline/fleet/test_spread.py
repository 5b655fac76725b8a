"""Which worker gets which camera, and when it loses it. Time is a number here."""

import pytest

from pipeline.fleet.config import Camera
from pipeline.fleet.spread import Spread
from tests.clients.python.made import status


def spread(rates: dict[str, float], capacities: dict[int, float]) -> Spread:
    made = Spread(silence_s=3.0)
    made.set_cameras({name: Camera(f"rtsp://{name}", rate) for name, rate in rates.items()})
    for number, capacity_fps in capacities.items():
        made.worker_ready(number, capacity_fps)
    return made


def where(made: Spread) -> dict[str, int | None]:
    return {name: stay.worker for name, stay in made.stays.items()}


def beat(made: Spread, now_s: float, *names: str) -> None:
    for name in names:
        session = made.stays[name].session
        made.heard(status(name, session=session), now_s)


def test_cameras_are_spread_by_capacity() -> None:
    made = spread(dict.fromkeys("abcdef", 10.0), {0: 20.0, 1: 45.0})
    made.place(0.0)
    assert {number: made.load_fps(number) for number in (0, 1)} == {0: 20.0, 1: 40.0}


def test_camera_without_room_anywhere_still_gets_the_worker_with_the_least_too_much() -> None:
    made = spread(dict.fromkeys("abc", 30.0), {0: 10.0, 1: 50.0})
    made.place(0.0)
    assert None not in where(made).values()
    assert made.load_fps(0) == 30.0


def test_cameras_of_a_silent_worker_go_to_others_with_newer_sessions_and_nothing_else_moves() -> None:
    made = spread(dict.fromkeys("abcd", 10.0), {0: 100.0, 1: 100.0, 2: 100.0})
    made.place(0.0)
    before, sessions = where(made), {name: stay.session for name, stay in made.stays.items()}
    dead = before["a"]
    assert dead is not None
    for now_s in (1.0, 2.0, 3.0):
        beat(made, now_s, *(name for name, number in before.items() if number != dead))
        assert made.silent(now_s) == set()
    assert made.silent(3.1) == {dead}
    made.worker_lost(dead)
    moved = {move.name: move for move in made.place(3.1)}
    assert moved.keys() == {name for name, number in before.items() if number == dead}
    assert all(move.stay.session > sessions[name] and move.old is None for name, move in moved.items())
    assert {name: number for name, number in where(made).items() if name not in moved} == {
        name: number for name, number in before.items() if number != dead
    }
    assert made.silent(6.0) == set(), "a new stay has its whole time"


def test_messages_of_an_older_stay_do_not_count_as_life() -> None:
    made = spread({"a": 10.0}, {0: 100.0})
    made.place(0.0)
    old = made.stays["a"].session
    made.worker_lost(0)
    made.worker_ready(1, 100.0)
    made.place(1.0)
    made.heard(status("a", session=old), 4.0)
    assert made.silent(4.5) == {1}


def test_pause_of_the_supervisor_itself_makes_nobody_silent() -> None:
    made = spread({"a": 10.0}, {0: 100.0})
    made.place(0.0)
    made.excuse(60.0)
    assert made.silent(62.0) == set()
    assert made.silent(63.5) == {0}


def test_worker_that_failed_gets_cameras_again_only_where_the_others_are_full() -> None:
    made = spread({"a": 10.0}, {0: 100.0, 1: 15.0})
    made.place(0.0)
    assert where(made) == {"a": 0}
    made.worker_lost(0)
    made.place(1.0)
    made.worker_ready(0, 100.0)
    made.worker_lost(1)
    made.worker_ready(1, 15.0)
    made.set_cameras({name: Camera(f"rtsp://{name}", 10.0) for name in "abcd"})
    made.place(2.0)
    assert made.load_fps(1) <= 15.0


def test_overloaded_worker_is_relieved_by_one_that_becomes_ready_and_no_more_than_needed() -> None:
    made = spread(dict.fromkeys("abcdef", 10.0), {0: 40.0})
    made.place(0.0)
    assert made.load_fps(0) == 60.0
    made.worker_ready(1, 100.0)
    moves = made.place(1.0)
    assert len(moves) == 2
    assert all(move.old == 0 and move.stay.worker == 1 for move in moves)
    assert made.place(2.0) == []


def test_camera_waits_while_no_worker_is_ready() -> None:
    made = spread({"a": 10.0}, {})
    assert made.place(0.0) == []
    assert made.silent(1000.0) == set()
    made.worker_ready(4, 50.0)
    assert [move.name for move in made.place(1000.0)] == ["a"]


@pytest.mark.parametrize("address", ["rtsp://other", None])
def test_camera_that_is_removed_or_has_another_address_leaves_its_worker(address: str | None) -> None:
    made = spread({"a": 10.0, "b": 10.0}, {0: 100.0})
    made.place(0.0)
    before = made.stays["a"].session
    cameras = {"b": Camera("rtsp://b", 12.0)} | ({"a": Camera(address)} if address else {})
    assert [*made.set_cameras(cameras)] == ["a"]
    assert made.stays["b"].worker == 0
    assert made.load_fps(0) == 12.0
    moved = made.place(1.0)
    assert [move.name for move in moved] == (["a"] if address else [])
    assert all(move.stay.session > before for move in moved)
