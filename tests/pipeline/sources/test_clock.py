"""The capture clock over simulated links: what it claims against what is true."""

from __future__ import annotations

import itertools
import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.sources.clock import PictureClock
from tests.pipeline.sources.links import BOOT_NS, Judged, Link, arrival, follow

LIMIT_S = 0.25  # against the connection's best moment
SENDER_LIMIT_S = 0.1


def worst_younger_s(judged: list[Judged], base_s: float, after_s: float = 5.0) -> float:
    """The most by which a claim was younger than the age against the connection's best moment."""
    return max(item.younger_s - base_s for item in judged if item.captured_s >= after_s)


def check_order(judged: list[Judged]) -> None:
    pts_s = [item.stamp.pts_s for item in judged]
    assert all(b > a for a, b in itertools.pairwise(pts_s)), "pts_s must increase"
    assert all(item.claimed_s <= item.arrived_s + 1e-6 for item in judged), "no picture comes from the future"


@pytest.mark.parametrize("rate", [1, 5, 10, 30, 120])
def test_delay_that_stays_is_in_the_age_for_as_long_as_it_stays(rate: float) -> None:
    link = Link(rate=rate, lag=lambda captured_s: 3.0 if captured_s > 20 else 0.0)
    judged = follow(PictureClock(), link, 300)
    check_order(judged)
    assert worst_younger_s(judged, link.base_s) < LIMIT_S
    assert judged[-1].stamp.clock == "stream"
    assert judged[-1].stamp.lag_s == pytest.approx(3.0, abs=LIMIT_S)
    assert max(abs(item.younger_s - link.base_s) for item in judged if item.captured_s < 20) < 0.1


def test_small_delay_that_stays_for_two_hours_is_not_taken_for_drift() -> None:
    link = Link(rate=2, lag=lambda captured_s: 1.5 if captured_s > 900 else 0.0)
    judged = follow(PictureClock(), link, 2 * 3600)
    assert judged[-1].stamp.lag_s == pytest.approx(1.5, abs=LIMIT_S)


def test_burst_after_a_stall_is_old_and_says_so() -> None:
    link = Link(lag=lambda captured_s: max(0.0, 14.0 - captured_s) if captured_s >= 10 else 0.0)
    judged = follow(PictureClock(), link, 30)
    check_order(judged)
    for item in judged:
        assert item.younger_s == pytest.approx(link.base_s, abs=0.02)


@pytest.mark.parametrize("drift", [-200e-6, 200e-6])
def test_drift_of_the_cameras_clock_is_followed(drift: float) -> None:
    link = Link(rate=5, drift=drift)
    judged = follow(PictureClock(), link, 3600)
    late = [item for item in judged if item.captured_s > 5]
    assert max(abs(item.younger_s - link.base_s) for item in late) < 0.05


def test_drift_is_followed_while_the_link_is_late() -> None:
    link = Link(rate=5, drift=200e-6, lag=lambda captured_s: 1.0 if captured_s > 900 else 0.0)
    judged = follow(PictureClock(), link, 3600)
    assert judged[-1].stamp.lag_s == pytest.approx(1.0, abs=LIMIT_S)


@pytest.mark.parametrize("shift_s", [3600.0, -3600.0, 3.0, -3.0, 0.4, -0.4])
@pytest.mark.parametrize("reports", [None, 1.0])
def test_one_wrong_time_stamp_costs_nothing(shift_s: float, reports: float | None) -> None:
    link = Link(
        rate=10,
        stated=lambda index, camera_s: camera_s + (shift_s if index == 80 else 0.0),
        reports_from_s=reports,
    )
    judged = follow(PictureClock(), link, 20)
    check_order(judged)
    tail = judged[60:]
    assert {item.stamp.clock for item in tail} == {"stream" if reports is None else "sender"}
    steps_s = np.diff([item.stamp.pts_s for item in tail])
    np.testing.assert_allclose(steps_s, 0.1, atol=0.011)
    error_s = [item.younger_s - (link.base_s if reports is None else 0.0) for item in tail]
    assert max(map(abs, error_s)) < 0.03


