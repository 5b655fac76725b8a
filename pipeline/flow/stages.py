"""What a stage is, and the stages around inference.

A stage is a generator function: it reads a `Queue` and yields what it makes. `Stage.drive` runs it on a thread, counts
and times its items, and closes its output however it ends. To add a stage, write such a function and name it in
`Pipeline._make_stages`. Sources start once every stage reads its queue: what a stage needs, it opens before that, and
closes on its own thread.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from pipeline.errors import ConfigError, SourceError
from pipeline.flow.age import AgeBudget
from pipeline.flow.beat import Beat
from pipeline.flow.metrics import NO_PICTURE, TOO_OLD, Metrics
from pipeline.flow.queues import FromSource, Item, Lane, Queue, QueueClosed
from pipeline.frames import Frame, FrameTracks
from pipeline.outputs.messages import pose_message, skeleton_message
from pipeline.outputs.publisher import PublishConfig, Publisher
from xpose_client.messages import Message, PoseMessage, SkeletonMessage

if TYPE_CHECKING:
    from pipeline.outputs.poses import PoseFile
    from pipeline.outputs.video import VideoFile
    from pipeline.sources import Source

Out = TypeVar("Out", bound=FromSource)

_log = logging.getLogger(__name__)

_LATE_JOINER_WAIT_S = 0.02


@dataclass(frozen=True)
class FlowConfig:
    """How the stages are joined.

    Attributes:
        file_queue: frames of a file that may wait for inference; when the queue is full, the decoder waits.
        live_queue: frames of a live source that may wait for inference; when the queue is full, the oldest is dropped.
        stage_queue: results that may wait between inference, tracking and publishing; when full, inference waits.
        age_budget_s: an older live frame is not inferred, and an older result is not published. A source that stays
            older catches up. 0 allows every age.
    """

    file_queue: int = 8
    live_queue: int = 1
    stage_queue: int = 8
    age_budget_s: float = 2.0

    def __post_init__(self) -> None:
        for key in ("file_queue", "live_queue", "stage_queue"):
            if getattr(self, key) < 1:
                raise ConfigError(f"flow.{key} is {getattr(self, key)}: give 1 frame or more")
        if not self.age_budget_s >= 0:
            raise ConfigError(f"flow.age_budget_s is {self.age_budget_s}: give 0 s (every age) or more")


@dataclass(frozen=True, eq=False)
class Stage(Generic[Item, Out]):
    """A generator function between two queues.

    Attributes:
        name: the stage under which metrics count what `work` yields; None counts nothing.
        work: the generator function.
        input: what it reads.
        output: where its items go; None discards them.
        workers: threads that run `work` side by side.
    """

    name: str | None
    work: Callable[[Queue[Item]], Generator[Out]]
    input: Queue[Item]
    output: Queue[Out] | None = None
    workers: int = 1

    def drive(self, metrics: Metrics) -> None:
        """Run the stage on this thread until its input ends or nobody takes its output; raise what it raises."""
        try:
            with closing(self.work(self.input)) as results:
                for result in results:
                    if self.name is not None:
                        busy_s = time.perf_counter() - self.input.taken_s
                        metrics.count_out(self.name, result.source, busy_s if self.name == self.input.stage else None)
                    if self.output is not None:
                        self.output.put(result)
        except QueueClosed:
            pass
        finally:
            self.input.read.set()
            if self.output is not None:
                self.output.close()


def decode(source: Source, lane: Lane[Frame], metrics: Metrics) -> None:
    """Read a source to its end into its lane. The thread that calls this opens the source and closes it.

    Raises:
        SourceError: the source cannot be opened or broke off.
    """
    try:
        with closing(iter(source)) as frames:
            for frame in frames:
                if not source.live:
                    source.status.picture(frame)
                metrics.count_out("decode", frame.source, frame.decode_s)
                lane.put(frame)
    except SourceError as error:
        source.status.ended(str(error))
        raise
    except QueueClosed:
        pass
    finally:
        source.status.ended()
        lane.close()


@dataclass(frozen=True, eq=False)
class Published:
    """A frame with its message and the skeletons that belong to it."""

    frame: Frame
    message: PoseMessage
    skeleton: SkeletonMessage

    @property
    def source(self) -> str:
        """Name of the frame's source."""
        return self.frame.source


