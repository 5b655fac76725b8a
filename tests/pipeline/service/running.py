"""Running pipelines of fakes, with operations on them."""

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.config import PipelineConfig
from pipeline.flow.pipeline import Pipeline
from pipeline.frames import Frame
from pipeline.service.operations import EngineFacts, Operations
from tests.pipeline.fakes import MUG, FakeEngine, FakeSource
from tests.pipeline.flow.running import END_S, make_pipeline
from xpose_client.control_messages import EngineState

FACTS = EngineFacts(
    EngineState("nano", "", "eager", "cpu", "fp32", (64, 64), 1, 1, max_classes=8, max_keypoints=68), categories=None
)


class Camera(FakeSource):
    """A live source that reports its pictures, as live sources do, and ends when it is told to."""

    def __iter__(self) -> Generator[Frame]:
        for frame in super().__iter__():
            self.status.picture(frame)
            yield frame


def camera(name: str = "cam") -> FakeSource:
    """A camera with 200 frames a second."""
    return Camera(1_000_000, name, live=True, interval_s=0.005)


@contextmanager
def operated(
    *sources: FakeSource,
    config: PipelineConfig | None = None,
    engine: FakeEngine | None = None,
    poses: Path | None = None,
    hold: bool = True,
) -> Iterator[tuple[Operations, Pipeline]]:
    """A pipeline of fakes with its operations; it is ended afterwards."""
    pipeline = make_pipeline(*sources, config=config, hold=hold, poses=poses)
    pipeline.start(engine or FakeEngine(), (MUG,))
    try:
        yield Operations(pipeline, FACTS), pipeline
    finally:
        pipeline.stop()
        assert pipeline.wait(END_S), "the pipeline hangs"
        pipeline.finish()


def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition, or fail."""
    deadline_s = time.monotonic() + END_S
    while not condition():
        assert time.monotonic() < deadline_s, "the condition was never met"
        time.sleep(0.005)