@pytest.mark.parametrize("shift_s", [36000.0, -36000.0, 26.5, -26.5, 2.0, -2.0, -0.3])
@pytest.mark.parametrize("rate", [5, 30])
def test_change_of_the_time_stamps_that_stays_is_followed_within_a_second(shift_s: float, rate: float) -> None:
    link = Link(rate=rate, stated=lambda index, camera_s: camera_s + (shift_s if index >= 10 * rate else 0.0))
    judged = follow(PictureClock(), link, 60)
    check_order(judged)
    assert worst_younger_s(judged, link.base_s) < 0.2
    settled = [item for item in judged if item.captured_s > 11.2]
    assert {item.stamp.clock for item in settled} == {"stream"}
    assert max(abs(item.younger_s - link.base_s) for item in settled) < 0.1
    np.testing.assert_allclose(np.diff([item.stamp.pts_s for item in settled]), 1 / rate, atol=1e-3)


@pytest.mark.parametrize("period_s", [2**33 / 90000, 2**32 / 90000, 30.0])
def test_stamps_that_wrap_around_are_followed(period_s: float) -> None:
    link = Link(rate=10, stated=lambda index, camera_s: (camera_s + period_s - 15) % period_s)
    judged = follow(PictureClock(), link, 40)
    check_order(judged)
    assert worst_younger_s(judged, link.base_s) < 0.2


@pytest.mark.parametrize("frozen_for_s", [0.3, 3.0, 1e9])
def test_frozen_stamps_never_freeze_the_clock(frozen_for_s: float) -> None:
    def stated(index: int, camera_s: float) -> float:
        return 10.0 if 10 <= camera_s < 10 + frozen_for_s else camera_s

    judged = follow(PictureClock(), Link(stated=stated), 30)
    check_order(judged)
    for item in judged[31:]:
        assert abs(item.younger_s) < 0.5
    during = [item for item in judged if 11.5 < item.captured_s < min(10 + frozen_for_s, 30)]
    assert {item.stamp.clock for item in during} <= {"receipt"}
    if frozen_for_s < 10:
        assert judged[-1].stamp.clock == "stream"


@pytest.mark.parametrize("stamp_s", [None, 0.0])
def test_stream_without_times_goes_by_receipt(stamp_s: float | None) -> None:
    judged = follow(PictureClock(), Link(stated=lambda index, camera_s: stamp_s), 20)
    check_order(judged)
    settled = [item for item in judged if item.captured_s > 1.5]
    assert {item.stamp.clock for item in settled} == {"receipt"}
    assert all(item.claimed_s == pytest.approx(item.arrived_s) and item.stamp.lag_s is None for item in settled)
    assert judged[-1].stamp.pts_s == pytest.approx(judged[-1].captured_s, abs=1.2)


@pytest.mark.parametrize(("stated_rate", "real_rate"), [(25, 10), (25, 30), (30, 25), (25, 5), (10, 30), (25, 24)])
def test_rate_that_is_not_the_real_one_is_recognised(stated_rate: float, real_rate: float) -> None:
    link = Link(rate=real_rate, stated=lambda index, camera_s: index / stated_rate)
    judged = follow(PictureClock(), link, 60)
    check_order(judged)
    assert judged[-1].stamp.clock == "receipt"
    steps_s = [b.stamp.pts_s - a.stamp.pts_s for a, b in zip(judged[-50:], judged[-49:], strict=False)]
    np.testing.assert_allclose(steps_s, 1 / real_rate, atol=0.005)


@pytest.mark.parametrize("slow_from_s", [0.0, 3.0, 20.0])
@pytest.mark.parametrize("factor", [1.05, 5.0])
def test_link_that_is_too_slow_is_not_taken_for_a_made_up_rate(slow_from_s: float, factor: float) -> None:
    """Every 15th picture is a key frame, ten times as large as the others, with some variation."""
    rng = np.random.default_rng(1)
    sizes = [round((10_000 if index % 15 == 0 else 1000) * rng.uniform(0.7, 1.3)) for index in range(900)]
    bytes_per_s = sum(sizes) / 30.0 / factor
    free_s = 0.0
    clock, judged = PictureClock(), []
    for index, size in enumerate(sizes):
        captured_s = index / 30
        sending_s = size / bytes_per_s if captured_s >= slow_from_s else 0.001
        free_s = max(free_s, captured_s + 0.02) + sending_s
        judged.append(Judged(clock.stamp(arrival(captured_s, free_s, None, size)), captured_s, free_s))
    best_s = min(item.arrived_s - item.captured_s for item in judged if item.captured_s < 5)
    assert judged[-1].stamp.clock == "stream"
    assert worst_younger_s(judged, best_s) < LIMIT_S


