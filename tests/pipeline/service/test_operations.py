"""Operations on a running pipeline: each change is whole or not at all, and says from when on it holds."""

import threading
from collections.abc import Generator
from pathlib import Path

import cv2
import numpy as np
import pytest

from engines.config import EngineConfig
from engines.errors import CapacityError, InputError, PromptError
from pipeline.config import PipelineConfig
from pipeline.errors import OutputError, PipelineError, SourceError
from pipeline.frames import Frame
from pipeline.outputs.publisher import PublishConfig
from pipeline.outputs.recording import RecordConfig
from pipeline.service.config import ControlConfig
from pipeline.service.operations import EngineFacts, Operations
from tests.pipeline.fakes import LAMP, MUG, FakeEngine, FakeSource
from tests.pipeline.flow.running import END_S, lines_of
from tests.pipeline.service.running import FACTS, camera, operated, until
from xpose_client.subscriber import PoseSubscriber

pytestmark = pytest.mark.timeout(60)


def test_pipeline_without_sources_waits_for_them_and_for_more() -> None:
    with operated() as (operations, pipeline):
        assert not pipeline.wait(0.2)
        assert operations.status().sources == []
        pipeline.add(FakeSource(20, "first"))
        until(lambda: pipeline.metrics.frames_out("publish", "first") == 20)
        assert not pipeline.wait(0.2)
        pipeline.add(FakeSource(20, "second"))
        until(lambda: pipeline.metrics.frames_out("publish", "second") == 20)


def test_status_tells_sources_prompts_engine_and_thresholds() -> None:
    with operated(camera("a"), camera("b")) as (operations, pipeline):
        until(lambda: pipeline.metrics.frames_out("publish") >= 20)
        status = operations.status()
        assert [(report.status.source, report.status.state, report.live) for report in status.sources] == [
            ("a", "live", True),
            ("b", "live", True),
        ]
        assert all(report.published > 0 and report.age_s is not None for report in status.sources)
        assert status.sources[0].last_frame is not None
        assert status.prompts.classes[0].keypoints == ["rim", "base", "handle"]
        assert status.engine.model == "nano"
        assert (status.thresholds.score, status.thresholds.nms_iou) == (0.48, 0.5)
        assert status.session == pipeline.session
        assert 0 < status.uptime_s < 60
        assert {"50", "95", "99"} == set(status.age_percentiles_s)
        assert {"decode", "infer", "track", "publish"} >= set(status.stage_percentiles_s) >= {"infer"}


def test_prompts_hold_from_the_frame_that_the_answer_names(tmp_path: Path) -> None:
    poses = tmp_path / "poses.jsonl"
    with operated(camera("a"), camera("b"), poses=poses) as (operations, pipeline):
        until(lambda: pipeline.metrics.frames_out("publish", "b") >= 5)
        answer = operations.set_prompts("mug,lamp", "rim,handle")
        assert [prompt.name for prompt in answer.prompts.classes] == ["mug", "lamp"]
        assert set(answer.after_frames) == {"a", "b"}
        published = pipeline.metrics.frames_out("publish", "b")
        until(lambda: pipeline.metrics.frames_out("publish", "b") >= published + 10)
    written = lines_of(poses)
    for name, last in answer.after_frames.items():
        own = [line for line in written if line["source"] == name and "tracks" in line]
        assert any(line["frame"] > last for line in own)
        assert all((line["prompt_id"] == answer.prompts.id) for line in own if line["frame"] > last)
        assert any(line["prompt_id"] != answer.prompts.id for line in own)


