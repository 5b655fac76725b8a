"""The pipeline as a whole: order, loss, failures, lanes that come and go, stills."""

import threading
import time
from pathlib import Path

import av
import pytest

from engines.config import EngineConfig
from pipeline.config import PipelineConfig
from pipeline.errors import OutputError, PipelineError, PublishError, SourceError
from pipeline.outputs.publisher import PublishConfig, Publisher
from tests.pipeline.fakes import MUG, FakeEngine, FakeSource
from tests.pipeline.flow.running import END_S, lines_of, make_pipeline, run
from xpose_client.subscriber import PoseSubscriber

pytestmark = pytest.mark.timeout(30)


def test_file_loses_no_frame_and_keeps_the_order(tmp_path: Path) -> None:
    poses = tmp_path / "poses.jsonl"
    result = run(make_pipeline(FakeSource(200), poses=poses))
    written = lines_of(poses)
    assert [line["frame"] for line in written] == list(range(200))
    assert [line["seq"] for line in written] == list(range(200))
    assert (result.outputs, result.published, result.broken) == ((poses,), 200, ())
    assert all(line["tracks"][0]["id"] == 1 for line in written)


def test_message_of_a_frame_tells_its_own_time_and_the_publishing(tmp_path: Path) -> None:
    poses = tmp_path / "poses.jsonl"
    before_ns = time.time_ns()
    run(make_pipeline(FakeSource(3), poses=poses))
    for index, line in enumerate(lines_of(poses)):
        assert line["pts_s"] == pytest.approx(index / 30)
        assert before_ns < line["capture_unix_ns"] < line["publish_unix_ns"] < time.time_ns()


def test_several_sources_share_the_engine_in_batches_and_have_their_own_tracks(tmp_path: Path) -> None:
    poses = tmp_path / "poses.jsonl"
    engine = FakeEngine(delay_s=0.01, batch=3)
    sources = [FakeSource(30, "a"), FakeSource(20, "b"), FakeSource(10, "a")]
    run(make_pipeline(*sources, poses=poses), engine)
    written = lines_of(poses)
    for name, count in (("a", 30), ("b", 20), ("a-2", 10)):
        own = [line for line in written if line["source"] == name]
        assert [line["frame"] for line in own] == list(range(count))
        assert [line["seq"] for line in own] == list(range(count))
        assert {track["id"] for line in own for track in line["tracks"]} == {1}
    assert max(engine.batches) == 3
    assert all(source.closed_by is source.opened_by is not None for source in sources)


def test_failure_keeps_what_was_written_under_its_part_name_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = FakeSource(1000)
    pipeline = make_pipeline(source, poses=tmp_path / "p.jsonl", video=tmp_path / "v.mp4")
    (tmp_path / "p.jsonl").write_text("of an earlier run")
    with pytest.raises(RuntimeError, match="the engine broke"):
        run(pipeline, FakeEngine(fail_at=50))
    written = [line["frame"] for line in lines_of(tmp_path / "p.part.jsonl")]
    assert len(written) > 10
    assert written == list(range(len(written)))
    assert (tmp_path / "p.jsonl").read_text() == "of an earlier run"
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"p.jsonl", "p.part.jsonl", "p.skeletons.part.jsonl", "v.part.mp4"}
    with av.open(tmp_path / "v.part.mp4") as container:
        assert sum(1 for _ in container.decode(video=0)) > 0
    assert "p.part.jsonl" in caplog.text
    assert source.closed_by is source.opened_by is not None


def test_failure_before_the_first_frame_leaves_no_file(tmp_path: Path) -> None:
    pipeline = make_pipeline(FakeSource(1000), poses=tmp_path / "p.jsonl", video=tmp_path / "v.mp4")
    with pytest.raises(RuntimeError, match="the engine broke"):
        run(pipeline, FakeEngine(fail_at=0))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("frames", [0, 7])
def test_source_that_fails_keeps_its_frames_and_the_others_go_on(frames: int, tmp_path: Path) -> None:
    poses = tmp_path / "poses.jsonl"
    broken = FakeSource(frames, "broken", error=SourceError("cannot be read further"))
    result = run(make_pipeline(broken, FakeSource(40, "whole"), poses=poses))
    counts = [sum(line["source"] == name for line in lines_of(poses)) for name in ("broken", "whole")]
    assert counts == [frames, 40]
    assert result.broken == ("cannot be read further",)


def test_run_in_which_no_source_gave_a_frame_leaves_no_file(tmp_path: Path) -> None:
    result = run(make_pipeline(FakeSource(0, error=SourceError("nothing in it")), poses=tmp_path / "p.jsonl"))
    assert (result.broken, result.published, result.outputs) == (("nothing in it",), 0, ())
    assert list(tmp_path.iterdir()) == []