@pytest.mark.parametrize("segment_s", [2.0, 6.0])
def test_segments_that_come_in_bursts_keep_the_streams_clock(segment_s: float) -> None:
    """A live playlist: three segments at first, then one at a time."""
    clock, judged = PictureClock(), []
    for index in range(60 * 25):
        captured_s = index / 25
        segment = int(captured_s / segment_s)
        arrived_s = max(3 * segment_s, (segment + 1) * segment_s) + 0.05 + index * 1e-5
        judged.append(Judged(clock.stamp(arrival(captured_s, arrived_s)), captured_s, arrived_s))
    check_order(judged)
    assert judged[-1].stamp.clock == "stream"
    last_of_segment = [a for a, b in itertools.pairwise(judged) if b.arrived_s - a.arrived_s > 0.5]
    assert all(item.stamp.lag_s == pytest.approx(0, abs=0.1) for item in last_of_segment[2:])


def test_pictures_that_are_skipped_are_no_jump() -> None:
    """The sender drops what waits, and goes on with the newest picture."""
    clock, judged = PictureClock(), []
    for captured_s in [*np.arange(0, 10, 1 / 30), *np.arange(14, 30, 1 / 30)]:
        arrived_s = max(captured_s + 0.04, 14.05 if captured_s > 9.97 else 0)
        judged.append(Judged(clock.stamp(arrival(captured_s, arrived_s)), captured_s, arrived_s))
    check_order(judged)
    assert max(abs(item.younger_s - 0.04) for item in judged) < 0.06
    assert judged[-1].stamp.pts_s == pytest.approx(judged[-1].captured_s, abs=0.05)


def test_sender_reports_give_the_absolute_time_across_connections() -> None:
    clock = PictureClock()
    first = Link(reports_from_s=1.0)
    before = follow(clock, first, 20)
    assert before[-1].stamp.clock == "sender"
    assert abs(before[-1].younger_s) < 0.001
    clock.connect(round(39.9e9) + BOOT_NS)
    late = Link(base_s=3.0, reports_from_s=1.0)
    after = follow(clock, late, 20, start_s=40.0)
    assert all(item.younger_s < SENDER_LIMIT_S for item in after), "also before the report of this connection"
    assert all(abs(item.younger_s) < SENDER_LIMIT_S for item in after if item.captured_s > 41)
    pts_s = [item.stamp.pts_s for item in (*before, *after)]
    assert all(b > a for a, b in itertools.pairwise(pts_s))
    assert pts_s[-1] - pts_s[0] == pytest.approx(after[-1].arrived_s - before[0].arrived_s, abs=0.1)


@pytest.mark.parametrize("error_s", [-7200.0, -10.0, 0.5, 60.0, 1e9])
def test_camera_with_a_wrong_clock_is_detected_and_its_offset_known(
    error_s: float, caplog: pytest.LogCaptureFixture
) -> None:
    clock = PictureClock(label="door")
    link = Link(reports_from_s=1.0, clock_error_s=error_s, lag=lambda captured_s: 2.0 if captured_s > 10 else 0.0)
    with caplog.at_level(logging.WARNING):
        judged = follow(clock, link, 30)
    assert judged[-1].stamp.clock == "stream"
    assert judged[-1].stamp.lag_s == pytest.approx(2.0, abs=0.1)
    assert clock.offset_s == pytest.approx(error_s, abs=0.1)
    assert len(caplog.records) == 1
    assert worst_younger_s(judged, link.base_s) < LIMIT_S


def test_camera_whose_clock_is_set_right_is_believed_again() -> None:
    clock = PictureClock()
    follow(clock, Link(reports_from_s=0.0, clock_error_s=-3600), 10)
    assert clock.offset_s is not None
    clock.connect(BOOT_NS)
    judged = follow(clock, Link(reports_from_s=0.0), 10, start_s=12)
    assert judged[-1].stamp.clock == "sender"
    assert clock.offset_s is None