@pytest.mark.parametrize(
    ("prompt", "keypoints", "prompt_from", "error", "sentence"),
    [
        ("person,", None, "example", PromptError, "empty item"),
        ("person,person", None, "example", PromptError, "occurs twice"),
        ("gizmo", None, "example", PromptError, "no keypoint list is known for 'gizmo'"),
        ("mug@/etc/passwd", None, "example", PromptError, "files of this machine are not read"),
        ("mug@own.toml", None, "example", PromptError, "files of this machine are not read"),
        ("person", None, "picture", PipelineError, "--prompt-from picture"),
        ("mug", "rim,,handle", "example", PromptError, "--keypoints"),
    ],
)
def test_prompt_that_cannot_be_used_is_refused_and_the_old_one_stays(
    prompt: str, keypoints: str | None, prompt_from: str, error: type[Exception], sentence: str
) -> None:
    with operated() as (operations, pipeline):
        with pytest.raises(error, match=sentence):
            operations.set_prompts(prompt, keypoints, prompt_from=prompt_from)
        assert pipeline.prompts.classes == (MUG,)
        assert operations.status().prompts.id == 1


def test_prompt_of_which_the_engine_knows_nothing_leaves_the_old_one() -> None:
    class Closed(FakeEngine):
        def set_prompts(self, classes: object) -> int:
            if self.images or classes != (MUG,):
                raise PromptError("this model was not trained on 'lamp'")
            return super().set_prompts((MUG,))

    with operated(engine=Closed()) as (operations, pipeline):
        with pytest.raises(PromptError, match="not trained on 'lamp'"):
            operations.set_prompts("lamp", "bulb")
        assert pipeline.prompts.classes == (MUG,)


@pytest.mark.parametrize(
    ("engine", "sentence"),
    [
        (
            EngineConfig(max_classes=2),
            "3 classes are asked for, this engine takes 1 to 2 (max_classes); build a larger one with `python "
            "run_pipeline.py build-engine --model nano --classes 3` and start it with --set engine.max_classes=3",
        ),
        (
            EngineConfig(model="swin-t", backend="tensorrt", size=(480, 640), max_classes=2, max_keypoints=8, batch=2),
            "build-engine --model swin-t --backend tensorrt --size 480x640 --batch 2 --classes 3 --keypoints 8` and",
        ),
        (EngineConfig(backend="eager", max_classes=2), "(max_classes); start again with --set engine.max_classes=3"),
    ],
)
def test_prompt_beyond_the_capacity_is_refused_with_the_way_to_a_larger_engine(
    engine: EngineConfig, sentence: str
) -> None:
    with operated(config=PipelineConfig(engine=engine)) as (operations, _):
        with pytest.raises(CapacityError) as raised:
            operations.set_prompts("a,b,c", "tip,base")
        assert sentence in str(raised.value)


def test_too_many_keypoints_name_the_capacity_that_they_need() -> None:
    config = PipelineConfig(engine=EngineConfig(max_keypoints=2))
    with operated(config=config) as (operations, _), pytest.raises(CapacityError) as raised:
        operations.set_prompts("mug", "rim,base,handle")
    assert "--classes 8 --keypoints 3` and start it with --set engine.max_keypoints=3" in str(raised.value)


def test_thresholds_reach_the_engine_and_are_checked() -> None:
    engine = FakeEngine()
    with operated(camera(), engine=engine) as (operations, _):
        answer = operations.set_thresholds(score=0.6, nms_iou=0.8)
        assert (answer.thresholds.score, answer.thresholds.doubtful, answer.thresholds.nms_iou) == (0.6, 0.2, 0.8)
        assert engine.thresholds == (0.2, 0.8)  # doubtful detections still reach the tracker
        with pytest.raises(InputError, match=r"score_threshold is 1.5, allowed is 0 to 1"):
            operations.set_thresholds(score=1.5, nms_iou=0.1)
        assert operations.status().thresholds == answer.thresholds
        assert operations.set_thresholds(doubtful=0.3).thresholds.score == 0.6


