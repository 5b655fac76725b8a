"""Inference with several calls in flight: throughput, order, swaps of prompts, warm-up, failures."""

import math
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import PipelineConfig
from pipeline.errors import PipelineError
from pipeline.flow.inference import Inference
from pipeline.flow.metrics import Metrics
from pipeline.flow.queues import Queue
from pipeline.flow.stages import FlowConfig
from pipeline.frames import Frame
from tests.pipeline.fakes import LAMP, MUG, FakeEngine, FakeSource
from tests.pipeline.flow.running import END_S, lines_of, make_pipeline, run

pytestmark = pytest.mark.timeout(30)


@pytest.mark.parametrize("in_flight", [1, 2, 4])
def test_throughput_is_the_calls_in_flight_over_the_latency(in_flight: int) -> None:
    """Sleeping is all that this engine does, so its rate does not depend on the machine."""
    latency_s, frames = 0.06, 24
    pipeline = make_pipeline(FakeSource(frames))
    start_s = time.perf_counter()
    run(pipeline, FakeEngine(delay_s=latency_s, in_flight=in_flight))
    took_s = time.perf_counter() - start_s
    assert frames / in_flight * latency_s <= took_s < (frames / in_flight + 8) * latency_s


def test_no_more_calls_are_in_flight_than_the_engine_takes() -> None:
    running, most = [0], [0]
    lock = threading.Lock()

    class Watched(FakeEngine):
        """Counts the calls between submit and the return of result."""

        def submit(self, images: Any) -> Any:
            pending = super().submit(images)
            with lock:
                running[0] += 1
                most[0] = max(most[0], running[0])
            result = pending.result

            def counted() -> Any:
                detections = result()
                with lock:
                    running[0] -= 1
                return detections

            object.__setattr__(pending, "result", counted)
            return pending

    run(make_pipeline(FakeSource(30), FakeSource(30, "b")), Watched(delay_s=0.01, in_flight=3))
    assert most == [3]


def test_each_source_keeps_its_order_whatever_call_is_ready_first(tmp_path: Path) -> None:
    poses = tmp_path / "poses.jsonl"
    engine = FakeEngine(delay_s=lambda image: 0.05 if image % 3 == 0 else 0.001, in_flight=3)
    run(make_pipeline(FakeSource(40, "a"), FakeSource(40, "b"), poses=poses), engine)
    for name in "ab":
        assert [line["frame"] for line in lines_of(poses) if line["source"] == name] == list(range(40))


def test_result_goes_on_as_soon_as_it_is_there_past_a_slow_one_of_another_source() -> None:
    """The first frame is held back until five frames of the other source are published."""
    held = threading.Event()
    slow, quick = FakeSource(1, "slow"), FakeSource(5, "quick")
    pipeline = make_pipeline(slow, quick)

    class Held(FakeEngine):
        """Waits in the result of the frame that comes from `slow`, the brighter one."""

        def submit(self, images: Any) -> Any:
            pending = super().submit(images)
            if images[0] is slow_picture:
                result = pending.result
                object.__setattr__(pending, "result", lambda: held.wait(10) and result())
            return pending

    slow_frame = next(iter(FakeSource(1, "slow")))
    slow_picture = slow_frame.rgb_HW3
    slow._frame = lambda index: slow_frame  # type: ignore[method-assign]
    pipeline.start(Held(in_flight=2), (MUG,))
    deadline_s = time.monotonic() + 5
    while pipeline.metrics.frames_out("publish", "quick") < 5:
        assert time.monotonic() < deadline_s, "quick frames wait for the slow one"
        time.sleep(0.005)
    held.set()
    assert pipeline.wait(END_S)
    assert pipeline.finish().published == 6


def test_change_of_prompts_takes_effect_on_one_frame_and_ends_the_tracks_of_classes_that_went(tmp_path: Path) -> None:
    poses = tmp_path / "poses.jsonl"
    engine = FakeEngine(delay_s=0.005, in_flight=3)
    pipeline = make_pipeline(FakeSource(40), poses=poses)
    ids: list[int] = []
    engine.on_submit = lambda images: ids.append(pipeline.set_prompts((LAMP,))) if images == 19 else None
    run(pipeline, engine, (MUG, LAMP))
    written = lines_of(poses)
    assert ids == [2]
    assert [entry["prompt_id"] for entry in written] == [1] * 20 + [2] * 20
    assert all([track["class"] for track in entry["tracks"]] == ["mug", "lamp"] for entry in written[:20])
    assert all([track["class"] for track in entry["tracks"]] == ["lamp"] for entry in written[20:])
    skeletons = lines_of(tmp_path / "poses.skeletons.jsonl")
    assert [[entry["name"] for entry in skeleton["classes"]] for skeleton in skeletons] == [["mug", "lamp"], ["lamp"]]


