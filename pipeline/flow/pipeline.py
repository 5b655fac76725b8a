"""The pipeline: starts the stages and the sources, waits for them, and says how it went.

    sources ⇒ decode ⇒ infer ⇒ track ⇒ publish ⇒ draw

It ends in one of three ways: all sources end and the queues run empty; `stop` ends the sources and what is under way
still goes through; or a stage fails and stops the others. Output files are written under a `.part` name and renamed
at the end. After a failure they stay as parts, so that hours of work are never lost.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import PipelineConfig
from pipeline.errors import PipelineError, SourceError
from pipeline.flow.age import AgeBudget
from pipeline.flow.inference import Flight, Inference, PoseEngine, Prompts
from pipeline.flow.metrics import Metrics
from pipeline.flow.queues import Lane, Queue, QueueClosed
from pipeline.flow.stages import Publish, Published, Stage, decode, draw
from pipeline.flow.tracking import track
from pipeline.frames import Frame, FramePoses, FrameTracks
from pipeline.outputs.poses import PoseFile
from pipeline.outputs.video import VideoFile, check_suffix
from pipeline.sources import Source, open_source

if TYPE_CHECKING:
    from engines.prompts import PromptClass

_log = logging.getLogger(__name__)

_DECODER_GRACE_S = 1.0
"""How long the end waits for decoders that hang in a read. They are daemon threads and end with the process."""


@dataclass(frozen=True)
class PipelineResult:
    """How a run ended.

    Attributes:
        outputs: files that were written.
        broken: one sentence for each source that could not be opened or broke off; frames before it are in the outputs.
        published: frames that were published, written or drawn.
        stopped: whether `stop` ended it.
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
        video: file for the annotated video of the source that the pipeline starts with; of several sources each has its
            own, `<stem>.<source><suffix>`.

    Attributes:
        metrics: counts and times, while it runs and after.
        sources: every source that was added.

    Raises:
        OutputError: `video` has a suffix that is none of a video.
    """

    def __init__(self, config: PipelineConfig, *, poses: Path | None = None, video: Path | None = None) -> None:
        if video is not None:
            check_suffix(video)
        self.metrics = Metrics()
        self.sources: list[Source] = []
        self._config = config
        self._poses = PoseFile(poses) if poses else None
        self._video = video
        self._videos: dict[str, VideoFile] = {}
        self._lock = threading.RLock()
        self._lanes: dict[str, Lane[Frame]] = {}
        self._decoders: list[threading.Thread] = []
        self._threads: list[threading.Thread] = []
        self._running = self._stopped = False
        self._failure: BaseException | None = None
        self._broken: list[str] = []
        self._frames: Queue[Frame] = Queue("infer", self.metrics)
        self._drawn: Queue[Published] = Queue("draw", self.metrics)
        self._queues: tuple[Queue[Any], ...] = (self._frames, self._drawn)
        self._engine: PoseEngine
        self._inference: Inference | None = None

    def add(self, address: str | Source) -> str:
        """Add a source, before the start or while the pipeline runs; return its name, which no other source has.

        Raises:
            SourceError: the address is malformed, or a path that does not exist.
            PipelineError: the pipeline has ended.
        """
        source = open_source(address, self._config.source) if isinstance(address, str) else address
        with self._lock:
            source.name = _free_name(source.name, self._lanes)
            source.age_budget_s = self._config.flow.age_budget_s
            flow, name = self._config.flow, source.name
            try:
                lane = self._frames.lane(
                    flow.live_queue if source.live else flow.file_queue, "drop_oldest" if source.live else "block"
                )
            except QueueClosed as error:
                raise PipelineError(f"{name}: the pipeline has ended; start another one") from error
            self._lanes[name] = lane
            self.sources.append(source)
            self.metrics.watch("decode", lambda: {(name, reason): n for reason, n in dict(source.drops).items()})
            if self._running:
                self._add_video(source, alone=False)
                self._start_decoder(source)
        return name

    def remove(self, name: str) -> None:
        """Stop a source and drop its waiting frames; unknown names are ignored. Its decoder may end later."""
        with self._lock:
            lane = self._lanes.get(name)
            if lane is not None:
                next(source for source in reversed(self.sources) if source.name == name).stop()
                lane.abort()
                self._end_lane(name, lane)

    def set_prompts(self, classes: Sequence[PromptClass]) -> int:
        """Look for these classes from the next inferred frame on; return the id that its message carries.

        Raises:
            PromptError: more than the engine has room for, or classes that the model was not trained on. The old
                prompts stay.
        """
        with self._lock:
            if self._inference is None:
                raise PipelineError("set_prompts: the pipeline has not started; give the prompts to start")
            self._inference.prompts = Prompts(self._engine.set_prompts(classes), tuple(classes))
            return self._inference.prompts.id

    def run(self, engine: PoseEngine, prompts: Sequence[PromptClass]) -> PipelineResult:
        """Start, wait for the end, and return how it went; see `start` and `finish`."""
        self.start(engine, prompts)
        while not self.wait(1.0):
            pass
        return self.finish()

    def start(self, engine: PoseEngine, prompts: Sequence[PromptClass]) -> None:
        """Start the stages, and the sources once all stages are ready.

        Args:
            engine: made of `config.engine`; this pipeline alone uses it until the end. The caller closes it.
            prompts: classes to look for.
        Raises:
            PromptError: as `set_prompts`.
        """
        self._engine = engine
        first = Prompts(engine.set_prompts(prompts), tuple(prompts))
        budget_s, live = self._config.flow.age_budget_s, any(source.live for source in self.sources)
        self._inference = Inference(engine, first, AgeBudget(budget_s, "inference"), self.metrics, warm_up=live)
        for source in self.sources:
            self._add_video(source, alone=len(self.sources) == 1)
        stages = self._make_stages(self._inference)
        for stage in reversed(stages):
            self._threads += [self._spawn(stage.name, partial(stage.drive, self.metrics)) for _ in range(stage.workers)]
        for stage in stages:
            stage.input.read.wait()
        with self._lock:
            self._running = True
            for source in self.sources if self._failure is None else ():
                self._start_decoder(source)

    def stop(self) -> None:
        """Ask for the end: nothing more is inferred than what is under way, and its results go all the way."""
        self._stopped = True
        for source in list(self.sources):
            source.stop()
        self._frames.abort()

    def wait(self, timeout_s: float) -> bool:
        """Whether the pipeline has come to its end, after waiting for that for at most `timeout_s`."""
        deadline_s = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def finish(self) -> PipelineResult:
        """Put the outputs into place; call it after `wait` returned True.

        Raises:
            The error of the stage that failed first. What was written stays under its `.part` name.
        """
        deadline_s = time.monotonic() + _DECODER_GRACE_S
        for thread in self._decoders:
            thread.join(max(0.0, deadline_s - time.monotonic()))
        files: list[PoseFile | VideoFile] = [*([self._poses] if self._poses else []), *self._videos.values()]
        published = self.metrics.frames_out("publish")
        if published == 0 and (self._failure is not None or self._broken):
            for file in files:
                file.discard()
            files = []
        if self._failure is not None:
            for part in [part for file in files for part in file.keep()]:
                _log.warning("kept what was written before the failure: %s", part)
            raise self._failure
        outputs = [path for file in files for path in file.commit()]
        return PipelineResult(tuple(outputs), tuple(self._broken), published, self._stopped)

    def _make_stages(self, inference: Inference) -> list[Stage[Any, Any]]:
        """All stages after the decoders, first to last."""
        config, metrics = self._config, self.metrics
        in_flight = self._engine.in_flight
        flights: Queue[Flight] = Queue()
        poses: Queue[FramePoses] = Queue("track", metrics, producers=in_flight)
        tracks: Queue[FrameTracks] = Queue("publish", metrics)
        flights.lane(in_flight)
        poses.lane(config.flow.stage_queue)
        tracks.lane(config.flow.stage_queue)
        publish = Publish(config.publish, config.flow.age_budget_s, metrics, self._poses, self._named_sources)
        self._queues = (self._frames, flights, poses, tracks, self._drawn)
        stages: list[Stage[Any, Any]] = [
            Stage(None, inference.submit, self._frames, flights),
            Stage("infer", inference.collect, flights, poses, workers=in_flight),
            Stage("track", partial(track, config.make_tracker, config.score_scale), poses, tracks),
            Stage("publish", publish, tracks, self._drawn if self._video else None),
        ]
        return [*stages, Stage("draw", partial(draw, self._videos), self._drawn)] if self._video else stages

    def _named_sources(self) -> list[Source]:
        """The sources that were added, the latest of each name."""
        return list({source.name: source for source in list(self.sources)}.values())

    def _add_video(self, source: Source, *, alone: bool) -> None:
        """Make the video file of a source, if videos are written; several sources have their names in its name."""
        if self._video is not None:
            named = self._video.with_name(f"{self._video.stem}.{source.name.replace('/', '_')}{self._video.suffix}")
            path = self._video if alone else named
            self._videos[source.name] = VideoFile(path, self._config.video, rate=lambda: source.fps)
            self._drawn.lane(self._config.video.queue, "drop_oldest" if source.live else "block", source.name)

    def _start_decoder(self, source: Source) -> None:
        lane = self._lanes[source.name]
        self._decoders.append(self._spawn(f"decode {source.name}", lambda: self._decode(source, lane)))

    def _spawn(self, name: str | None, action: Callable[[], None]) -> threading.Thread:
        def run() -> None:
            try:
                action()
            except BaseException as error:
                self._fail(error)

        thread = threading.Thread(target=run, name=name, daemon=True)
        thread.start()
        return thread

    def _decode(self, source: Source, lane: Lane[Frame]) -> None:
        """Read a source to its end. A source that fails stops no other."""
        try:
            decode(source, lane, self.metrics)
        except SourceError as error:
            _log.warning("%s", error)
            self._broken.append(str(error))
        finally:
            self._end_lane(source.name, lane)

    def _end_lane(self, name: str, lane: Lane[Frame]) -> None:
        """Forget a lane; that of the last source ends the pipeline."""
        with self._lock:
            lane.close()
            if self._lanes.get(name) is lane:
                del self._lanes[name]
            if not self._lanes:
                self._frames.close()

    def _fail(self, error: BaseException) -> None:
        """Keep the first failure and stop everything; what is in the queues is lost."""
        with self._lock:
            if self._failure is None:
                self._failure = error
            else:
                _log.debug("after the first failure: %s", error)
        for source in list(self.sources):
            source.stop()
        for queue in self._queues:
            queue.abort()


def _free_name(name: str, taken: dict[str, Any]) -> str:
    """Name the second `clip` `clip-2`, and so on: names are topics."""
    names = (name if number == 1 else f"{name}-{number}" for number in itertools.count(1))
    return next(free for free in names if free not in taken)