def test_score_threshold_decides_which_detections_start_a_track(tmp_path: Path) -> None:
    with operated(camera("high"), engine=FakeEngine(scores=[0.5] * 10**6)) as (operations, pipeline):
        until(lambda: operations.newest("high") is not None)
        published = operations.newest("high")
        assert published is not None
        assert len(published.message.tracks) == 1
        operations.set_thresholds(score=0.9)
        pipeline.add(camera("low"))
        until(lambda: pipeline.metrics.frames_out("publish", "low") > 3)
        later = operations.newest("low")
        assert later is not None
        assert later.message.tracks == []


def test_stills_follow_a_changed_threshold() -> None:
    with operated(engine=FakeEngine(scores=[0.5] * 10**6)) as (operations, pipeline):
        operations.set_thresholds(score=0.4)
        pipeline.add(FakeSource(3, "stills", stills=True))
        until(lambda: pipeline.metrics.frames_out("publish", "stills") == 3)
        published = operations.newest("stills")
        assert published is not None
        assert len(published.message.tracks) == 1
        operations.set_thresholds(score=0.6)
        pipeline.add(FakeSource(3, "stills", stills=True))
        until(lambda: pipeline.metrics.frames_out("publish", "stills") == 6)
        published = operations.newest("stills")
        assert published is not None
        assert published.message.tracks == []


def test_removed_source_ends_its_topics_and_another_takes_its_name_with_new_tracks(tmp_path: Path) -> None:
    config = PipelineConfig(publish=PublishConfig(f"ipc://{tmp_path}/p", beat_s=0.1))
    poses = tmp_path / "poses.jsonl"
    with operated(camera("cam"), camera("other"), config=config, poses=poses) as (operations, pipeline):
        until(lambda: pipeline.metrics.frames_out("publish", "cam") > 5)
        with PoseSubscriber(config.publish.endpoint, source="cam") as early:
            while early.receive(END_S) is None:
                pass
            answer = operations.remove_source("cam")
            states = []
            while "ended" not in states:
                event = early.receive_event(END_S)
                assert event is not None
                states += [event.state] if hasattr(event, "state") else []
            assert early.receive(0.3) is None
            assert operations.newest("cam") is None
            assert [report.status.source for report in operations.status().sources] == ["other"]
            with PoseSubscriber(config.publish.endpoint, source="cam") as late:
                assert late.receive(0.5) is None
                assert late.state("cam") == "ended"
            assert pipeline.add(camera("cam")) == "cam"
            received = early.receive(END_S)
            assert received is not None
            assert (received.missed, received.restarted) == (0, True)
            assert received.message.tracks[0].id == 1
            assert early.skeletons["cam"].prompt_id == received.message.prompt_id
    own = [line for line in lines_of(poses) if line["source"] == "cam" and "tracks" in line]
    late_lines = [line for line in own if line["publish_unix_ns"] > answer.from_unix_ns]
    assert late_lines
    assert all(line["capture_unix_ns"] > answer.from_unix_ns for line in late_lines)
    assert {line["session"] for line in late_lines} == {received.message.session}


def test_removed_sources_leave_nothing_behind() -> None:
    with operated(camera("other")) as (operations, pipeline):
        for _ in range(30):
            operations._pipeline.add(camera("cam"))
            until(lambda: operations.newest("cam") is not None)
            operations.remove_source("cam")
        assert [source.name for source in pipeline.sources] == ["other"]
        until(lambda: not [thread for thread in threading.enumerate() if thread.name == "decode cam"])
        assert len(pipeline._frames._lanes) <= 3


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with operated(camera("a"), camera("b")) as (operations, _):
        for operation in (operations.remove_source, operations.snapshot):
            with pytest.raises(PipelineError, match="c: there is no source of this name; the sources are a, b"):
                operation("c")


