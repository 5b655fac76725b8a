"""Short forms of `benchmarks.chaos`: real servers, a faulty link, and the true age from a time code in each picture.

Limits are wide, because the machine may be busy. The benchmark gives the numbers.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence

import pytest

from benchmarks.chaos.run import Camera, Run, Verdict, has_gstreamer, judge, running
from benchmarks.chaos.subscribers import beside, flood
from benchmarks.chaos.timecode import draw, read, true_unix_ns

pytestmark = pytest.mark.timeout(90)

needs_gstreamer = pytest.mark.skipif(
    not has_gstreamer(), reason="no RTSP server: install gir1.2-gst-rtsp-server-1.0, python3-gi and GStreamer's plugins"
)


def test_time_code_is_read_as_it_was_drawn() -> None:
    import numpy as np

    now_ns = time.time_ns()
    for index in range(5):
        moment_ns = now_ns - index * 123_456_789
        grey_HW = np.frombuffer(draw(moment_ns, index), np.uint8).reshape(192, 320)
        code_ms = read(grey_HW)
        assert code_ms is not None
        assert true_unix_ns(code_ms, now_ns) == moment_ns // 1_000_000 * 1_000_000
    assert read(np.zeros((192, 320), np.uint8)) is None


def play(camera: Camera, seconds: float, plan: Sequence[tuple[float, str]], recovered: str = "") -> tuple[Run, Verdict]:
    recovered_ns = None
    with running([camera]), Run([camera], ("source.read_timeout_s=8",)) as run:
        deadline_s = time.monotonic() + 15
        while len(run.heard) < 5:  # the plan begins with the first messages
            assert time.monotonic() < deadline_s, "no message within 15 s"
            time.sleep(0.02)
        begun_s = time.monotonic()
        for at_s, command in [*plan, (seconds, "")]:
            time.sleep(max(0.0, begun_s + at_s - time.monotonic()))
            if command:
                camera.do(command)
            if command == recovered:
                recovered_ns = time.monotonic_ns()
    verdict = judge(run, recovered_ns=recovered_ns)
    assert verdict.claimed_beyond_budget == 0
    return run, verdict


@needs_gstreamer
def test_delay_that_stays_is_not_published_as_fresh() -> None:
    run, verdict = play(Camera(), 8, ((2, "delay 3"),))
    assert max(verdict.younger_s) < 0.5
    assert verdict.truly_beyond_budget == 0
    assert run.sources[0].drops["connected again to catch up"] >= 1
    assert run.sources[0].status.view(run.budget_s).lag_s is not None


@needs_gstreamer
def test_server_that_was_killed_is_back_with_fresh_messages() -> None:
    run, verdict = play(Camera(), 8, ((2, "kill"), (4, "start")), "start")
    assert verdict.recovery_s is not None
    assert verdict.recovery_s < 4
    assert verdict.truly_beyond_budget == 0
    assert run.sources[0].status.view().reconnects >= 1


def test_burst_after_a_stall_is_skipped_and_not_published() -> None:
    run, verdict = play(Camera(faults=()), 7, ((2, "stall"), (5, "pass")), "pass")
    assert verdict.truly_beyond_budget == 0
    assert max(verdict.younger_s) < 0.5
    assert verdict.recovery_s is not None
    assert run.sources[0].drops["skipped to catch up"] > 0


@pytest.mark.parametrize("faults", [("--wrong-at", "4"), ("--jump-at", "4", "--jump-by", "-30")])
def test_wrong_time_stamps_change_neither_age_nor_order(faults: Sequence[str]) -> None:
    run, verdict = play(Camera(faults=faults), 6, ())
    assert verdict.truly_beyond_budget == 0
    assert max(verdict.younger_s) < 0.5
    assert all(
        a.pts_s is not None and b.pts_s is not None and 0 < b.pts_s - a.pts_s < 2
        for a, b in itertools.pairwise(run.heard)
    )
    assert run.heard[-1].capture_clock == "stream"


def test_pictures_that_lost_packets_are_not_published_with_old_content() -> None:
    camera = Camera(faults=("--loss", "0.05"), direct=True)
    with running([camera]), Run([camera], ("source.rtsp_transport=udp",)) as run:
        deadline_s = time.monotonic() + 40
        while (len(run.heard) < 60 or not run.sources[0].drops["damaged"]) and time.monotonic() < deadline_s:
            time.sleep(0.05)
    assert len(run.heard) >= 60
    assert run.sources[0].drops["damaged"] > 0
    verdict = judge(run)
    assert len(verdict.younger_s) > 20  # others show no readable time code until the next key frame
    assert max(verdict.younger_s) < 0.5


@needs_gstreamer
def test_key_frames_that_come_slice_by_slice_are_whole() -> None:
    camera = Camera(slices=3)
    with running([camera]), Run([camera]) as run:
        deadline_s = time.monotonic() + 20
        while len(run.heard) < 45 and time.monotonic() < deadline_s:
            time.sleep(0.05)
    heard = run.heard[15:]  # the parts of the first key frame may come before it
    assert len(heard) >= 30
    assert [item.frame for item in heard if item.true_age_s is None] == []


def test_flood_of_subscriptions_stops_no_message() -> None:
    camera = Camera(faults=())
    with running([camera]), Run([camera]) as run, beside(flood, run.endpoint):
        deadline_s = time.monotonic() + 20
        while len(run.heard) < 40 and time.monotonic() < deadline_s:
            time.sleep(0.05)
    assert len(run.heard) >= 40
    delays_s = sorted((item.received_ns - item.sent_ns) / 1e9 for item in run.heard)
    assert delays_s[len(delays_s) // 2] < 0.5


@needs_gstreamer
def test_camera_that_misbehaves_leaves_the_other_alone() -> None:
    bad, good = Camera(), Camera(faults=())
    with running([bad, good], absent=[0]), Run([bad, good]) as run:
        deadline_s = time.monotonic() + 15
        while len(run.of(1)) < 30 and time.monotonic() < deadline_s:
            time.sleep(0.05)
        bad_state = run.sources[0].status.view().state
    assert len(run.of(1)) >= 30
    assert bad_state == "connecting"
