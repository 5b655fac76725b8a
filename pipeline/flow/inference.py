"""Inference: one engine infers the frames of all sources, with several calls at the same time.

A worker takes frames only when the engine has room, so that a live frame is as new as possible. It waits for its call
and passes the results on at once. The results of one source keep their order.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from engines.detections import Detections
from pipeline.errors import SourceError
from pipeline.flow.metrics import UNREADABLE
from pipeline.flow.queues import Queue
from pipeline.flow.stages import FlowConfig, is_in_time
from pipeline.frames import Frame, FramePoses

if TYPE_CHECKING:
    from engines.nv12 import Image
    from engines.prompts import PromptClass

_log = logging.getLogger(__name__)

_GPU_GATHER_MS = 2.0


class Pending(Protocol):
    """Images that an engine is working on."""

    def result(self) -> list[Detections]:
        """Wait for the detections; one item per image, in order."""
        ...


class PoseEngine(Protocol):
    """What the pipeline needs of an engine; `engines.engine.Engine` is one."""

    @property
    def batch(self) -> int:
        """Images to hand over per call of `submit`."""
        ...

    @property
    def in_flight(self) -> int:
        """Calls of `submit` that run at the same time."""
        ...

    @property
    def on_gpu(self) -> bool:
        """Whether the network runs on a GPU, where several images in one call are faster than several calls."""
        ...

    @property
    def takes_nv12(self) -> bool:
        """Whether images may also be NV12."""
        ...

    def set_prompts(self, classes: Sequence[PromptClass]) -> int:
        """Use new prompts from the next call of `submit` on; return their id. Thread-safe."""
        ...

    def set_thresholds(self, score_threshold: float, nms_iou: float) -> None:
        """Use these thresholds from the next call of `submit` on. Thread-safe."""
        ...

    def submit(self, images: Sequence[Image]) -> Pending:
        """Start to look for the prompted classes in images of any sizes: RGB [H,W,3], or NV12 if `takes_nv12`.

        Only one thread at a time calls it.
        """
        ...


@dataclass(frozen=True)
class Prompts:
    """The prompts of the engine, with the id that its detections carry."""

    id: int
    classes: tuple[PromptClass, ...]


class Inference:
    """The stage, run by `workers` threads side by side.

    Up to `in_flight` workers wait for the engine. The others wait for earlier calls, whose results must be passed on
    first.

    Args:
        classes: the first prompts; see `set_prompts`.
        config: `age_budget_s` (see `is_in_time`) and `gather_ms` are used.
        warm_up: infer once before the first frame. The first inference may compile, which takes seconds.

    Attributes:
        submitted: index of the newest frame of each source that was given to the engine.
    """

    def __init__(
        self, engine: PoseEngine, classes: Sequence[PromptClass], config: FlowConfig, *, warm_up: bool
    ) -> None:
        self.submitted: dict[str, int] = {}
        self.workers = 2 * engine.in_flight - 1
        self._engine = engine
        self._age_budget_s = config.age_budget_s
        gather_ms = (_GPU_GATHER_MS if engine.on_gpu else 0.0) if config.gather_ms is None else config.gather_ms
        self._gather_s = gather_ms / 1e3
        self._warm_up = warm_up
        self._room = threading.Semaphore(engine.in_flight)
        self._turn = threading.Lock()  # one worker at a time takes frames and submits them
        self._latest: dict[str, threading.Event] = {}  # `passed_on` of the last call with frames of each source
        self._replayed: tuple[PromptClass, ...] | None  # recorded prompts that the engine uses instead of `_prompts`
        self.set_prompts(classes)

    def set_prompts(self, classes: Sequence[PromptClass]) -> int:
        """Look for these classes from the next call on; return the id of these prompts. For one thread at a time.

        Raises:
            PromptError: as `Pipeline.set_prompts`.
        """
        self._prompts = Prompts(self._engine.set_prompts(classes), tuple(classes))
        self._replayed = None
        return self._prompts.id

    @property
    def prompts(self) -> Prompts:
        """The present prompts."""
        return self._prompts

    def set_thresholds(self, score_threshold: float, nms_iou: float) -> None:
        """Use these thresholds from the next call on."""
        self._engine.set_thresholds(score_threshold, nms_iou)

    def __call__(self, frames: Queue[Frame]) -> Generator[FramePoses]:
        """Infer up to `batch` frames per call, and pass their detections on after those of earlier calls."""
        while not frames.ended:
            frames.leave()  # a worker that waits for its turn is not working on a frame
            passed_on = threading.Event()
            try:
                with self._room:
                    with self._turn:
                        usable, earlier = self._take(frames, passed_on)
                        self.submitted.update({frame.source: frame.index for frame in usable})
                        images = [image for frame in usable if (image := self._image_of(frame)) is not None]
                        prompts, submitted_s = self._prompts_of(usable), time.perf_counter()
                        pending = self._engine.submit(images) if images else None
                    found = iter(pending.result() if pending is not None else ())
                took_s = time.perf_counter() - submitted_s
                for event in earlier:
                    event.wait()
                for frame in usable:
                    seen = frame.picture is not None
                    detections = next(found) if seen else Detections.empty(prompts.classes, prompts.id)
                    if frame.recorded is not None:
                        detections = replace(detections, prompt_id=prompts.id)
                    frames.metrics.count_out(frames.stage, frame.source, took_s if seen else None)
                    yield FramePoses(frame, detections)
            finally:
                passed_on.set()

    def _take(self, frames: Queue[Frame], passed_on: threading.Event) -> tuple[list[Frame], list[threading.Event]]:
        """Take frames that can be inferred. Also return the `passed_on` events of earlier calls with their sources."""
        if self._warm_up:
            self._warm_up = False
            self._engine.submit([np.zeros((64, 64, 3), np.uint8)]).result()
        taken = frames.take(self._engine.batch, gather_s=self._gather_s, alike=_recorded_prompts)
        usable = [frame for frame in taken if self._is_usable(frame, frames)]
        sources = {frame.source for frame in usable}
        earlier = [self._latest[source] for source in sources if source in self._latest]
        self._latest.update(dict.fromkeys(sources, passed_on))
        return usable, earlier

    def _prompts_of(self, frames: Sequence[Frame]) -> Prompts:
        """Return the prompts for the frames of one call: the present prompts, or those of a recording."""
        recorded = frames[0].recorded if frames else None
        if recorded is not None and recorded.prompts is not None:
            if recorded.prompts is not self._replayed:
                self._engine.set_prompts(recorded.prompts)
                self._replayed = recorded.prompts
            return Prompts(recorded.prompt_id, recorded.prompts)
        if self._replayed is not None and frames:
            self.set_prompts(self._prompts.classes)
        return self._prompts

    def _image_of(self, frame: Frame) -> Image | None:
        return frame.image(nv12=self._engine.takes_nv12)

    def _is_usable(self, frame: Frame, frames: Queue[Frame]) -> bool:
        """Whether the frame is young enough and can be converted for the engine. If not, it is dropped."""
        if not is_in_time(frame, frames, self._age_budget_s):
            return False
        try:
            self._image_of(frame)  # a live picture is converted here
        except SourceError as error:
            _log.warning("%s", error)
            frames.drop(frame, UNREADABLE)
            return False
        return True


def _recorded_prompts(frame: Frame) -> int | None:
    """Return a value that is equal for frames that can be inferred in one call."""
    return None if frame.recorded is None or frame.recorded.prompts is None else id(frame.recorded.prompts)