def test_removing_one_source_loses_no_frame_of_another(tmp_path: Path) -> None:
    poses = tmp_path / "poses.jsonl"
    with operated(FakeSource(300, "file"), poses=poses, engine=FakeEngine(delay_s=0.001)) as (operations, pipeline):
        for _ in range(10):
            pipeline.add(camera("cam"))
            operations.remove_source("cam")
        until(lambda: pipeline.metrics.frames_out("publish", "file") == 300)
    own = [line for line in lines_of(poses) if line["source"] == "file" and "tracks" in line]
    assert [line["frame"] for line in own] == list(range(300))


def test_snapshot_is_the_newest_picture_with_its_poses() -> None:
    with operated(camera("cam")) as (operations, pipeline):
        until(lambda: pipeline.metrics.frames_out("publish") > 3)
        snapshot = operations.snapshot("cam")
        picture_HW3 = cv2.imdecode(np.frombuffer(snapshot.jpeg, np.uint8), cv2.IMREAD_COLOR)
        assert picture_HW3 is not None
        assert picture_HW3.shape == (48, 64, 3)
        assert np.ptp(picture_HW3) > 100  # the source is grey; what stands out is drawn
        assert operations.snapshot("cam").frame >= snapshot.frame


def test_snapshot_before_the_first_picture_says_so() -> None:
    class Silent(FakeSource):
        def __iter__(self) -> Generator[Frame]:
            self._stopped.wait()
            yield from ()

    with operated(Silent(1, "cam", live=True)) as (operations, _), pytest.raises(OutputError) as raised:
        operations.snapshot("cam")
    assert "cam: no frame of this source has been published yet" in str(raised.value)


def test_waiting_for_newer_frames_gets_each_source_and_skips_what_was_missed() -> None:
    with operated(FakeSource(5, "a"), FakeSource(5, "b")) as (operations, pipeline):
        until(lambda: pipeline.metrics.frames_out("publish") == 10)
        stamp, newer = operations.wait_for_newer(0, END_S)
        assert {name: published.frame.index for name, published in newer.items()} == {"a": 4, "b": 4}
        assert operations.wait_for_newer(stamp, 0.05) == (stamp, {})
        pipeline.add(FakeSource(1, "c"))
        _, newer = operations.wait_for_newer(stamp, END_S)
        assert set(newer) == {"c"}
    assert operations.wait_for_newer(10**9, END_S * 100)[1] == {}


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("clip.mp4", "is a file, and a running pipeline takes live addresses only"),
        ("/etc/passwd", "is a file"),
        ("file:///etc/passwd", "is a file"),
        ("http://host/clip.mp4", "is a recording"),
        ("gopher://host/", "is not a kind of source"),
        ("rtsp://user:secret@:99999/", "is not a port"),
        ("rtsp://host/a\0b", "do not print"),
        ("rtsp://host/" + "x" * 5000, "too long"),
        ("", "is a file"),
    ],
)
def test_address_that_is_not_live_is_refused(address: str, sentence: str) -> None:
    with operated() as (operations, pipeline):
        with pytest.raises(SourceError, match=sentence) as raised:
            operations.add_source(address)
        assert "secret" not in str(raised.value)
        assert pipeline.sources == []


