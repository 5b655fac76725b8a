"""What a run shows: bars on a terminal, one line in the log elsewhere, and the table at the end."""

import io
import logging
import re
from unittest import mock

import pytest
from rich.console import Console

from pipeline import display
from pipeline.display import RunDisplay, closing_table
from pipeline.flow.pipeline import Pipeline
from tests.pipeline.fakes import FakeEngine, FakeSource
from tests.pipeline.flow.running import make_pipeline, run

pytestmark = pytest.mark.timeout(30)


def finished() -> Pipeline:
    """A pipeline that published 3 frames of a file and 2 of a camera, whose source lost 4."""
    camera = FakeSource(2, "cam", live=True, interval_s=0.1)
    camera.drops["undecodable"] = 4
    pipeline = make_pipeline(FakeSource(3, "clip"), camera)
    run(pipeline, FakeEngine())
    return pipeline


def test_terminal_shows_how_far_how_fast_how_old_and_what_was_dropped() -> None:
    screen = io.StringIO()
    with RunDisplay(finished(), Console(file=screen, force_terminal=True, width=160, color_system=None)) as shown:
        shown.update()
    text = screen.getvalue()
    assert re.search(r"clip .*3/3 *\d+\.\d frames/s", text)
    assert re.search(r"cam .*2/\? *\d+\.\d frames/s, age \d+ ms, dropped: 4 undecodable", text)
    assert not re.search(r"clip[^\n\r]*age", text), "the capture time of a file says nothing about its age"


def test_log_gets_one_line_with_all_sources_every_thirty_seconds(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = [1000.0]
    pipeline = finished()
    monkeypatch.setattr(display.time, "monotonic", lambda: now_s[0])
    caplog.set_level(logging.INFO)
    with RunDisplay(pipeline, Console(file=io.StringIO())) as shown:
        for passed_s in (10.0, 10.0, 10.5, 20.0):
            now_s[0] += passed_s
            shown.update()
    lines = [record.message for record in caplog.records if record.name == "pipeline.display"]
    assert len(lines) == 1
    assert re.fullmatch(r"clip: 0\.1 frames/s; cam: 0\.1 frames/s, age \d+ ms, dropped: 4 undecodable", lines[0])


def test_log_says_once_that_there_are_no_sources_and_again_after_some_went(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = [1000.0]
    pipeline, added = make_pipeline(hold=True), FakeSource(3, "clip")
    monkeypatch.setattr(display, "time", mock.Mock(monotonic=lambda: now_s[0]))
    caplog.set_level(logging.INFO)
    with RunDisplay(pipeline, Console(file=io.StringIO())) as shown:

        def lines_of_minutes(minutes: int) -> list[str]:
            caplog.clear()
            for _ in range(4 * minutes):
                now_s[0] += 15.0
                shown.update()
            return [record.message for record in caplog.records if record.name == "pipeline.display"]

        nothing = ["there are no sources; waiting for one to be added"]
        assert lines_of_minutes(5) == nothing
        pipeline.add(added)
        assert lines_of_minutes(1) == ["clip: 0.0 frames/s"] * 2
        pipeline.remove("clip")
        assert lines_of_minutes(5) == nothing
        pipeline.add(FakeSource(3, "clip"))
        now_s[0] += 1.0
        shown.update()
        pipeline.remove("clip")
        assert lines_of_minutes(5) == nothing, "it came and went between two lines"


def test_closing_table_has_a_row_per_stage_with_frames_drops_and_times() -> None:
    screen = io.StringIO()
    Console(file=screen, width=160).print(closing_table(finished().metrics))
    lines = screen.getvalue().replace("│", " ").splitlines()
    rows = {line.split("  ")[0].strip(): line for line in lines}
    assert re.search(r"5 +4 undecodable", rows["decode"])
    for stage in ("infer", "track", "publish"):
        assert re.search(rf"^{stage} +5 +5 +0 +\d+\.\d\d +\d+\.\d\d", rows[stage])
    assert re.search(r"\d+\.\d\d +\d+\.\d\d +\d+\.\d\d$", rows["capture to publish"].rstrip())
