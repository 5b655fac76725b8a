"""The whole line: starts the stages, waits for them, and says how it went.

    sources ⇒ decode ⇒ infer ⇒ track ⇒ publish ⇒ video

Three ways to an end: the sources end and the line runs empty; `stop` drains it; a stage fails and stops the others.
Files are moved into place at the very end, when all went well or a source broke off after some of its frames came out.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config import PipelineConfig
from pipeline.errors import SourceError
from pipeline.flow.metrics import Metrics
from pipeline.flow.queues import BoundedQueue, QueueClosed
from pipeline.flow.stages import (
    DecodeStage,
    Drawn,
    InferStage,
    Lane,
    PoseEngine,
    PublishStage,
    Stage,
    TrackStage,
    VideoStage,
)
from pipeline.flow.tracking import ScoreScale
from pipeline.frames import Frame, FramePoses, FrameTracks
from pipeline.outputs.files import PoseFile, VideoFile
from trackers import Tracker

if TYPE_CHECKING:
    from engines.prompts import PromptClass
    from pipeline.sources import Source

_log = logging.getLogger(__name__)

_DECODER_GRACE_S = 1.0
"""How long the end waits for decoders that hang in a read; they are daemon threads and end with the process."""


@dataclass(frozen=True)
class LineResult:
    """How a run ended.

    Attributes:
        outputs: files that were written.
        broken: what was wrong with sources that broke off; the frames before it are in the outputs.
        stopped: whether `stop` ended it.
    """

    outputs: tuple[Path, ...]
    broken: tuple[str, ...]
    stopped: bool


class Line:
    """Sources, an engine and outputs, joined by threads.

    Args:
        sources: sources of `open_source`, not yet iterated. Equal names are made different by a number.
        engine: takes the prompts now, and images from then on; the caller makes it, of `config.engine_of_line`, and
            closes it.
        prompts: what to look for.
        config: settings of every stage.
        poses: file for the messages as JSON lines.
        video: file for the annotated video; with several sources each has its own, `<stem>.<source><suffix>`.

    Raises:
        OutputError: `video` has a suffix that is none of a video.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        engine: PoseEngine,
        prompts: tuple[PromptClass, ...],
        config: PipelineConfig,
        *,
        poses: Path | None = None,
        video: Path | None = None,
    ) -> None:
        self.metrics = Metrics()
        self.sources = tuple(sources)
        _make_names_differ(self.sources)
        for source in self.sources:
            source.age_budget_s = config.line.age_budget_s
        self._pose_file = PoseFile(poses) if poses else None
        self._videos = _video_files(self.sources, video, config) if video else {}
        self._failure: BaseException | None = None
        self._broken: list[str] = []
        self._stop_requested = False
        self._lock = threading.Lock()
        self._lanes = self._make_lanes(config)
        self._make_stages(engine, prompts, config)
        self._ready = threading.Semaphore(0)
        self._threads: list[threading.Thread] = []
        self._decoders: list[threading.Thread] = []

    def run(self) -> LineResult:
        """Start, wait for the end, and return how it went; `finish` raises what failed."""
        self.start()
        while not self.wait(1.0):
            pass
        return self.finish()

    def start(self) -> None:
        """Start the stages from the end, and the decoders once all others are ready."""
        for stage in self._stages:
            self._threads.append(self._spawn(stage))
        for _ in self._stages:
            self._ready.acquire()
        if self._failure is None:
            self._decoders = [self._spawn(stage) for stage in self._decode_stages]
        else:
            for stage in self._decode_stages:
                stage.close()

    def stop(self) -> None:
        """End soon: nothing more is inferred than what is under way, and its results go all the way. Any thread."""
        self._stop_requested = True
        self._end_sources()

    def wait(self, timeout_s: float) -> bool:
        """Whether the line has come to its end, after waiting for that for at most `timeout_s`."""
        deadline_s = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def finish(self) -> LineResult:
        """Put the outputs into place, or remove them where a stage failed; call it after `wait` returned True.

        Raises:
            The error of the stage that failed first.
        """
        deadline_s = time.monotonic() + _DECODER_GRACE_S
        for thread in self._decoders:
            thread.join(max(0.0, deadline_s - time.monotonic()))
        if self._failure is not None:
            self.discard_outputs()
            raise self._failure
        written = [path for output in self._outputs() for path in output.commit()]
        return LineResult(tuple(written), tuple(self._broken), self._stop_requested)

    def discard_outputs(self) -> None:
        """Remove what was written so far; for an end that cannot wait."""
        for output in self._outputs():
            output.discard()

    def _outputs(self) -> list[PoseFile | VideoFile]:
        return [*([self._pose_file] if self._pose_file else []), *self._videos.values()]

    def _make_lanes(self, config: PipelineConfig) -> list[Lane]:
        """One queue per source, with one condition in common for the stage that takes from all of them."""
        changed = threading.Condition()

        def count_drop(frame: Frame) -> None:
            self.metrics.count_drop("infer", frame.source, "newer frame")

        return [
            Lane(source, BoundedQueue(config.line.live_queue, "drop_oldest", on_drop=count_drop, changed=changed))
            if source.live
            else Lane(source, BoundedQueue(config.line.file_queue, "block", changed=changed))
            for source in self.sources
        ]

    def _make_stages(self, engine: PoseEngine, prompts: tuple[PromptClass, ...], config: PipelineConfig) -> None:
        """Build the stages and the queues between them; `_stages` are all but the decoders, last one first."""
        metrics, lanes = self.metrics, self._lanes
        poses: BoundedQueue[FramePoses] = BoundedQueue(config.line.stage_queue)
        tracks: BoundedQueue[FrameTracks] = BoundedQueue(config.line.stage_queue)
        drawn = self._make_video_queues(config) if self._videos else {}
        self._queues: list[BoundedQueue] = [poses, tracks, *drawn.values()]  # type: ignore[type-arg]
        prompt_id = engine.set_prompts(prompts)
        infer = InferStage(lanes, engine, poses, metrics, config.line, prompts=prompts, prompt_id=prompt_id)
        sure = max(config.line.sure_score, config.threshold)
        scale = ScoreScale(sure, config.tracker.association.new_score)
        track = TrackStage(
            lanes, poses, tracks, metrics, lambda sigmas: Tracker(config.tracker, sigmas), scale, config.threshold
        )
        publish = PublishStage(lanes, tracks, drawn, metrics, config.line, config.publish, self._pose_file)
        video = [VideoStage(drawn, self._videos, metrics)] if drawn else []
        self._stages: list[Stage] = [*video, publish, track, infer]
        self._decode_stages = [DecodeStage(lane, metrics, self._source_broke) for lane in lanes]

    def _make_video_queues(self, config: PipelineConfig) -> dict[str, BoundedQueue[Drawn]]:
        changed = threading.Condition()

        def count_drop(drawn: Drawn) -> None:
            self.metrics.count_drop("video", drawn.frame.source, "newer frame")

        return {
            source.name: BoundedQueue(
                config.video.queue, "drop_oldest" if source.live else "block", on_drop=count_drop, changed=changed
            )
            for source in self.sources
        }

    def _spawn(self, stage: Stage) -> threading.Thread:
        thread = threading.Thread(target=self._run_stage, args=(stage,), name=stage.name, daemon=True)
        thread.start()
        return thread

    def _run_stage(self, stage: Stage) -> None:
        """A thread's life. Whatever ends it, its output is closed, so that no other thread waits for ever."""
        try:
            try:
                stage.open()
            finally:
                self._ready.release()
            stage.run()
        except QueueClosed:
            pass  # the neighbour is done: the quiet end of every stage
        except BaseException as error:
            self._fail(error)
        try:
            stage.close()
        except BaseException as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """Keep the first failure and stop everything; what is in the queues is lost."""
        with self._lock:
            if self._failure is None:
                self._failure = error
            else:
                _log.debug("after the first failure: %s", error)
        self._end_sources()
        for queue in self._queues:
            queue.abort()

    def _end_sources(self) -> None:
        for lane in self._lanes:
            lane.source.stop()
            for frame in lane.frames.abort():
                self.metrics.count_drop("infer", frame.source, "stopped")

    def _source_broke(self, error: SourceError) -> None:
        _log.warning("%s", error)
        self._broken.append(str(error))


def _make_names_differ(sources: Sequence[Source]) -> None:
    """Name the second `clip` `clip-2`, and so on: names are topics."""
    used: set[str] = set()
    for source in sources:
        name, number = source.name, 1
        while source.name in used:
            number += 1
            source.name = f"{name}-{number}"
        used.add(source.name)


def _video_files(sources: Sequence[Source], path: Path, config: PipelineConfig) -> dict[str, VideoFile]:
    if len(sources) == 1:
        return {sources[0].name: VideoFile(path, config.video, sources[0].fps)}
    return {
        source.name: VideoFile(
            path.with_name(f"{path.stem}.{source.name.replace('/', '_')}{path.suffix}"), config.video, source.fps
        )
        for source in sources
    }
