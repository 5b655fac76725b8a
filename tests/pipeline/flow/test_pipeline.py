"""The line as a whole, with an engine that returns at once: order, loss, failures, prompts, stills, live sources."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from engines.engine import EngineConfig
from pipeline.config import PipelineConfig
from pipeline.errors import OutputError, PublishError, SourceError
from pipeline.flow.pipeline import Line, LineResult
from pipeline.flow.stages import LineConfig
from pipeline.outputs.publisher import PublishConfig, Publisher
from pipeline.sources import Source
from tests.pipeline.fakes import LAMP, MUG, FakeEngine, FakeSource
from xpose_client.subscriber import PoseSubscriber

pytestmark = pytest.mark.timeout(30)

END_S = 10.0


def run(line: Line) -> LineResult:
    """Run the line to its end, or fail: no test waits for a line that hangs."""
    line.start()
    assert line.wait(END_S), "the line hangs"
    return line.finish()


def make_line(
    *sources: Source, engine: FakeEngine | None = None, config: PipelineConfig | None = None, **outputs: Any
) -> Line:
    return Line(sources, engine or FakeEngine(), (MUG,), config or PipelineConfig(), **outputs)


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_file_loses_no_frame_and_keeps_the_order(tmp_path: Path) -> None:
    poses = tmp_path / "poses.jsonl"
    result = run(make_line(FakeSource(200), poses=poses))
    written = lines_of(poses)
    assert [line["frame"] for line in written] == list(range(200))
    assert [line["seq"] for line in written] == list(range(200))
    assert result.outputs == (poses,)
    assert not result.broken
    assert all(line["tracks"][0]["id"] == 1 for line in written)


def test_message_of_a_frame_tells_its_own_time_and_the_publishing(tmp_path: Path) -> None:
    poses = tmp_path / "poses.jsonl"
    before_ns = time.time_ns()
    run(make_line(FakeSource(3), poses=poses))
    for index, line in enumerate(lines_of(poses)):
        assert line["pts_s"] == pytest.approx(index / 30)
        assert before_ns < line["capture_unix_ns"] < line["publish_unix_ns"] < time.time_ns()


def test_several_sources_share_the_engine_in_batches_and_have_their_own_tracks(tmp_path: Path) -> None:
    poses = tmp_path / "poses.jsonl"
    engine = FakeEngine(delay_s=0.01, batch=3)
    sources = [FakeSource(30, "a"), FakeSource(20, "b"), FakeSource(10, "a")]
    run(make_line(*sources, engine=engine, poses=poses))
    written = lines_of(poses)
    for name, count in (("a", 30), ("b", 20), ("a-2", 10)):
        own = [line for line in written if line["source"] == name]
        assert [line["frame"] for line in own] == list(range(count))
        assert [line["seq"] for line in own] == list(range(count))
        assert {track["id"] for line in own for track in line["tracks"]} == {1}
    assert max(engine.batches) == 3
    assert all(source.closed_by is source.opened_by is not None for source in sources)


def test_failing_engine_stops_the_line_with_its_own_error_and_leaves_no_file(tmp_path: Path) -> None:
    source = FakeSource(1000)
    line = make_line(source, engine=FakeEngine(fail_at=5), poses=tmp_path / "p.jsonl", video=tmp_path / "v.mp4")
    with pytest.raises(RuntimeError, match="the engine broke"):
        run(line)
    assert list(tmp_path.iterdir()) == []
    assert source.closed_by is source.opened_by is not None


def test_source_that_fails_before_its_first_frame_stops_the_line(tmp_path: Path) -> None:
    broken = FakeSource(0, error=SourceError("nothing in it"))
    with pytest.raises(SourceError, match="nothing in it"):
        run(make_line(FakeSource(50, "other"), broken, poses=tmp_path / "p.jsonl"))
    assert list(tmp_path.iterdir()) == []


def test_source_that_breaks_off_keeps_its_frames_and_the_others_go_on(tmp_path: Path) -> None:
    poses = tmp_path / "poses.jsonl"
    broken = FakeSource(7, "broken", error=SourceError("broke off after frame 6", partial=True))
    result = run(make_line(broken, FakeSource(40, "whole"), poses=poses))
    counts = [sum(line["source"] == name for line in lines_of(poses)) for name in ("broken", "whole")]
    assert counts == [7, 40]
    assert result.broken == ("broke off after frame 6",)


def test_port_in_use_stops_the_line_before_anything_is_inferred(tmp_path: Path) -> None:
    engine = FakeEngine()
    with Publisher(PublishConfig("tcp://127.0.0.1:*")) as taken:
        config = PipelineConfig(publish=PublishConfig(taken.endpoint))
        with pytest.raises(PublishError, match="another program"):
            run(make_line(FakeSource(10), engine=engine, config=config, poses=tmp_path / "p.jsonl"))
    assert engine.images == 0
    assert list(tmp_path.iterdir()) == []


def test_unwritable_output_stops_the_line_and_a_wrong_suffix_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OutputError, match="cannot be written"):
        run(make_line(FakeSource(5), poses=tmp_path / "file" / "p.jsonl"))
    with pytest.raises(OutputError, match=r"\.mp4"):
        make_line(FakeSource(5), video=tmp_path / "v.gif")


def test_stop_drains_what_is_under_way_and_keeps_it(tmp_path: Path) -> None:
    poses = tmp_path / "poses.jsonl"
    engine = FakeEngine(delay_s=0.1)
    line = make_line(FakeSource(1000), engine=engine, poses=poses)
    line.start()
    time.sleep(0.5)
    start_s = time.monotonic()
    line.stop()
    assert line.wait(2.0)
    result = line.finish()
    assert time.monotonic() - start_s < 2.0
    assert result.stopped
    written = lines_of(poses)
    assert [entry["frame"] for entry in written] == list(range(engine.images))
    assert 1 <= len(written) < 1000


def test_live_source_drops_the_oldest_counts_it_and_never_waits() -> None:
    source = FakeSource(60, live=True, interval_s=0.01)
    line = make_line(source, engine=FakeEngine(delay_s=0.1))
    start_s = time.monotonic()
    run(line)
    assert time.monotonic() - start_s < 3.0
    published = line.metrics.frames_out("publish")
    assert 3 <= published < 30
    assert published + line.metrics.dropped("fake") == 60
    infer = next(stage for stage in line.metrics.report() if stage.name == "infer")
    assert infer.dropped["newer frame"] > 30


def test_live_frames_over_the_age_budget_are_dropped_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    line = make_line(
        FakeSource(10, live=True, interval_s=0.02),
        engine=FakeEngine(delay_s=0.15),
        config=PipelineConfig(line=LineConfig(age_budget_s=0.1)),
    )
    run(line)
    publish = next(stage for stage in line.metrics.report() if stage.name == "publish")
    assert publish.dropped["too old"] >= 1
    assert publish.frames_out == 0
    assert "line.age_budget_s" in caplog.text


def test_change_of_prompts_takes_effect_on_one_frame_and_ends_the_tracks_of_classes_that_went(tmp_path: Path) -> None:
    poses = tmp_path / "poses.jsonl"
    engine = FakeEngine()
    line = Line([FakeSource(40)], engine, (MUG, LAMP), PipelineConfig(), poses=poses)
    engine.on_infer = lambda images: engine.set_prompts((LAMP,)) and None if images == 19 else None
    run(line)
    written = lines_of(poses)
    assert [entry["prompt_id"] for entry in written] == [1] * 20 + [2] * 20
    lamp_ids = [[track["id"] for track in entry["tracks"] if track["class"] == "lamp"] for entry in written]
    assert all([track["class"] for track in entry["tracks"]] == ["mug", "lamp"] for entry in written[:20])
    assert all([track["class"] for track in entry["tracks"]] == ["lamp"] for entry in written[20:])
    assert len(lamp_ids[0]) == 1
    skeletons = lines_of(tmp_path / "poses.skeletons.jsonl")
    assert [[entry["name"] for entry in skeleton["classes"]] for skeleton in skeletons] == [["mug", "lamp"], ["lamp"]]


def test_class_that_stays_keeps_its_identity_over_a_change_of_prompts(tmp_path: Path) -> None:
    poses = tmp_path / "poses.jsonl"
    engine = FakeEngine()
    line = Line([FakeSource(40)], engine, (MUG,), PipelineConfig(), poses=poses)
    engine.on_infer = lambda images: engine.set_prompts((MUG, LAMP)) and None if images == 19 else None
    run(line)
    mugs = {t["id"] for entry in lines_of(poses) for t in entry["tracks"] if t["class"] == "mug"}
    assert mugs == {1}


def test_stills_start_afresh_and_are_neither_smoothed_nor_coasted(tmp_path: Path) -> None:
    poses = tmp_path / "poses.jsonl"
    run(make_line(FakeSource(6, stills=True), poses=poses))
    written = lines_of(poses)
    assert [entry["file"] for entry in written] == [f"{index:03}.png" for index in range(6)]
    assert [entry["pts_s"] for entry in written] == [None] * 6
    (tracks,) = {len(entry["tracks"]) for entry in written}
    assert tracks == 1
    assert [entry["tracks"][0]["id"] for entry in written] == [1, 2, 3, 4, 5, 6]
    for index, entry in enumerate(written):
        (track,) = entry["tracks"]
        assert track["keypoints"] == track["keypoints_raw"] == track["keypoints_predicted"]
        assert track["keypoints"][0] == [20.0 + index, 10.0]
        assert track["keypoints_velocity"] == [[None, None]] * 3
        assert track["measured"]


def test_doubtful_detections_continue_a_track_and_found_none(tmp_path: Path) -> None:
    config = PipelineConfig(engine=EngineConfig(score_threshold=0.5))
    scores = [0.4, 0.4, 0.6, *[0.4] * 5]
    counts = {}
    for kind in ("video", "stills"):
        source = FakeSource(len(scores), stills=kind == "stills")
        run(make_line(source, engine=FakeEngine(scores=scores), config=config, poses=tmp_path / kind))
        counts[kind] = [len(entry["tracks"]) for entry in lines_of(tmp_path / kind)]
        ids = {track["id"] for entry in lines_of(tmp_path / kind) for track in entry["tracks"]}
        assert ids == {1}
    assert counts["video"] == [0, 0, 0, 1, 1, 1, 1, 1]  # published from the second detection on
    assert counts["stills"] == [0, 0, 1, 0, 0, 0, 0, 0]


def test_unreadable_still_has_a_line_without_tracks_and_the_rest_goes_on(tmp_path: Path) -> None:
    poses = tmp_path / "poses.jsonl"
    error = SourceError("2 of 5 images could not be read", partial=True)
    source = FakeSource(5, stills=True, unreadable=(0, 3), error=error)
    result = run(make_line(source, poses=poses, video=tmp_path / "v.mp4"))
    written = lines_of(poses)
    assert [len(entry["tracks"]) for entry in written] == [0, 1, 1, 0, 1]
    assert [entry["prompt_id"] for entry in written] == [1] * 5
    assert [(entry["width"], entry["height"]) for entry in written[:2]] == [(0, 0), (64, 48)]
    assert result.broken


def test_published_messages_are_the_written_lines(tmp_path: Path) -> None:
    poses = tmp_path / "poses.jsonl"
    engine = FakeEngine()
    gate = threading.Event()
    engine.on_infer = lambda images: gate.wait(5) and None if images == 1 else None
    with Publisher(PublishConfig("tcp://127.0.0.1:*")) as probe:
        endpoint = probe.endpoint
    line = make_line(FakeSource(30), engine=engine, config=PipelineConfig(publish=PublishConfig(endpoint)), poses=poses)
    with PoseSubscriber(endpoint) as subscriber:
        line.start()
        first = subscriber.receive(5)  # the last value, for the late joiner
        gate.set()
        received = [first, *(subscriber.receive(5) for _ in range(29))]
        assert line.wait(END_S)
        line.finish()
        assert first is not None
        found = subscriber.skeleton(first.message)
        assert found is not None
        assert found.classes[0].keypoints == ["rim", "base", "handle"]
    written = lines_of(poses)
    assert [(got.message.seq, got.message.session, got.message.publish_unix_ns) for got in received if got] == [
        (entry["seq"], entry["session"], entry["publish_unix_ns"]) for entry in written
    ]


def test_live_predictions_are_for_now_and_those_of_files_for_the_frame(tmp_path: Path) -> None:
    """The mug moves 30 px/s to the right; with 0.1 s of inference a live prediction is ahead of the measurement."""
    ahead: dict[bool, float] = {}
    for live in (False, True):
        poses = tmp_path / f"{live}.jsonl"
        run(make_line(FakeSource(15, live=live, interval_s=0.033), engine=FakeEngine(delay_s=0.01), poses=poses))
        (track,) = lines_of(poses)[-1]["tracks"]
        ahead[live] = track["keypoints_predicted"][0][0] - track["keypoints_raw"][0][0]
    assert ahead[True] > ahead[False]
