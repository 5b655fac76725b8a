"""Recordings of whole pipelines, and the same pipelines on their recordings."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import PipelineConfig
from pipeline.errors import OutputError, PipelineError
from pipeline.flow.pipeline import Pipeline
from pipeline.flow.stages import FlowConfig
from pipeline.sources import SourceConfig, open_sources
from tests.pipeline.fakes import LAMP, MUG, FakeEngine, FakeSource
from tests.pipeline.flow.running import lines_of, make_pipeline, run
from tests.pipeline.recordings import messages_of, metadata_of, plain_video, stopped, without_times
from tests.pipeline.servers import RtspServer, need_rtsp_server
from tests.pipeline.videos import write_video

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def cameras() -> Iterator[list[RtspServer]]:
    need_rtsp_server()
    servers = [RtspServer(), RtspServer()]
    yield servers
    for server in servers:
        server.kill()


def replayed(path: Path, poses: Path, config: PipelineConfig | None = None, **source: Any) -> list[dict[str, Any]]:
    """The messages of a run on a recording."""
    pipeline = Pipeline(config or PipelineConfig(), poses=poses)
    for opened in open_sources(str(path), SourceConfig(**source)):
        pipeline.add(opened)
    run(pipeline)
    return lines_of(poses)


def by_frame(messages: list[dict[str, Any]]) -> dict[tuple[str, int], dict[str, Any]]:
    return {(message["source"], message["frame"]): without_times(message) for message in messages}


@pytest.mark.parametrize("codec", ["libx264", "libx265", "libvpx-vp9", "mjpeg"])
def test_replay_of_a_file_is_equal_bit_for_bit(tmp_path: Path, codec: str) -> None:
    suffix = {"libvpx-vp9": ".webm", "mjpeg": ".avi"}.get(codec, ".mp4")
    pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    clip = plain_video(tmp_path / f"clip{suffix}", codec=codec, pix_fmt=pix_fmt)
    pipeline = make_pipeline(poses=tmp_path / "then.jsonl", record=tmp_path / "out.mcap")
    pipeline.add(str(clip))
    result = run(pipeline)
    assert result.outputs == (tmp_path / "then.jsonl", tmp_path / "out.mcap")
    then, now = lines_of(tmp_path / "then.jsonl"), replayed(tmp_path / "out.mcap", tmp_path / "now.jsonl")
    assert len(then) == 30
    assert by_frame(then) == by_frame(now)
    assert all(message["replay"] for message in now)
    assert not any(message["replay"] for message in then)


def test_live_recording_with_drops_and_a_prompt_change_is_replayed_bit_for_bit(
    tmp_path: Path, cameras: list[RtspServer]
) -> None:
    """Two RTSP cameras, an engine that takes 70 ms, another prompt in the middle."""
    pipeline = make_pipeline(poses=tmp_path / "then.jsonl", record=tmp_path / "out.mcap")
    names = [pipeline.add(camera.uri) for camera in cameras]
    pipeline.start(FakeEngine(delay_s=0.07), [MUG])
    published = pipeline.metrics.frames_out
    wait_until(lambda: min(published("publish", name) for name in names) >= 8)
    pipeline.set_prompts([LAMP, MUG])
    wait_until(lambda: min(published("publish", name) for name in names) >= 16)
    drops = [pipeline.metrics.drops(name)["newer frame"] for name in names]
    stopped(pipeline)
    assert min(drops) > 0, "nothing was dropped, so nothing is tested"
    then = lines_of(tmp_path / "then.jsonl")
    now = replayed(tmp_path / "out.mcap", tmp_path / "now.jsonl")
    assert by_frame(then) == by_frame(now)
    assert {message["prompt_id"] for message in now} == {1, 2}
    assert any(message["tracks"][0]["keypoints_predicted"] != message["tracks"][0]["keypoints"] for message in now)
    every = replayed(tmp_path / "out.mcap", tmp_path / "every.jsonl", all_frames=True)
    assert len(every) > len(now)
    assert by_frame(now).keys() < by_frame(every).keys()


def test_frame_that_was_too_old_to_publish_is_tracked_again_and_not_published(
    tmp_path: Path, cameras: list[RtspServer]
) -> None:
    config = PipelineConfig(flow=FlowConfig(age_budget_s=1.5))
    pipeline = make_pipeline(config=config, poses=tmp_path / "then.jsonl", record=tmp_path / "out.mcap")
    name = pipeline.add(cameras[0].uri)
    pipeline.start(FakeEngine(delay_s=lambda image: 1.7 if image in (8, 9) else 0.03), [MUG])
    wait_until(lambda: pipeline.metrics.drops(name, "publish")["too old"] >= 1)
    since = pipeline.metrics.frames_out("publish", name)
    wait_until(lambda: pipeline.metrics.frames_out("publish", name) >= since + 10)
    stopped(pipeline)
    then, now = lines_of(tmp_path / "then.jsonl"), replayed(tmp_path / "out.mcap", tmp_path / "now.jsonl")
    tracked = messages_of(tmp_path / "out.mcap")[f"tracked/{name}"]
    assert len([record for record in tracked if not record["published"]]) >= 1
    assert by_frame(then) == by_frame(now)


def wait_until(condition: Any, wait_s: float = 40.0) -> None:
    deadline_s = time.monotonic() + wait_s
    while not condition():
        assert time.monotonic() < deadline_s, "it does not happen"
        time.sleep(0.02)


def test_recording_that_starts_late_begins_with_a_key_frame_and_the_skeletons(
    tmp_path: Path, cameras: list[RtspServer]
) -> None:
    pipeline = make_pipeline()
    name = pipeline.add(cameras[0].uri)
    pipeline.start(FakeEngine(), [MUG])
    published = pipeline.metrics.frames_out
    wait_until(lambda: published("publish", name) >= 10)
    pipeline.recordings.start(tmp_path / "late.mcap")
    with pytest.raises(PipelineError, match="a recording is going on"):
        pipeline.recordings.start(tmp_path / "second.mcap")
    since = published("publish", name)
    wait_until(lambda: published("publish", name) >= since + 40)
    report = pipeline.recordings.stop()
    assert report is not None
    assert not report.active
    assert report.failure is None
    assert report.packets >= 10
    assert pipeline.recordings.report is None
    stopped(pipeline)
    found = messages_of(tmp_path / "late.mcap")
    first = found[f"video/{name}"][0]
    assert first.index(b"\0\0\0\x01\x67") < first.index(b"\0\0\x01\x65"), "the key frame has its parameters before it"
    assert found[f"frames/{name}"][0]["packet"] == 0
    assert found[f"frames/{name}"][0]["frame"] > 0
    assert found[f"skeletons/{name}"][0]["classes"][0]["keypoints"] == ["rim", "base", "handle"]
    assert found[f"status/{name}"][0]["state"] in ("live", "late"), "late on a machine that is busy"
    assert replayed(tmp_path / "late.mcap", tmp_path / "late.jsonl")


def test_recording_says_how_it_was_made(tmp_path: Path) -> None:
    config = PipelineConfig(source=SourceConfig(options={"headers": "secret"}))
    pipeline = make_pipeline(FakeSource(3), config=config, record=tmp_path / "out.mcap")
    run(pipeline)
    metadata = metadata_of(tmp_path / "out.mcap")
    assert metadata["xpose.recording"]["format"] == "1"
    assert metadata["xpose.configuration"]["engine.model"] == '"nano"'
    assert metadata["xpose.configuration"]["tracker.association.new_score"]
    assert not any("secret" in value for value in metadata["xpose.configuration"].values())
    assert len(metadata["xpose.weights"]["sha256"]) == 64
    assert metadata["xpose.versions"]["av"]


def test_source_with_b_frames_is_encoded_once_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clip = write_video(tmp_path / "clip.mp4", 30, codec="libx264", size=(65, 49), pix_fmt="yuv444p")
    pipeline = make_pipeline(poses=tmp_path / "then.jsonl", record=tmp_path / "out.mcap")
    pipeline.add(str(clip))
    run(pipeline)
    assert sum("encoded again" in record.message for record in caplog.records) == 1
    assert "viewers do not read B-frames" in caplog.text
    found = messages_of(tmp_path / "out.mcap")
    assert len(found["video/clip"]) == 30
    now = replayed(tmp_path / "out.mcap", tmp_path / "now.jsonl")
    assert [(message["width"], message["height"]) for message in now] == [(65, 49)] * 30
    for before, after in zip(lines_of(tmp_path / "then.jsonl"), now, strict=True):
        assert before["pts_s"] == after["pts_s"]
        assert [track["id"] for track in before["tracks"]] == [track["id"] for track in after["tracks"]]
        then, again = (message["tracks"][0]["keypoints_raw"][0][0] for message in (before, after))
        assert abs(then - again) < 3, "brightness, which is a coordinate here, survives the encoder"


def test_turned_video_is_recorded_upright(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clip = write_video(
        tmp_path / "clip.mp4", 12, codec="libx264", size=(64, 32), rotation=90, codec_options={"bf": "0"}
    )
    pipeline = make_pipeline(record=tmp_path / "out.mcap")
    pipeline.add(str(clip))
    run(pipeline)
    assert "viewers do not apply its rotation" in caplog.text
    now = replayed(tmp_path / "out.mcap", tmp_path / "now.jsonl")
    assert [(message["width"], message["height"]) for message in now] == [(32, 64)] * 12


def test_failure_of_the_recording_leaves_the_run_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.outputs import recording_part

    def full(descriptor: int, data: object) -> int:
        raise OSError(28, "No space left on device")

    pipeline = make_pipeline(poses=tmp_path / "poses.jsonl")
    pipeline.add(str(plain_video(tmp_path / "clip.mp4")))
    pipeline.recordings.start(tmp_path / "out.mcap")
    monkeypatch.setattr(recording_part.os, "write", full)
    result = run(pipeline)
    assert len(lines_of(tmp_path / "poses.jsonl")) == 30
    assert result.broken == (f"{tmp_path}/out.mcap: the recording ended (the disk is full); what was written before is "
                             "kept",)  # fmt: skip


def test_place_that_cannot_be_written_is_an_error_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    pipeline = make_pipeline(FakeSource(3), record=tmp_path / "file" / "out.mcap")
    with pytest.raises(OutputError, match=r"out\.mcap"):
        run(pipeline)
