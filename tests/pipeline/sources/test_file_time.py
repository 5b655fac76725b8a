"""Time stamps of files, as they should not be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.sources import open_source
from pipeline.sources.file_time import mend
from tests.pipeline.videos import write_video

RATE = 25


def mended(stated: list[float | None]) -> list[float]:
    return [seconds for _, seconds in mend([(None, stamp) for stamp in stated], 1 / RATE)]


def even(count: int = 50) -> list[float]:
    return [index / RATE for index in range(count)]


def test_good_stamps_stay_as_they_are() -> None:
    uneven = [0.0, 0.04, 0.05, 0.3, 0.31, 12.0, 12.04, 50.0, 50.04]
    assert mended(list(uneven)) == uneven


def test_a_picture_a_minute_stays_a_picture_a_minute() -> None:
    stamps = [60.0 * index for index in range(20)]
    assert mended(list(stamps)) == stamps


@pytest.mark.parametrize("wrong", [36000.0, -36000.0, 3.0, -0.5, 0.0, None])
@pytest.mark.parametrize("at", [0, 1, 20, 48, 49])
def test_one_wrong_stamp_costs_one_interval(wrong: float | None, at: int) -> None:
    if (at, wrong) in ((49, 3.0), (0, -0.5)):
        pytest.skip("the last picture after a gap, or the first one before a gap, is possible")
    stamps: list[float | None] = list(even())
    stamps[at] = None if wrong is None else even()[at] + wrong if wrong else 0.0
    np.testing.assert_allclose(np.diff(mended(stamps)), 1 / RATE, atol=0.021)
    assert mended(stamps)[-1] == pytest.approx(49 / RATE, abs=0.05)


@pytest.mark.parametrize("jump_s", [36000.0, -36000.0, -1.0])
def test_jump_that_stays_costs_one_interval(jump_s: float) -> None:
    stamps = [*even(25), *(stamp + jump_s for stamp in even(50)[25:])]
    np.testing.assert_allclose(np.diff(mended(stamps)), 1 / RATE, atol=1e-6)


def test_two_pictures_with_each_stamp_share_its_interval() -> None:
    stamps = [stamp for stamp in even(20) for _ in range(2)]
    times = mended(stamps)
    assert np.all(np.diff(times) > 0)
    assert times[-1] < 0.9


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(st.none(), st.floats(-1e6, 1e6)), min_size=1, max_size=60))
def test_times_always_increase_and_no_step_is_longer_than_a_gap_may_be(stamps: list[float | None]) -> None:
    times = mended(stamps)
    steps = np.diff(times)
    assert len(times) == len(stamps)
    assert np.all(steps > 0)
    assert np.all(steps <= 300)


def test_frame_keeps_the_files_own_time_where_it_had_to_be_mended(tmp_path: Path) -> None:
    pts = [index + (900_000 if index >= 10 else 0) for index in range(20)]
    path = write_video(tmp_path / "jump.mkv", 20, rate=RATE, pts=pts)
    frames = list(open_source(str(path)))
    assert len(frames) == 20
    assert frames[-1].pts_s == pytest.approx(19 / RATE, abs=0.01)
    assert frames[-1].source_pts_s == pytest.approx(900_019 / RATE, abs=0.01)
    assert {frame.source_pts_s for frame in frames[:10]} == {None}