def test_port_in_use_stops_the_pipeline_before_any_source_is_opened(tmp_path: Path) -> None:
    engine, source = FakeEngine(), FakeSource(10)
    with Publisher(PublishConfig("tcp://127.0.0.1:*")) as taken:
        config = PipelineConfig(publish=PublishConfig(taken.endpoint))
        with pytest.raises(PublishError, match="another program"):
            run(make_pipeline(source, config=config, poses=tmp_path / "p.jsonl"), engine)
    assert engine.images == 0
    assert source.opened_by is None
    assert list(tmp_path.iterdir()) == []


def test_unwritable_output_stops_the_pipeline_and_a_wrong_suffix_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OutputError, match="cannot be written"):
        run(make_pipeline(FakeSource(5), poses=tmp_path / "file" / "p.jsonl"))
    with pytest.raises(OutputError, match=r"\.mp4"):
        make_pipeline(FakeSource(5), video=tmp_path / "v.gif")


def test_stop_drains_what_is_under_way_and_keeps_it(tmp_path: Path) -> None:
    poses = tmp_path / "poses.jsonl"
    engine = FakeEngine(delay_s=0.05, in_flight=2)
    pipeline = make_pipeline(FakeSource(1000), poses=poses)
    pipeline.start(engine, (MUG,))
    while engine.images < 5:
        time.sleep(0.01)
    pipeline.stop()
    assert pipeline.wait(2.0)
    result = pipeline.finish()
    assert result.stopped
    written = lines_of(poses)
    assert [entry["frame"] for entry in written] == list(range(engine.images))
    assert 5 <= len(written) < 1000
    taken = sum(stage.frames_out for stage in pipeline.metrics.report() if stage.name == "decode")
    assert len(written) + pipeline.metrics.drops("fake")["stopped"] == taken


def test_source_can_be_added_and_removed_while_the_pipeline_runs(tmp_path: Path) -> None:
    poses = tmp_path / "poses.jsonl"
    first = FakeSource(100_000, "first", live=True, interval_s=0.005)
    pipeline = make_pipeline(first, poses=poses, video=tmp_path / "v.mp4")
    pipeline.start(FakeEngine(), (MUG,))
    assert pipeline.add(FakeSource(20, "second")) == "second"
    while pipeline.metrics.frames_out("publish", "second") < 20:
        time.sleep(0.01)
    before = pipeline.metrics.frames_out("publish", "first")
    while pipeline.metrics.frames_out("publish", "first") < before + 5:
        time.sleep(0.01)
    assert pipeline.add(FakeSource(20, "first")) == "first-2"
    pipeline.remove("first")
    assert pipeline.wait(END_S)
    result = pipeline.finish()
    written = lines_of(poses)
    for name in ("second", "first-2"):
        assert [line["frame"] for line in written if line["source"] == name] == list(range(20))
    assert {path.name for path in result.outputs} == {"poses.jsonl", "v.mp4", "v.second.mp4", "v.first-2.mp4"}
    with pytest.raises(PipelineError, match="has ended"):
        pipeline.add(FakeSource(1))


def test_source_that_was_removed_and_added_again_has_a_new_session_and_a_new_tracker(tmp_path: Path) -> None:
    poses = tmp_path / "poses.jsonl"
    pipeline = make_pipeline(FakeSource(100_000, "first", live=True, interval_s=0.002), poses=poses, hold=True)
    pipeline.start(FakeEngine(), (MUG,))
    while pipeline.metrics.frames_out("publish", "first") < 20:
        time.sleep(0.01)
    pipeline.remove("first")
    assert pipeline.add(FakeSource(20, "first")) == "first"
    while pipeline.metrics.frames_out("publish", "first") < 40:
        time.sleep(0.01)
    pipeline.remove("first")
    assert pipeline.add(FakeSource(5, "first"), session=77) == "first"
    assert not pipeline.wait(0.3), "a pipeline that holds ended with its last source"
    pipeline.stop()
    assert pipeline.wait(END_S)
    pipeline.finish()
    written = lines_of(poses)
    sessions = list(dict.fromkeys(line["session"] for line in written))
    assert sessions == [*sorted(sessions[:2]), 77]
    for session in sessions:
        numbers = [line["seq"] for line in written if line["session"] == session]
        assert numbers == list(range(len(numbers)))
    assert {track["id"] for line in written if line["session"] == 77 for track in line["tracks"]} == {1}
    skeletons = lines_of(tmp_path / "poses.skeletons.jsonl")
    assert [line["session"] for line in skeletons] == sessions


