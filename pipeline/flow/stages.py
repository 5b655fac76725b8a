"""The stages of the line, each run by a thread of its own, joined by bounded queues.

    DecodeStage (one per source) ⇒ InferStage ⇒ TrackStage ⇒ PublishStage ⇒ VideoStage (where a video is written)

A stage opens what it needs in `open`, works in `run` until its input is closed and empty, and then closes its output:
the end of the sources runs through the line by itself. What a stage's thread opened, `close` closes on that thread.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from engines.detections import Detections
from pipeline.errors import ConfigError, SourceError
from pipeline.flow.age import AgeBudget
from pipeline.flow.beat import Beat
from pipeline.flow.metrics import Metrics
from pipeline.flow.queues import BoundedQueue, FanIn, QueueClosed
from pipeline.flow.tracking import MakeTracker, PromptedTracker, ScoreScale
from pipeline.frames import Frame, FramePoses, FrameTracks
from pipeline.outputs.files import PoseFile, VideoFile
from pipeline.outputs.messages import pose_message, skeleton_message
from pipeline.outputs.publisher import PublishConfig, Publisher
from trackers import Detections as TrackerDetections
from trackers import StillTracker, Tracks
from xpose_client.messages import PoseMessage, SkeletonMessage

if TYPE_CHECKING:
    from engines.prompts import PromptClass
    from pipeline.sources import Source

_log = logging.getLogger(__name__)

_LATE_JOINER_WAIT_S = 0.02


class PoseEngine(Protocol):
    """What the line needs of an engine; `engines.engine.Engine` is one."""

    @property
    def batch(self) -> int:
        """Images to hand over at a time."""
        ...

    def set_prompts(self, classes: Sequence[PromptClass]) -> int:
        """Take new prompts from the next `infer` on; return their id."""
        ...

    def infer(self, images: Sequence[NDArray[np.uint8]]) -> list[Detections]:
        """Return what is in each RGB image [H,W,3], in order."""
        ...


@dataclass(frozen=True)
class LineConfig:
    """How the stages are joined.

    Attributes:
        file_queue: frames of a file that may wait for inference; a full queue makes the decoder wait.
        live_queue: frames of a live source that may wait for inference; a newer one pushes out the oldest.
        stage_queue: results that may wait between inference, tracking and publishing; full queues make inference wait.
        age_budget_s: a live frame older than this is not inferred, and a result older than this is not published;
            both are counted. A source that stays older catches up. 0 turns it off.
        sure_score: a detection may found a track from this score on (`ScoreScale`), or from the engine's threshold on
            where that is higher.
        doubtful_score: in videos, a detection between this score and the engine's threshold may continue a track.
    """

    file_queue: int = 8
    live_queue: int = 1
    stage_queue: int = 8
    age_budget_s: float = 2.0
    sure_score: float = 0.3
    doubtful_score: float = 0.2

    def __post_init__(self) -> None:
        for key in ("file_queue", "live_queue", "stage_queue"):
            if getattr(self, key) < 1:
                raise ConfigError(f"line.{key} is {getattr(self, key)}: give 1 frame or more")
        if not self.age_budget_s >= 0:
            raise ConfigError(f"line.age_budget_s is {self.age_budget_s}: give 0 s (off) or more")
        if not 0 < self.sure_score < 1:
            raise ConfigError(f"line.sure_score is {self.sure_score}: give a score between 0 and 1")
        if not 0 <= self.doubtful_score <= 1:
            raise ConfigError(f"line.doubtful_score is {self.doubtful_score}: give a score from 0 to 1")


@dataclass(frozen=True, eq=False)
class Lane:
    """A source with the queue in which its frames wait for inference."""

    source: Source
    frames: BoundedQueue[Frame]


def live_names(lanes: Sequence[Lane]) -> list[str]:
    """Names of the sources where the newest frame wins."""
    return [lane.source.name for lane in lanes if lane.source.live]


class Stage(ABC):
    """One thread's work."""

    name: str

    def open(self) -> None:  # noqa: B027 (most stages need nothing)
        """Take what the stage needs; the line starts when every stage has. Runs on the stage's thread."""

    @abstractmethod
    def run(self) -> None:
        """Work until the input is closed and empty (`QueueClosed` ends it quietly). Runs on the stage's thread."""

    @abstractmethod
    def close(self) -> None:
        """Give back what `open` took, and close the output. Runs on the stage's thread, also after a failure."""