class Publish:
    """The stage that makes one message per frame, publishes it, and writes it as a line of text.

    It also publishes the states of the sources at a steady beat.

    Args:
        sources: returns those whose states are published.
        poses: file for the messages; None writes none.
    """

    def __init__(
        self,
        config: PublishConfig,
        age_budget_s: float,
        metrics: Metrics,
        poses: PoseFile | None,
        sources: Callable[[], Iterable[Source]],
    ) -> None:
        self._config = config
        self._budget = AgeBudget(age_budget_s, "publishing")
        self._metrics = metrics
        self._poses = poses
        self._sources = sources
        self._session = time.time_ns()
        self._beat = Beat(self._session, config.beat_s, age_budget_s, metrics)
        self._seq: dict[str, int] = {}
        self._skeletons: dict[str, SkeletonMessage] = {}

    def __call__(self, frames: Queue[FrameTracks]) -> Generator[Published]:
        """Open the socket and the file, publish every frame, close them."""
        with ExitStack() as opened:
            if self._poses is not None:
                opened.enter_context(self._poses)
            publisher = opened.enter_context(Publisher(self._config)) if self._config.endpoint else None
            if publisher is not None:
                _log.info("publishing on %s", publisher.endpoint)
                opened.callback(self._publish_states, publisher, last=True)
            for tracked in frames.polled(_LATE_JOINER_WAIT_S if publisher is not None else None):
                if publisher is not None:
                    publisher.serve_late_joiners()
                    self._publish_states(publisher)
                if tracked is None:
                    continue
                if self._budget.allows(tracked.frame):
                    yield self._publish(tracked, publisher)
                else:
                    frames.drop(tracked, TOO_OLD)

    def _publish_states(self, publisher: Publisher, *, last: bool = False) -> None:
        sources = list(self._sources())
        for source in sources if last else ():
            source.status.ended()
        for message in self._beat.due(sources, now=last):
            publisher.publish(message)

    def _publish(self, tracked: FrameTracks, publisher: Publisher | None) -> Published:
        source, found = tracked.source, tracked.detections
        skeleton = self._skeletons.get(source)
        messages: list[Message] = []
        if skeleton is None or skeleton.prompt_id != found.prompt_id:
            skeleton = self._skeletons[source] = skeleton_message(
                found.prompts, found.prompt_id, source=source, session=self._session, publish_unix_ns=time.time_ns()
            )
            messages.append(skeleton)
        seq = self._seq.get(source, 0)
        self._seq[source] = seq + 1
        message = pose_message(tracked, session=self._session, seq=seq, publish_unix_ns=time.time_ns())
        messages.append(message)
        if publisher is not None:
            for item in messages:
                publisher.publish(item)
        self._metrics.count_age(source, tracked.frame.age_s)
        if self._poses is not None:
            for item in messages:
                self._poses.write(item)
        return Published(tracked.frame, message, skeleton)


def draw(files: Mapping[str, VideoFile], frames: Queue[Published]) -> Generator[Published]:
    """Draw each message on its frame and encode it into the video of its source. Yields what was drawn.

    This stage has a thread of its own, so that publishing never waits for an encoder.
    """
    with ExitStack() as opened:
        writing = {name: opened.enter_context(file) for name, file in list(files.items())}
        for published in frames:
            if published.frame.picture is None:
                frames.drop(published, NO_PICTURE)
                continue
            if published.source not in writing:  # added while running
                writing[published.source] = opened.enter_context(files[published.source])
            writing[published.source].write(published.frame, published.message, published.skeleton)
            yield published