def test_address_that_cannot_be_is_refused_before_anything_starts() -> None:
    pipeline = make_pipeline()
    with pytest.raises(SourceError, match="no such file"):
        pipeline.add("absent.mp4")
    assert pipeline.sources == []


def test_stills_start_afresh_and_are_neither_smoothed_nor_coasted(tmp_path: Path) -> None:
    poses = tmp_path / "poses.jsonl"
    run(make_pipeline(FakeSource(6, stills=True), poses=poses))
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


def test_doubtful_detections_continue_a_track_and_start_none(tmp_path: Path) -> None:
    config = PipelineConfig(engine=EngineConfig(score_threshold=0.5))
    scores = [0.4, 0.4, 0.6, *[0.4] * 5]
    counts = {}
    for kind in ("video", "stills"):
        source = FakeSource(len(scores), stills=kind == "stills")
        run(make_pipeline(source, config=config, poses=tmp_path / kind), FakeEngine(scores=scores))
        counts[kind] = [len(entry["tracks"]) for entry in lines_of(tmp_path / kind)]
        ids = {track["id"] for entry in lines_of(tmp_path / kind) for track in entry["tracks"]}
        assert ids == {1}
    assert counts["video"] == [0, 0, 0, 1, 1, 1, 1, 1]  # published from the second detection on
    assert counts["stills"] == [0, 0, 1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("stills", [False, True])
def test_scores_are_published_on_the_scale_of_the_model(stills: bool, tmp_path: Path) -> None:
    scores = [0.5, 0.55, 0.62, 0.71, 0.97]
    run(make_pipeline(FakeSource(5, stills=stills), poses=tmp_path / "p"), FakeEngine(scores=scores))
    published = [entry["tracks"][0]["score"] for entry in lines_of(tmp_path / "p") if entry["tracks"]]
    assert published == pytest.approx(scores[-len(published) :])
    assert len(published) >= 4


def test_unreadable_still_has_a_line_without_tracks_and_the_rest_goes_on(tmp_path: Path) -> None:
    poses = tmp_path / "poses.jsonl"
    error = SourceError("2 of 5 images could not be read", partial=True)
    source = FakeSource(5, stills=True, unreadable=(0, 3), error=error)
    pipeline = make_pipeline(source, poses=poses, video=tmp_path / "v.mp4")
    result = run(pipeline)
    written = lines_of(poses)
    assert [len(entry["tracks"]) for entry in written] == [0, 1, 1, 0, 1]
    assert [entry["prompt_id"] for entry in written] == [1] * 5
    assert [(entry["width"], entry["height"]) for entry in written[:2]] == [(0, 0), (64, 48)]
    assert result.broken
    assert pipeline.metrics.drops(stage="draw") == {"no picture": 2}


def test_published_messages_are_the_written_lines(tmp_path: Path) -> None:
    poses = tmp_path / "poses.jsonl"
    engine = FakeEngine()
    gate = threading.Event()
    engine.on_submit = lambda images: gate.wait(5) and None if images == 1 else None
    with Publisher(PublishConfig("tcp://127.0.0.1:*")) as probe:
        endpoint = probe.endpoint
    pipeline = make_pipeline(FakeSource(30), config=PipelineConfig(publish=PublishConfig(endpoint)), poses=poses)
    with PoseSubscriber(endpoint) as subscriber:
        pipeline.start(engine, (MUG,))
        first = subscriber.receive(5)  # the last value, for the late joiner
        gate.set()
        received = [first, *(subscriber.receive(5) for _ in range(29))]
        assert pipeline.wait(END_S)
        pipeline.finish()
        assert first is not None
        found = subscriber.skeleton(first.message)
        assert found is not None
        assert found.classes[0].keypoints == ["rim", "base", "handle"]
    written = lines_of(poses)
    assert [(got.message.seq, got.message.session, got.message.publish_unix_ns) for got in received if got] == [
        (entry["seq"], entry["session"], entry["publish_unix_ns"]) for entry in written
    ]


def test_every_stage_reports_its_own_frames_and_times() -> None:
    pipeline = make_pipeline(FakeSource(20), FakeSource(10, stills=True))
    run(pipeline, FakeEngine(delay_s=0.02, batch=2))
    report = {stage.name: stage for stage in pipeline.metrics.report()}
    assert list(report) == ["decode", "infer", "track", "publish", "capture to publish"]
    for name in ("infer", "track", "publish"):
        assert (report[name].frames_in, report[name].frames_out, report[name].took.count) == (30, 30, 30), name
        assert report[name].waited.count == 30
    assert report["infer"].took.percentile_s(1) >= 0.0199, "each frame takes at least the time of its batch"
    assert report["track"].took.percentile_s(50) < 0.02
    assert report["decode"].frames_out == 30