class DecodeStage(Stage):
    """Turns a source into frames.

    Args:
        on_broken: is told of a source that broke off after some of its frames came out; the other sources go on.
    """

    def __init__(self, lane: Lane, metrics: Metrics, on_broken: Callable[[SourceError], None]) -> None:
        self.name = "decode"
        self._lane = lane
        self._metrics = metrics
        self._on_broken = on_broken
        self._lost: dict[str, int] = {}

    def run(self) -> None:
        source = self._lane.source
        decoded = 0
        try:
            with closing(iter(source)) as frames:
                for frame in frames:
                    decoded += 1
                    if not source.live:
                        source.status.picture(frame)
                    self._metrics.count_out(self.name, source.name)
                    self._count_lost()
                    self._lane.frames.put(frame)
        except SourceError as error:
            source.status.ended(str(error))
            if decoded == 0:
                raise
            self._on_broken(error)
        except QueueClosed:
            self._metrics.count_drop("infer", source.name, "stopped")
            raise

    def close(self) -> None:
        self._lane.source.status.ended()
        self._count_lost()
        self._lane.frames.close()

    def _count_lost(self) -> None:
        """Count what the source itself dropped since the last call."""
        for reason, count in self._lane.source.drops.items():
            new = count - self._lost.get(reason, 0)
            if new:
                self._metrics.count_drop(self.name, self._lane.source.name, reason, new)
                self._lost[reason] = count


class InferStage(Stage):
    """Batches the frames of all sources through one engine.

    Args:
        prompts, prompt_id: what the engine was prompted with; for stills without pixels before anything was inferred.
    """

    def __init__(
        self,
        lanes: Sequence[Lane],
        engine: PoseEngine,
        output: BoundedQueue[FramePoses],
        metrics: Metrics,
        config: LineConfig,
        *,
        prompts: tuple[PromptClass, ...],
        prompt_id: int,
    ) -> None:
        self.name = "infer"
        self._frames = FanIn([lane.frames for lane in lanes])
        self._engine = engine
        self._output = output
        self._metrics = metrics
        self._budget = AgeBudget(config.age_budget_s, self.name, live_names(lanes), metrics)
        self._nothing = Detections.empty(prompts, prompt_id)
        self._live = bool(live_names(lanes))

    def open(self) -> None:
        """Infer once for nothing before live frames come: the first inference compiles, which takes seconds."""
        if self._live:
            self._engine.infer([np.zeros((64, 64, 3), np.uint8)])

    def run(self) -> None:
        while frames := self._frames.take(self._engine.batch):
            for frame in frames:
                self._metrics.count_in(self.name, frame.source)
            fresh = [frame for frame in frames if self._budget.allows(frame)]
            for frame, detections in zip(fresh, self._infer(fresh), strict=True):
                self._metrics.count_out(self.name, frame.source)
                self._output.put(FramePoses(frame, detections))

    def close(self) -> None:
        self._output.close()

    def _infer(self, frames: Sequence[Frame]) -> list[Detections]:
        """Infer the frames that have pixels; the others have no detections."""
        images = [frame.rgb_HW3 for frame in frames if frame.rgb_HW3 is not None]
        found: list[Detections] = []
        if images:
            with self._metrics.timed(self.name):
                found = self._engine.infer(images)
            self._nothing = Detections.empty(found[-1].prompts, found[-1].prompt_id)
        results = iter(found)
        return [self._nothing if frame.rgb_HW3 is None else next(results) for frame in frames]


class TrackStage(Stage):
    """Gives identities, one tracker per source.

    Stills are unrelated: each one's detections become tracks of their own, at once, neither smoothed nor coasted.

    Args:
        make_tracker: makes a tracker from the OKS sigmas of each class.
        scale: between the network's scores and the tracker's.
        threshold: what scores no more is doubtful, and left out of stills: these have no track that it could continue.
    """

    def __init__(
        self,
        lanes: Sequence[Lane],
        frames: BoundedQueue[FramePoses],
        output: BoundedQueue[FrameTracks],
        metrics: Metrics,
        make_tracker: MakeTracker,
        scale: ScoreScale,
        threshold: float,
    ) -> None:
        self.name = "track"
        self._live = set(live_names(lanes))
        self._input = frames
        self._output = output
        self._metrics = metrics
        self._make_tracker = make_tracker
        self._scale = scale
        self._threshold = threshold
        self._trackers: dict[str, PromptedTracker] = {}
        self._stills: dict[str, StillTracker] = {}

    def run(self) -> None:
        while (poses := self._input.get()) is not None:
            self._metrics.count_in(self.name, poses.frame.source)
            with self._metrics.timed(self.name):
                tracks = self._still(poses) if poses.frame.still else self._tracked(poses)
            self._metrics.count_out(self.name, poses.frame.source)
            self._output.put(FrameTracks(poses.frame, poses.detections, tracks))

    def close(self) -> None:
        self._output.close()

    def _tracked(self, poses: FramePoses) -> Tracks:
        frame = poses.frame
        tracker = self._trackers.get(frame.source)
        if tracker is None:
            tracker = self._trackers[frame.source] = PromptedTracker(self._make_tracker, self._scale)
        return tracker.update(poses, predict_to_now=frame.source in self._live)

    def _still(self, poses: FramePoses) -> Tracks:
        found = poses.detections
        tracker = self._stills.get(poses.frame.source)
        if tracker is None:
            tracker = self._stills[poses.frame.source] = StillTracker(self._threshold)
        return tracker.update(TrackerDetections(found.boxes_N4, found.scores_N, found.class_N, found.keypoints_NK2))