def test_class_that_stays_keeps_its_identity_over_a_change_of_prompts(tmp_path: Path) -> None:
    poses = tmp_path / "poses.jsonl"
    engine = FakeEngine()
    pipeline = make_pipeline(FakeSource(40), poses=poses)
    engine.on_submit = lambda images: pipeline.set_prompts((MUG, LAMP)) and None if images == 19 else None
    run(pipeline, engine)
    mugs = {t["id"] for entry in lines_of(poses) for t in entry["tracks"] if t["class"] == "mug"}
    assert mugs == {1}


def test_still_without_a_picture_carries_the_prompts_in_force(tmp_path: Path) -> None:
    engine = FakeEngine()
    pipeline = make_pipeline(FakeSource(6, stills=True, unreadable=(1, 4)), poses=tmp_path / "p")
    engine.on_submit = lambda images: pipeline.set_prompts((LAMP,)) and None if images == 2 else None
    run(pipeline, engine)
    assert [entry["prompt_id"] for entry in lines_of(tmp_path / "p")] == [1, 1, 1, 1, 2, 2]


def test_prompts_cannot_be_swapped_before_the_start() -> None:
    with pytest.raises(PipelineError, match="has not started"):
        make_pipeline(FakeSource(1)).set_prompts((MUG,))


@pytest.mark.parametrize("live", [True, False])
def test_engine_is_warm_before_a_live_source_is_opened_and_files_need_no_warm_up(live: bool) -> None:
    engine = FakeEngine()
    inferred_at_opening: list[int] = []

    class Watched(FakeSource):
        """Notes how much was inferred when it was opened."""

        def __iter__(self) -> Any:
            inferred_at_opening.append(engine.images)
            return super().__iter__()

    run(make_pipeline(Watched(3, live=live)), engine)
    assert inferred_at_opening == [1 if live else 0]


@pytest.mark.parametrize("in_flight", [1, 3])
@pytest.mark.parametrize("fail_at", [0, 7])
def test_engine_that_fails_ends_every_thread(in_flight: int, fail_at: int) -> None:
    config = PipelineConfig(flow=FlowConfig(stage_queue=1))
    pipeline = make_pipeline(FakeSource(500), FakeSource(500, "b"), config=config)
    with pytest.raises(RuntimeError, match="the engine broke"):
        run(pipeline, FakeEngine(delay_s=0.002, fail_at=fail_at, in_flight=in_flight))
    assert not [thread.name for thread in threading.enumerate() if thread.name in ("infer", "track", "publish")]


@pytest.mark.parametrize(
    ("gather_ms", "on_gpu", "expected_s"),
    [(None, True, 0.002), (None, False, 0.0), (7.0, False, 0.007), (0.0, True, 0.0)],
)
def test_frames_wait_for_other_cameras_on_a_gpu_and_where_it_is_asked_for(
    gather_ms: float | None, on_gpu: bool, expected_s: float
) -> None:
    waits = []

    class Watched(Queue[Frame]):
        """Notes for how long frames may wait for others."""

        def take(self, limit: int = 1, timeout_s: float | None = None, **options: Any) -> list[Frame]:
            waits.append(options["gather_s"])
            return super().take(limit, timeout_s, **options)

    frames = Watched("infer", Metrics())
    frames.lane(2).put(next(iter(FakeSource(1))))
    frames.close()
    inference = Inference(FakeEngine(on_gpu=on_gpu), (MUG,), FlowConfig(gather_ms=gather_ms), warm_up=False)
    assert len(list(inference(frames))) == 1
    assert waits == [expected_s]


class Gate:
    """Cameras that each send their next frame when all have sent theirs, in an order that changes."""

    def __init__(self, cameras: int, frames: int) -> None:
        self.barrier = threading.Barrier(cameras)
        self.cameras = [self._camera(index, frames) for index in range(cameras)]

    def _camera(self, index: int, frames: int) -> FakeSource:
        gate = self

        class Camera(FakeSource):
            def __iter__(self) -> Any:
                for number in range(frames):
                    gate.barrier.wait(10)
                    self._stopped.wait((index + number) % 3 * 0.002)
                    yield self._frame(number)

        return Camera(frames, f"cam{index}", live=True)


def test_cameras_share_calls_and_each_keeps_its_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call costs the same, so that fewer calls are a higher rate. Nobody is given up here, however slow."""
    monkeypatch.setattr("pipeline.flow.inference._GPU_GATHER_MS", 1e6)
    monkeypatch.setattr("pipeline.flow.queues._SILENT_S", math.inf)
    config = PipelineConfig(flow=FlowConfig(live_queue=8, age_budget_s=0.0))
    engine = FakeEngine(batch=3, in_flight=2, on_gpu=True)
    result = run(make_pipeline(*Gate(3, 12).cameras, config=config, poses=tmp_path / "poses"), engine)
    calls = engine.batches[1:]  # the first one warms up
    assert sum(calls) == result.published == 36
    assert len(calls) <= 12 + 4, "only until each camera has sent a frame, and when the first ends, a call is not full"
    for index in range(3):
        lines = [line["frame"] for line in lines_of(tmp_path / "poses") if line["source"] == f"cam{index}"]
        assert lines == list(range(12))
