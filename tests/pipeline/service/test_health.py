"""Alive and ready: what makes a pipeline healthy, and what does not."""

import threading
import time
from collections.abc import Callable, Generator
from unittest import mock

from pipeline.flow.pipeline import Pipeline
from pipeline.frames import Frame
from pipeline.service.health import Health
from pipeline.sources import SourceConfig
from tests.pipeline.fakes import MUG, FakeEngine, FakeSource
from tests.pipeline.flow.running import END_S, make_pipeline, run

STALL_S = 0.2


def health_of(pipeline: Pipeline, stall_s: float = STALL_S) -> Health:
    return Health(pipeline, stall_s, SourceConfig(open_timeout_s=0.01, read_timeout_s=0.01))


def until(condition: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline_s, "did not happen within 10 s"
        time.sleep(0.01)


def end(pipeline: Pipeline) -> None:
    pipeline.stop()
    assert pipeline.wait(END_S), "the pipeline hangs"


def test_stage_that_hangs_on_a_frame_is_named_and_those_that_wait_for_it_are_not() -> None:
    held = threading.Event()
    engine = FakeEngine()
    engine.on_submit = lambda images: held.wait(10) and None if images == 2 else None
    pipeline = make_pipeline(FakeSource(100))
    health = health_of(pipeline)
    pipeline.start(engine, (MUG,))
    assert health.stalled() == []
    until(health.stalled)
    (sentence,) = health.stalled()
    assert sentence.startswith("stage infer has worked on one frame for ")
    held.set()
    until(lambda: not health.stalled())
    end(pipeline)


def test_stage_that_waits_for_room_is_well_and_the_slow_one_after_it_is_named() -> None:
    held = threading.Event()
    pipeline = make_pipeline(FakeSource(100))

    class Held:
        """Tracks nothing until it may."""

        def __init__(self, *_: object) -> None:
            pass

        def update(self, *_: object) -> None:
            held.wait(10)
            raise ValueError("enough")

    with mock.patch("pipeline.flow.tracking.PromptedTracker", Held):
        pipeline.start(FakeEngine(), (MUG,))
        health = health_of(pipeline)
        until(lambda: any(stage.output is not None and stage.output.waiting_producers for stage in pipeline.stages))
        until(health.stalled)
        assert [sentence.split()[1] for sentence in health.stalled()] == ["track"]
        held.set()
        assert pipeline.wait(END_S)


def test_idle_pipeline_is_alive() -> None:
    pipeline = make_pipeline(FakeSource(3, live=True, interval_s=0.5))
    pipeline.start(FakeEngine(), (MUG,))
    health = health_of(pipeline, 0.4)
    deadline_s = time.monotonic() + 1
    while time.monotonic() < deadline_s:
        assert [sentence for sentence in health.stalled() if "stage" in sentence] == []
        time.sleep(0.02)
    end(pipeline)


def test_live_source_whose_thread_hangs_is_named_and_one_that_tries_again_and_again_is_well() -> None:
    hung = threading.Event()

    class Hung(FakeSource):
        """A read that never returns."""

        def __iter__(self) -> Generator[Frame]:
            hung.wait(10)
            yield from ()

    class Trying(FakeSource):
        """A camera that is off."""

        def __iter__(self) -> Generator[Frame]:
            while not self._stopped.wait(0.02):
                self.status.failed("nothing listens there")
            yield from ()

    pipeline = make_pipeline(Hung(1, "hung", live=True), Trying(1, "off", live=True))
    pipeline.start(FakeEngine(), (MUG,))
    health = health_of(pipeline)
    until(health.stalled)
    (sentence,) = health.stalled()
    assert sentence.startswith("the thread of hung has done nothing for ")
    hung.set()
    end(pipeline)
    assert health.stalled() == []


def test_pipeline_is_ready_once_the_engine_is_warm_and_a_source_is_live() -> None:
    class Bright(FakeSource):
        """Reports its pictures, as live sources do."""

        def __iter__(self) -> Generator[Frame]:
            for frame in super().__iter__():
                self.status.picture(frame)
                yield frame

    pipeline = make_pipeline(Bright(1000, "bright", live=True, interval_s=0.01), FakeSource(0, "dark", live=True))
    health = health_of(pipeline)
    assert health.unready() == "the engine is warming up"
    pipeline.start(FakeEngine(), (MUG,))
    until(lambda: health.unready() is None)
    pipeline.sources[0].stop()
    until(lambda: health.unready() == "no source is live: bright is ended, dark is ended")
    end(pipeline)


def test_pipeline_of_files_is_ready_when_all_are_under_way() -> None:
    slow = threading.Event()

    class Slow(FakeSource):
        """Opens late."""

        def __iter__(self) -> Generator[Frame]:
            slow.wait(10)
            yield from super().__iter__()

    pipeline = make_pipeline(FakeSource(5, "quick"), Slow(5, "slow"))
    health = health_of(pipeline)
    pipeline.start(FakeEngine(), (MUG,))
    until(lambda: pipeline.metrics.frames_out("publish", "quick"))
    assert (health.unready() or "").endswith("slow is connecting")
    slow.set()
    until(lambda: health.unready() is None)
    end(pipeline)


def test_pipeline_that_has_ended_is_alive() -> None:
    pipeline = make_pipeline(FakeSource(5))
    run(pipeline)
    assert health_of(pipeline, 1e-6).stalled() == []


def test_engine_that_is_warming_up_is_not_stalled() -> None:
    assert health_of(make_pipeline(FakeSource(5)), 1e-6).stalled() == []