class PublishStage(Stage):
    """Makes one message per frame, publishes it, and writes it as a line; hands it on where a video is written."""

    def __init__(
        self,
        lanes: Sequence[Lane],
        frames: BoundedQueue[FrameTracks],
        video: Mapping[str, BoundedQueue[Drawn]],
        metrics: Metrics,
        config: LineConfig,
        publish: PublishConfig,
        pose_file: PoseFile | None,
    ) -> None:
        self.name = "publish"
        self._input = frames
        self._video = video
        self._metrics = metrics
        self._budget = AgeBudget(config.age_budget_s, self.name, live_names(lanes), metrics)
        self._config = publish
        self._pose_file = pose_file
        self._publisher: Publisher | None = None
        self._session = time.time_ns()
        self._sources = [lane.source for lane in lanes]
        self._beat = Beat(self._session, publish.beat_s, config.age_budget_s, metrics)
        self._seq: dict[str, int] = {}
        self._skeletons: dict[str, SkeletonMessage] = {}

    def open(self) -> None:
        if self._pose_file is not None:
            self._pose_file.open()
        if self._config.endpoint:
            self._publisher = Publisher(self._config)
            _log.info("publishing on %s", self._publisher.endpoint)

    def run(self) -> None:
        wait_s = None if self._publisher is None else _LATE_JOINER_WAIT_S
        while True:
            tracked = self._input.get(wait_s)
            if self._publisher is not None:
                self._publisher.serve_late_joiners()
                self._publish_states()
            if tracked is not None:
                self._metrics.count_in(self.name, tracked.frame.source)
                if self._budget.allows(tracked.frame):
                    self._publish(tracked)

    def close(self) -> None:
        if self._publisher is not None:
            for source in self._sources:
                source.status.ended()
            self._publish_states(now=True)
            self._publisher.close()
        if self._pose_file is not None:
            self._pose_file.close()
        for queue in self._video.values():
            queue.close()

    def _publish_states(self, *, now: bool = False) -> None:
        assert self._publisher is not None
        for message in self._beat.due(self._sources, now=now):
            self._publisher.publish(message)

    def _publish(self, tracked: FrameTracks) -> None:
        source = tracked.frame.source
        with self._metrics.timed(self.name):
            skeleton = self._skeleton(tracked)
            seq = self._seq.get(source, 0)
            self._seq[source] = seq + 1
            message = pose_message(tracked, session=self._session, seq=seq, publish_unix_ns=time.time_ns())
            if self._publisher is not None:
                self._publisher.publish(message)
            age_s = (time.monotonic_ns() - tracked.frame.capture_monotonic_ns) / 1e9
            if self._pose_file is not None:
                self._pose_file.write(message)
        self._metrics.count_out(self.name, source)
        self._metrics.add_latency(Metrics.CAPTURE_TO_PUBLISH, age_s)
        if source in self._video:
            self._video[source].put(Drawn(tracked.frame, message, skeleton))

    def _skeleton(self, tracked: FrameTracks) -> SkeletonMessage:
        """Return the skeleton message in force; send it where the prompts changed with this frame."""
        source, found = tracked.frame.source, tracked.detections
        known = self._skeletons.get(source)
        if known is not None and known.prompt_id == found.prompt_id:
            return known
        message = skeleton_message(
            found.prompts, found.prompt_id, source=source, session=self._session, publish_unix_ns=time.time_ns()
        )
        self._skeletons[source] = message
        if self._publisher is not None:
            self._publisher.publish(message)
        if self._pose_file is not None:
            self._pose_file.write(message)
        return message


@dataclass(frozen=True, eq=False)
class Drawn:
    """What the annotated video shows: a frame, its message, and the skeletons to draw it by."""

    frame: Frame
    message: PoseMessage
    skeleton: SkeletonMessage


class VideoStage(Stage):
    """Draws and encodes, one file per source, on its own thread so that publishing never waits for an encoder."""

    def __init__(
        self, frames: Mapping[str, BoundedQueue[Drawn]], files: Mapping[str, VideoFile], metrics: Metrics
    ) -> None:
        self.name = "video"
        self._input = FanIn(list(frames.values()))
        self._files = files
        self._metrics = metrics

    def open(self) -> None:
        for file in self._files.values():
            file.open()

    def run(self) -> None:
        while items := self._input.take(1):
            drawn = items[0]
            self._metrics.count_in(self.name, drawn.frame.source)
            if drawn.frame.rgb_HW3 is None:
                self._metrics.count_drop(self.name, drawn.frame.source, "unreadable")
                continue
            with self._metrics.timed(self.name):
                self._files[drawn.frame.source].write(drawn.frame, drawn.message, drawn.skeleton)
            self._metrics.count_out(self.name, drawn.frame.source)

    def close(self) -> None:
        for file in self._files.values():
            file.close()
