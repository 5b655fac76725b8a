"""Inference: the frames of all sources through one engine, with several calls in flight.

    submit ⇒ collect (a thread for each call in flight)

`submit` takes frames only when the engine has room, so that a live frame is as new as it can be. A `collect` thread
waits for one call and passes its results on at once. The results of one source keep their order.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from engines.detections import Detections
from pipeline.errors import SourceError
from pipeline.flow.age import AgeBudget
from pipeline.flow.metrics import TOO_OLD, UNREADABLE, Metrics
from pipeline.flow.queues import Queue
from pipeline.frames import Frame, FramePoses

if TYPE_CHECKING:
    from engines.prompts import PromptClass

_log = logging.getLogger(__name__)

_ROOM_WAIT_S = 0.2  # how soon `submit` notices that a failure ended the pipeline while it waits for room


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

    def set_prompts(self, classes: Sequence[PromptClass]) -> int:
        """Use new prompts from the next call of `submit` on; return their id. Thread-safe."""
        ...

    def submit(self, images: Sequence[NDArray[np.uint8]]) -> Pending:
        """Start to look for the prompted classes in RGB images [H,W,3] of any sizes."""
        ...


@dataclass(frozen=True)
class Prompts:
    """What the engine looks for, with the id that its detections carry."""

    id: int
    classes: tuple[PromptClass, ...]


@dataclass(frozen=True, eq=False)
class Flight:
    """Frames in one call of `submit`, with the events that keep the order.

    `earlier` are the `passed_on` of the calls before it that hold frames of the same sources.
    """

    frames: list[Frame]
    pending: Pending | None
    prompts: Prompts
    submitted_s: float
    earlier: list[threading.Event]
    passed_on: threading.Event

    @property
    def source(self) -> str:
        """Name of the first frame's source."""
        return self.frames[0].source


class Inference:
    """The two stages and what they share.

    Args:
        prompts: those in force; assign `prompts` to change them for frames without a picture.
        warm_up: infer once before the first frame. The first inference may compile, which takes seconds.
    """

    def __init__(
        self, engine: PoseEngine, prompts: Prompts, budget: AgeBudget, metrics: Metrics, *, warm_up: bool
    ) -> None:
        self.prompts = prompts
        self._engine = engine
        self._budget = budget
        self._metrics = metrics
        self._warm_up = warm_up
        self._room = threading.Semaphore(engine.in_flight)

    def submit(self, frames: Queue[Frame]) -> Generator[Flight]:
        """Hand frames to the engine: `batch` per call, `in_flight` calls at a time."""
        if self._warm_up:
            self._engine.submit([np.zeros((64, 64, 3), np.uint8)]).result()
        latest: dict[str, threading.Event] = {}
        while not frames.ended:
            if not self._room.acquire(timeout=_ROOM_WAIT_S):
                continue
            taken = frames.take(self._engine.batch)
            usable = [frame for frame in taken if self._is_usable(frame, frames)]
            if not usable:
                self._room.release()
                continue
            images = [frame.rgb_HW3 for frame in usable if frame.rgb_HW3 is not None]
            sources = {frame.source for frame in usable}
            earlier = [latest[source] for source in sources if source in latest]
            passed_on = threading.Event()
            latest.update(dict.fromkeys(sources, passed_on))
            submitted_s = time.perf_counter()
            pending = self._engine.submit(images) if images else None
            yield Flight(usable, pending, self.prompts, submitted_s, earlier, passed_on)

    def collect(self, flights: Queue[Flight]) -> Generator[FramePoses]:
        """Wait for the detections of a call, then pass them on after those of earlier calls."""
        for flight in flights:
            try:
                try:
                    found = iter(flight.pending.result() if flight.pending is not None else ())
                finally:
                    self._room.release()
                inferred_s = time.perf_counter() - flight.submitted_s
                for event in flight.earlier:
                    event.wait()
                nothing = Detections.empty(flight.prompts.classes, flight.prompts.id)
                for frame in flight.frames:
                    if frame.picture is not None:
                        self._metrics.add_latency("infer", inferred_s)
                    yield FramePoses(frame, nothing if frame.picture is None else next(found))
            finally:
                flight.passed_on.set()

    def _is_usable(self, frame: Frame, frames: Queue[Frame]) -> bool:
        """Whether the frame is young enough and can be converted to RGB; otherwise it is dropped."""
        reason = None if self._budget.allows(frame) else TOO_OLD
        if reason is None:
            try:
                frame.rgb_HW3  # noqa: B018 (a live picture is converted here)
            except SourceError as error:
                _log.warning("%s", error)
                reason = UNREADABLE
        if reason is not None:
            frames.drop(frame, reason)
        return reason is None
