"""The pipeline: starts the stages and the sources, waits for them, and says how it went.

    sources ⇒ decode ⇒ infer ⇒ track ⇒ publish ⇒ draw

A run ends in one of three ways. All sources end and the queues run empty, unless `hold` is set. Or `stop` ends the
sources, and frames in or after the engine are still published. Or a stage fails and stops the others.

Output files have a `.part` name and are renamed at the end. After a failure they keep this name, so that hours of work
are never lost.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.scores import kept_of
from pipeline.config import PipelineConfig
from pipeline.errors import PipelineError
from pipeline.flow.drawing import Draw
from pipeline.flow.inference import Inference, PoseEngine, Prompts
from pipeline.flow.intake import Intake
from pipeline.flow.metrics import Metrics
from pipeline.flow.newest import Newest
from pipeline.flow.publishing import Publish, Published
from pipeline.flow.queues import Queue
from pipeline.flow.recording import Recordings
from pipeline.flow.stages import Stage
from pipeline.flow.threads import Threads, join
from pipeline.flow.tracking import track
from pipeline.frames import Frame, FramePoses, FrameTracks
from pipeline.keys import ServerKeys
from pipeline.outputs.poses import PoseFile
from pipeline.outputs.video import VideoFile
from pipeline.sources import Source, open_source
from xpose_client.messages import StatusMessage

if TYPE_CHECKING:
    from engines.prompts import PromptClass

_log = logging.getLogger(__name__)

_DECODER_GRACE_S = 1.0
"""How long `finish` waits for decoders that hang in a read. They are daemon threads and end with the process."""


@dataclass(frozen=True)
class PipelineResult:
    """How a run ended.

    Attributes:
        outputs: files that were written.
        broken: one sentence for each source that could not be opened or ended with an error. The outputs contain the
            frames before the error.
        published: frames that were published, written or drawn.
        stopped: whether `stop` ended the run.
    """

    outputs: tuple[Path, ...]
    broken: tuple[str, ...]
    published: int
    stopped: bool


class Pipeline:
    """Sources, an engine and outputs, joined by threads. All methods are for any thread.

    Args:
        config: settings of every stage.
        poses: file for the messages as JSON lines.
        video: file for the annotated video. With several sources, or for a source that is added later, it is
            `<stem>.<source><suffix>`.
        hold: keep running when there are no sources, until `stop`. Otherwise the end of the last source ends the
            pipeline.
        record: file for a recording of the whole run.

    Attributes:
        config: the settings at the start.
        keys: keys of the clients that may connect; None: everybody on this machine may.
        hold: whether it keeps running when there are no sources.
        metrics: counts and times, while it runs and after.
        newest: the newest published frame of each source.
        recordings: starts and ends recordings while it runs.
        session: session number of its messages, ns since 1970; a source that was added again has its own.
        stages: the stages after the decoders, first to last, once it has started.
        started_s: `time.monotonic` when the engine was warm and the sources began; None before.

    Raises:
        OutputError: `video` does not have the suffix of a video file.
        KeyFileError: the key folder cannot be used.
    """

    def __init__(
        self,
        config: PipelineConfig,
        *,
        poses: Path | None = None,
        video: Path | None = None,
        hold: bool = False,
        record: Path | None = None,
    ) -> None:
        self.config = config
        self.metrics = Metrics()
        self.keys = ServerKeys(config.keys.folder) if config.keys.folder else None
        self.newest = Newest()
        self.session = time.time_ns()
        self.stages: list[Stage[Any, Any]] = []
        self.started_s: float | None = None
        self._rules = config.score_rules
        self.hold = hold
        self._record = record
        self._lock = threading.RLock()
        self._steering = threading.Lock()  # one change of prompts or thresholds at a time
        self._threads = Threads(self._abort)
        self._driving: list[threading.Thread] = []
        self._running = self._stopped = False
        self._frames: Queue[Frame] = Queue("infer", self.metrics)
        self._drawn: Queue[Published] = Queue("draw", self.metrics)
        self._queues: tuple[Queue[Any], ...] = (self._frames, self._drawn)
        self._intake = Intake(config.flow, self._frames, self._threads, hold=hold, session=self.session)
        self.recordings = Recordings(config, self._intake.roster)
        self._draw = Draw(video, config.video, self._drawn) if video else None
        self._inference: Inference | None = None
        self._publish = Publish(
            config.publish,
            config.flow.age_budget_s,
            self.metrics,
            PoseFile(poses) if poses else None,
            self._intake.roster,
            self.newest,
            self.recordings.current,
            self.keys,
        )

    @property
    def sources(self) -> list[Source]:
        """Every source that was added and not removed, the latest of each name."""
        return self._intake.roster.sources()

    @property
    def endpoint(self) -> str:
        """The address that messages are published on, once it has started; "" for none."""
        return self._publish.endpoint

    @property
    def subscriptions(self) -> int:
        """How many subscriptions to its messages there are."""
        publisher = self._publish.publisher
        return 0 if publisher is None else publisher.subscriptions

    def add(self, address: str | Source, session: int | None = None) -> str:
        """Add a source, before the start or while the pipeline runs; return its name, which no other source has.

        Args:
            session: of its messages, ns since 1970; None: the pipeline's, or a new one if the name was used before.
        Raises:
            SourceError: the address is malformed, or the path does not exist.
            PipelineError: the pipeline has ended.
        """
        source = open_source(address, self.config.source) if isinstance(address, str) else address
        with self._lock:
            self._intake.add(source, session)
            self.recordings.attach(source)
            if self._running:
                if self._draw is not None:
                    self._draw.add(source, alone=False)
                self._intake.start(source)
        return source.name

    def remove(self, name: str) -> None:
        """Stop a source, drop its frames and end its tracks. Its decoder may end later.

        Raises:
            PipelineError: there is no source of this name.
        """
        self._intake.remove(name)

    def statuses(self) -> list[StatusMessage]:
        """How each source is doing at this moment."""
        return [self._publish.status_message(source) for source in self.sources]

    def newest_of(self, name: str) -> Published | None:
        """The newest published frame of a source; None before the first, and for a source that was removed."""
        published = self.newest.get(name)
        return None if published is None or self._intake.roster.is_gone(published.frame) else published

    @property
    def prompts(self) -> Prompts:
        """What the pipeline looks for.

        Raises:
            PipelineError: it has not started.
        """
        return self._started("prompts").prompts

    def set_prompts(self, classes: Sequence[PromptClass]) -> int:
        """Look for these classes from the next inferred frame on, and return their id, which is in the messages.

        Raises:
            PromptError: there are more classes than the engine has room for, or the model was not trained on one of
                them. The old prompts stay.
        """
        inference = self._started("set_prompts")
        with self._steering:
            return inference.set_prompts(classes)

    def set_thresholds(self, config: PipelineConfig) -> None:
        """Apply the thresholds of `config.engine` from the next inferred frame on; its other settings change nothing.

        Raises:
            PipelineError: it has not started.
        """
        inference, engine = self._started("set_thresholds"), config.engine_of_pipeline
        with self._steering:
            inference.set_thresholds(*kept_of(engine.model, engine.score_threshold, engine.nms_iou))
            self._rules = config.score_rules

    def submitted_frames(self) -> dict[str, int]:
        """Index of the last frame of each source that was handed to the engine, by the source's name."""
        return {} if self._inference is None else dict(self._inference.submitted)

    def run(self, engine: PoseEngine, prompts: Sequence[PromptClass]) -> PipelineResult:
        """Start, wait for the end, and return how it went; see `start` and `finish`."""
        self.start(engine, prompts)
        while not self.wait(1.0):
            pass
        return self.finish()

    def start(self, engine: PoseEngine, prompts: Sequence[PromptClass]) -> None:
        """Start the stages, and the sources once all stages are ready.

        Args:
            engine: only this pipeline uses it until the end. The caller closes it.
            prompts: classes to look for.
        Raises:
            PromptError: as `set_prompts`.
            OutputError: as `Recordings.start`.
        """
        live = self.hold or any(source.live for source in self.sources)
        self._inference = Inference(engine, prompts, self.config.flow, warm_up=live)
        if self._record is not None:
            self.recordings.start(self._record)
        if self._draw is not None:
            for source in self.sources:
                self._draw.add(source, alone=len(self.sources) == 1)
        stages = self._make_stages(self._inference)
        for stage in reversed(stages):
            self._driving += [self._threads.start(stage.input.stage, stage.drive) for _ in range(stage.workers)]
        self.stages = stages
        for stage in stages:
            stage.input.read.wait()
        with self._lock:
            self._running = True
            self.started_s = time.monotonic()
            for source in self.sources if self._threads.failure is None else ():
                self._intake.start(source)

    def stop(self) -> None:
        """Ask for the end, and return at once. Frames that are in the engine or behind it are still published."""
        self._stopped = True
        self._intake.stop()
        self._frames.close(drop_waiting=True)

    def wait(self, timeout_s: float) -> bool:
        """Wait for the end for at most `timeout_s`; return whether the pipeline has ended."""
        return join(self._driving, timeout_s)

    def finish(self) -> PipelineResult:
        """Rename the outputs and return how the run ended. Call it after `wait` returned True.

        Raises:
            The error of the stage that failed first. What was written stays under its `.part` name.
        """
        self._intake.join(_DECODER_GRACE_S)
        self.recordings.close()
        files: list[PoseFile | VideoFile] = [self._publish.poses] if self._publish.poses else []
        files += self._draw.files.values() if self._draw else ()
        published = self.metrics.frames_out("publish")
        if published == 0 and (self._threads.failure is not None or self._intake.broken):
            for file in files:
                file.discard()
            files = []
        if self._threads.failure is not None:
            for part in [part for file in files for part in file.keep()]:
                _log.warning("kept what was written before the failure: %s", part)
            raise self._threads.failure
        outputs = [path for file in files for path in file.commit()]
        for report in self.recordings.finished:
            outputs += report.files
            self._intake.broken += [] if report.failure is None else [report.failure]
        return PipelineResult(tuple(outputs), tuple(self._intake.broken), published, self._stopped)

    def _make_stages(self, inference: Inference) -> list[Stage[Any, Any]]:
        """Make all stages after the decoders, first to last."""
        config, metrics = self.config, self.metrics
        poses: Queue[FramePoses] = Queue("track", metrics, producers=inference.workers)
        tracks: Queue[FrameTracks] = Queue("publish", metrics)
        for queue in (poses, tracks):
            queue.lane(config.flow.stage_queue)
        self._queues = (self._frames, poses, tracks, self._drawn)
        tracking = partial(track, config.make_tracker, lambda: self._rules, self._intake.roster)
        stages: list[Stage[Any, Any]] = [
            Stage(inference, self._frames, poses, inference.workers, counts_itself=True),
            Stage(tracking, poses, tracks),
            Stage(self._publish, tracks, self._drawn if self._draw else None),
        ]
        return [*stages, Stage(self._draw, self._drawn)] if self._draw else stages

    def _started(self, what: str) -> Inference:
        if self._inference is None:
            raise PipelineError(f"{what}: the pipeline has not started; call start first")
        return self._inference

    def _abort(self) -> None:
        """Stop everything after a failure. Frames in the queues are lost."""
        self._intake.stop()
        for queue in self._queues:
            queue.close(drop_waiting=True)
