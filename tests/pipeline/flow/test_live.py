"""Live sources in the pipeline: the newest frame wins, ages are true, drops are counted, hung decoders are left."""

import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.config import PipelineConfig
from pipeline.errors import SourceError
from pipeline.flow.stages import FlowConfig
from pipeline.frames import Frame
from pipeline.outputs.video import VideoConfig, VideoFile
from tests.pipeline.fakes import MUG, FakeEngine, FakeSource
from tests.pipeline.flow.running import END_S, lines_of, make_pipeline, run

pytestmark = pytest.mark.timeout(30)


class ScriptedSource(FakeSource):
    """A live source that does as it is told: `before` runs before each frame; frames are `age_s` old."""

    def __init__(self, count: int, before: Callable[[int], object] = lambda index: None, age_s: float = 0.0) -> None:
        super().__init__(count, live=True)
        self._before = before
        self._age_ns = round(age_s * 1e9)

    def _frame(self, index: int) -> Frame:
        self._before(index)
        frame = super()._frame(index)
        return Frame(
            frame.source, index, frame.picture, index / 30, frame.capture_unix_ns - self._age_ns,
            frame.capture_monotonic_ns - self._age_ns, "receipt",
        )  # fmt: skip


def test_live_source_never_waits_and_its_newest_frame_wins(tmp_path: Path) -> None:
    """The engine holds frame 0 until the source has given frames 1 to 9."""
    engine = FakeEngine()
    held, given = threading.Event(), threading.Event()

    def before(index: int) -> None:
        if index == 1:
            assert held.wait(5)
        if index == 10:
            given.set()
            time.sleep(0.2)  # frame 9 is taken before frame 10 comes

    def hold(images: int) -> None:
        if images == 1:  # image 0 is the warm-up
            held.set()
            assert given.wait(5)

    engine.on_submit = hold
    pipeline = make_pipeline(ScriptedSource(11, before), poses=tmp_path / "p")
    run(pipeline, engine)
    assert [line["frame"] for line in lines_of(tmp_path / "p")][:2] == [0, 9]
    assert pipeline.metrics.drops("fake")["newer frame"] == 8
    assert pipeline.metrics.drops(stage="infer") == {"newer frame": 8}


def test_every_frame_of_a_live_source_is_published_or_counted_as_dropped() -> None:
    pipeline = make_pipeline(FakeSource(60, live=True, interval_s=0.005))
    run(pipeline, FakeEngine(delay_s=0.05, in_flight=2))
    assert pipeline.metrics.frames_out("publish") + pipeline.metrics.drops("fake").total() == 60


def test_dropped_live_frame_is_never_converted() -> None:
    converted: list[int] = []

    class Picture:
        """A picture that notes its conversion."""

        def __init__(self, index: int) -> None:
            self._index = index

        size_hw = (48, 64)

        def rgb(self) -> NDArray[np.uint8]:
            converted.append(self._index)
            return np.zeros((48, 64, 3), np.uint8)

        def nv12(self) -> None:
            """Not available."""

    class Lazy(ScriptedSource):
        """Yields pictures that are not converted."""

        def _frame(self, index: int) -> Frame:
            frame = super()._frame(index)
            return Frame(
                frame.source, index, Picture(index), frame.pts_s, frame.capture_unix_ns, frame.capture_monotonic_ns,
                "receipt",
            )  # fmt: skip

    engine, given = FakeEngine(), threading.Event()
    engine.on_submit = lambda images: given.wait(5) and None if images == 1 else None
    pipeline = make_pipeline(Lazy(21, lambda index: given.set() if index == 20 else None))
    run(pipeline, engine)
    assert len(set(converted)) == pipeline.metrics.frames_out("publish") <= 4
    assert pipeline.metrics.drops("fake")["newer frame"] >= 17


def test_frame_that_cannot_be_converted_is_dropped_and_the_pipeline_goes_on() -> None:
    class Broken:
        """A picture of an unknown pixel format."""

        size_hw = (48, 64)

        def rgb(self) -> NDArray[np.uint8]:
            raise SourceError("pixel format xyz cannot be converted")

        def nv12(self) -> None:
            """Not available."""

    class Mixed(FakeSource):
        """Every second picture cannot be converted."""

        def _frame(self, index: int) -> Frame:
            frame = super()._frame(index)
            picture = Broken() if index % 2 else frame.picture
            return Frame(frame.source, index, picture, index / 30, *(frame.capture_unix_ns,) * 2, "file")

    pipeline = make_pipeline(Mixed(10))
    assert run(pipeline).published == 5
    assert pipeline.metrics.drops() == {"unreadable": 5}


def test_live_frames_over_the_age_budget_are_dropped_and_counted_with_a_single_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = PipelineConfig(flow=FlowConfig(age_budget_s=0.5, live_queue=20))
    pipeline = make_pipeline(ScriptedSource(10, age_s=0.6), config=config)
    assert run(pipeline).published == 0
    assert pipeline.metrics.drops(stage="infer") == {"too old": 10}
    assert sum("flow.age_budget_s" in record.message for record in caplog.records) == 1