@pytest.mark.parametrize("jump_s", [4.0, -4.0, 1000.0, -1000.0])
def test_jump_of_the_stream_time_before_the_next_report_is_no_jump_of_the_senders_clock(jump_s: float) -> None:
    """Until a new report comes, the old one gives times that are off by the jump."""
    link = Link(reports_from_s=0.5, stated=lambda index, camera_s: camera_s + (jump_s if index >= 330 else 0.0))
    judged = follow(PictureClock(), link, 25)
    assert max(abs(item.younger_s) for item in judged if item.captured_s > 1) < SENDER_LIMIT_S
    assert {item.stamp.clock for item in judged if item.captured_s > 1} == {"sender"}


@pytest.mark.parametrize("choice", ["sender", "stream", "receipt"])
def test_chosen_clock_is_used(choice: str) -> None:
    judged = follow(PictureClock(choice), Link(reports_from_s=0.0), 5)  # type: ignore[arg-type]
    assert {item.stamp.clock for item in judged} == {choice}


def test_demuxer_that_counts_pictures_is_not_believed() -> None:
    clock = PictureClock()
    clock.connect(BOOT_NS, counts_pictures=True)
    judged = follow(clock, Link(stated=lambda index, camera_s: index / 25), 1)
    assert {item.stamp.clock for item in judged} == {"receipt"}


@st.composite
def links(draw: st.DrawFn) -> Link:
    """Lag steps, stalls with bursts, drift, and one jump of the stamps."""
    rate = draw(st.sampled_from([5.0, 10.0, 15.0, 30.0]))
    steps = draw(st.lists(st.tuples(st.floats(6, 40), st.floats(0, 5)), max_size=4))
    stalls = draw(st.lists(st.tuples(st.floats(6, 40), st.floats(0.2, 5)), max_size=3))
    jump_at_s = draw(st.floats(8, 40))
    jump_s = draw(st.sampled_from([0.0, 0.0, 5.0, -5.0, 1000.0, -1000.0, 1e5]))
    outlier = draw(st.integers(60, 300))
    outlier_s = draw(st.sampled_from([0.0, 1.0, -1.0, 100.0, -100.0, 1e5]))

    def lag(captured_s: float) -> float:
        lasting_s = next((height for at_s, height in sorted(steps, reverse=True) if captured_s >= at_s), 0.0)
        waits_s = [at_s + length - captured_s for at_s, length in stalls if at_s <= captured_s < at_s + length]
        return max([lasting_s, *waits_s])

    def quiet(at_s: float) -> bool:
        """Nothing else happens near this time: a jump in the same second as a stall cannot be told from it."""
        events = [at for at, _ in steps] + [t for at, length in stalls for t in np.arange(at - 2, at + length + 6, 0.5)]
        return all(abs(at_s - at) > 7 for at in events)

    jumps = jump_s if quiet(jump_at_s) else 0.0
    outlies = outlier_s if quiet(outlier / rate) and abs(outlier / rate - jump_at_s) > 3 else 0.0

    def stated(index: int, camera_s: float) -> float:
        return camera_s + (jumps if camera_s >= jump_at_s else 0.0) + (outlies if index == outlier else 0.0)

    return Link(
        rate=rate,
        drift=draw(st.floats(-200e-6, 200e-6)),
        jitter_s=draw(st.floats(0, 0.02)),
        lag=lag,
        stated=stated,
        seed=draw(st.integers(0, 99)),
    )


@settings(max_examples=30, deadline=None)
@given(links())
def test_no_claim_is_younger_than_the_evidence(link: Link) -> None:
    judged = follow(PictureClock(), link, 50)
    check_order(judged)
    best_s = min(item.arrived_s - item.captured_s for item in judged if item.captured_s < 5)
    assert worst_younger_s(judged, best_s) < LIMIT_S


@settings(max_examples=30, deadline=None)
@given(links(), st.floats(0, 3))
def test_no_claim_with_sender_reports_is_younger_than_the_truth(link: Link, first_report_s: float) -> None:
    link.reports_from_s = first_report_s
    judged = follow(PictureClock(), link, 50)
    check_order(judged)
    by_sender = [item for item in judged if item.stamp.clock == "sender"]
    assert len(by_sender) > len(judged) / 2
    assert worst_younger_s(by_sender, 0.0, first_report_s) < SENDER_LIMIT_S