def test_file_is_added_from_a_named_folder_alone(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    for folder in (inside, outside):
        folder.mkdir()
        cv2.imwrite(str(folder / "still.png"), np.zeros((32, 32, 3), np.uint8))
    (inside / "link.png").symlink_to(outside / "still.png")
    config = PipelineConfig(control=ControlConfig(folders=(str(inside),)))
    with operated(config=config) as (operations, pipeline):
        for path in (outside / "still.png", inside / "link.png", inside / ".." / "out" / "still.png"):
            with pytest.raises(SourceError, match="outside of the folders"):
                operations.add_source(str(path))
        assert operations.add_source(str(inside / "still.png"), "mine").source == "mine"
        until(lambda: pipeline.metrics.frames_out("publish", "mine") == 1)


def test_number_of_sources_is_bounded() -> None:
    config = PipelineConfig(control=ControlConfig(max_sources=1))
    with operated(camera("a"), config=config) as (operations, _), pytest.raises(SourceError) as raised:
        operations.add_source("rtsp://127.0.0.1:9/x")
    assert "there are 1 sources, allowed are 1 (control.max_sources); remove one" in str(raised.value)


def test_live_address_is_added_under_its_name_and_can_be_removed() -> None:
    with operated(camera("a")) as (operations, pipeline):
        assert operations.add_source("rtsp://127.0.0.1:9/door").source == "127.0.0.1:9/door"
        assert operations.add_source("rtsp://127.0.0.1:9/door", "door").source == "door"
        assert [source.name for source in pipeline.sources] == ["a", "127.0.0.1:9/door", "door"]
        operations.remove_source("door")
        operations.remove_source("127.0.0.1:9/door")


def test_last_source_of_a_run_of_files_is_not_removed() -> None:
    """The run would end with it, and nobody asked for that."""
    with operated(camera("a"), camera("b"), hold=False) as (operations, pipeline):
        operations.remove_source("a")
        with pytest.raises(PipelineError, match="b: is the last source of this run"):
            operations.remove_source("b")
        assert not pipeline.wait(0.1)


def test_stop_ends_the_pipeline() -> None:
    with operated(camera()) as (operations, pipeline):
        operations.stop()
        assert pipeline.wait(END_S)
        with pytest.raises(PipelineError, match="the pipeline has ended"):
            operations.add_source("rtsp://127.0.0.1:9/x")


def test_known_categories_are_those_of_the_model() -> None:
    with operated() as (operations, pipeline):
        assert not operations.categories().closed
        assert "person" in operations.categories().names
        closed = Operations(pipeline, EngineFacts(FACTS.state, {"person": "person", "dog": "animal"}))
        assert (closed.categories().names, closed.categories().closed) == (["person", "dog"], True)


def test_prompts_of_two_callers_at_once_end_with_the_later_id() -> None:
    with operated(camera()) as (operations, pipeline):
        first, second = operations.set_prompts("mug", "rim"), operations.set_prompts("lamp", "bulb")
        assert second.prompts.id == first.prompts.id + 1
        assert pipeline.prompts.classes[0].name == LAMP.name


def test_recording_is_started_and_ended_in_its_folder(tmp_path: Path) -> None:
    config = PipelineConfig(record=RecordConfig(folder=str(tmp_path / "records")))
    with operated(camera("a"), config=config) as (operations, _):
        assert operations.status().recording is None
        begun = operations.start_recording("fault")
        assert begun.recording.active
        assert begun.recording.files == [str(tmp_path / "records" / "fault.mcap")]
        recording = operations.status().recording
        assert recording is not None
        assert recording.files == begun.recording.files
        with pytest.raises(PipelineError, match="a recording is going on; stop it first"):
            operations.start_recording("second")
        ended = operations.stop_recording()
        assert not ended.recording.active
        assert ended.recording.failure is None
        assert (tmp_path / "records" / "fault.mcap").stat().st_size > 0
        with pytest.raises(PipelineError, match="there is no recording to end"):
            operations.stop_recording()
        assert operations.start_recording().recording.files[0].endswith(".mcap")


@pytest.mark.parametrize("name", ["../out.mcap", "/tmp/out.mcap", "..", ".hidden", "a\nb", "x" * 300, "a/b.mcap"])
def test_recording_by_control_stays_in_its_folder(tmp_path: Path, name: str) -> None:
    config = PipelineConfig(record=RecordConfig(folder=str(tmp_path)))
    with operated(config=config) as (operations, _), pytest.raises(OutputError, match="is not a file name"):
        operations.start_recording(name)
    assert list(tmp_path.iterdir()) == []


def test_recording_by_control_needs_a_folder() -> None:
    with operated() as (operations, _), pytest.raises(OutputError, match=r"name a folder for them in record\.folder"):
        operations.start_recording("out.mcap")