def test_live_result_over_the_age_budget_is_not_published() -> None:
    config = PipelineConfig(flow=FlowConfig(age_budget_s=1.0))
    pipeline = make_pipeline(ScriptedSource(1, age_s=0.8), config=config)
    assert run(pipeline, FakeEngine(delay_s=0.4)).published == 0
    assert pipeline.metrics.drops(stage="publish") == {"too old": 1}


@pytest.mark.parametrize("budget_s", [0.0, 2.0])
def test_files_are_never_too_old_and_a_budget_of_zero_allows_every_age(budget_s: float) -> None:
    config = PipelineConfig(flow=FlowConfig(age_budget_s=budget_s, live_queue=20))
    source = FakeSource(5) if budget_s else ScriptedSource(5, age_s=100)
    engine = FakeEngine(delay_s=0.01)
    assert run(make_pipeline(source, config=config), engine).published == 5


def test_age_of_a_published_frame_is_the_time_since_its_capture() -> None:
    pipeline = make_pipeline(ScriptedSource(1, age_s=0.8))
    run(pipeline)
    (whole,) = [stage for stage in pipeline.metrics.report() if stage.name == "capture to publish"]
    assert 0.8 < whole.took.largest_s < 5
    assert pipeline.metrics.age_s("fake") == whole.took.largest_s


def test_live_predictions_are_for_now_and_those_of_files_for_the_frame(tmp_path: Path) -> None:
    """The mug moves 30 px/s to the right and the live frames are 0.5 s old: predictions are 15 px ahead."""
    config = PipelineConfig(flow=FlowConfig(live_queue=20))
    ahead_px: dict[str, float] = {}
    for name, source in (("live", ScriptedSource(20, age_s=0.5)), ("file", FakeSource(20))):
        run(make_pipeline(source, config=config, poses=tmp_path / name))
        (track,) = lines_of(tmp_path / name)[-1]["tracks"]
        ahead_px[name] = track["keypoints_predicted"][0][0] - track["keypoints_raw"][0][0]
    assert ahead_px["file"] == pytest.approx(0, abs=1.5)
    assert 10 < ahead_px["live"] < 60


def test_slow_encoder_drops_live_frames_from_the_video_and_never_delays_publishing(tmp_path: Path) -> None:
    published = threading.Event()
    write = VideoFile.write

    def slow_write(*arguments: object) -> None:
        assert published.wait(5), "publishing waits for the encoder"
        write(*arguments)  # type: ignore[arg-type]

    config = PipelineConfig(video=VideoConfig(queue=2), flow=FlowConfig(live_queue=50))
    pipeline = make_pipeline(FakeSource(30, live=True), config=config, video=tmp_path / "v.mp4")
    with mock.patch.object(VideoFile, "write", slow_write):
        pipeline.start(FakeEngine(), (MUG,))
        deadline_s = time.monotonic() + 5
        while pipeline.metrics.frames_out("publish") < 30 and time.monotonic() < deadline_s:
            time.sleep(0.01)
        assert pipeline.metrics.frames_out("publish") == 30
        published.set()
        assert pipeline.wait(END_S)
    pipeline.finish()
    drawn = pipeline.metrics.frames_out("draw")
    assert drawn + pipeline.metrics.drops(stage="draw")["newer frame"] == 30
    assert drawn <= 4


def test_pictures_that_the_source_itself_dropped_are_reported() -> None:
    source = FakeSource(3, live=True)
    source.drops["undecodable"] += 4
    pipeline = make_pipeline(source)
    run(pipeline)
    assert pipeline.metrics.drops(stage="decode") == {"undecodable": 4}
    assert pipeline.metrics.drops("fake")["undecodable"] == 4


def test_decoder_that_hangs_in_a_read_does_not_keep_the_pipeline_from_ending(tmp_path: Path) -> None:
    hung = threading.Event()

    class Hung(FakeSource):
        """Three frames, then a read that never returns."""

        def __iter__(self) -> Generator[Frame]:
            yield from super().__iter__()
            hung.wait()

    pipeline = make_pipeline(Hung(3), poses=tmp_path / "p")
    pipeline.start(FakeEngine(), (MUG,))
    while pipeline.metrics.frames_out("publish") < 3:
        time.sleep(0.01)
    assert not pipeline.wait(0.1)
    pipeline.stop()
    assert pipeline.wait(5)
    assert pipeline.finish().published == 3
    assert len(lines_of(tmp_path / "p")) == 3
    (left,) = [thread for thread in threading.enumerate() if thread.name.startswith("decode")]
    assert left.daemon
    hung.set()
    left.join(5)


def test_hung_source_can_be_removed_and_the_others_end_the_pipeline() -> None:
    hung = threading.Event()

    class Hung(FakeSource):
        """A read that never returns."""

        def __iter__(self) -> Generator[Frame]:
            hung.wait()
            yield from super().__iter__()

    pipeline = make_pipeline(Hung(3, "hung", live=True), FakeSource(5, "file"))
    pipeline.start(FakeEngine(), (MUG,))
    pipeline.remove("hung")
    assert pipeline.wait(5)
    assert pipeline.finish().published == 5
    hung.set()
