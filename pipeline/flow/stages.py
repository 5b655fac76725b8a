"""The stages of the pipeline, and the rule for the age of live frames.

A stage is a generator function: it reads a `Queue` and yields results. `Stage.drive` runs it on a thread, counts and
times its items, and always closes its output, also after an error. To add a stage, write such a function and add it to
`Pipeline._make_stages`. A stage opens its files and sockets before it reads its queue, and closes them on its own
thread. The sources start when all stages read their queues.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pipeline.errors import ConfigError
from pipeline.flow.metrics import TOO_OLD
from pipeline.flow.queues import FromSource, Item, Queue, QueueClosed
from pipeline.frames import Frame

Out = TypeVar("Out", bound=FromSource)

_log = logging.getLogger(__name__)

_SENDING_S = 0.005
"""Time to make and send a message. The age is checked before this; a message must be in the budget after it."""

MOST_GATHER_MS = 100.0
"""The time of three frames of a usual camera. A longer wait has no use."""


@dataclass(frozen=True)
class FlowConfig:
    """Settings of the queues between the stages, and of the age of live frames.

    Attributes:
        file_queue: frames of a file that may wait for inference; when the queue is full, the decoder waits.
        live_queue: frames of a live source that may wait for inference; when the queue is full, the oldest is dropped.
        stage_queue: results that may wait between inference, tracking and publishing; when full, inference waits.
        age_budget_s: largest age of a live frame. An older frame is not inferred, and an older result is not published.
            A source whose frames stay older than this catches up. 0 allows every age.
        gather_ms: longest wait of a live frame for frames of other live sources, so that they share one call of an
            engine that takes several images per call. None: 2 ms on a GPU, 0 on a CPU.
    """

    file_queue: int = 8
    live_queue: int = 1
    stage_queue: int = 8
    age_budget_s: float = 2.0
    gather_ms: float | None = None

    def __post_init__(self) -> None:
        for key in ("file_queue", "live_queue", "stage_queue"):
            if getattr(self, key) < 1:
                raise ConfigError(f"flow.{key} is {getattr(self, key)}: give 1 frame or more")
        if not self.age_budget_s >= 0:
            raise ConfigError(f"flow.age_budget_s is {self.age_budget_s}: give 0 s (every age) or more")
        if self.gather_ms is not None and not 0 <= self.gather_ms <= MOST_GATHER_MS:
            raise ConfigError(f"flow.gather_ms is {self.gather_ms}: give 0 ms to {MOST_GATHER_MS:g} ms")


@dataclass(frozen=True, eq=False)
class Stage(Generic[Item, Out]):
    """A generator function between two queues.

    Attributes:
        work: the generator function.
        input: queue that it reads; the name of the stage is `input.stage`.
        output: queue for its items; None discards them.
        workers: number of threads that run `work` side by side.
        counts_itself: True if `work` counts and times its items, so that `drive` does not.
    """

    work: Callable[[Queue[Item]], Generator[Out]]
    input: Queue[Item]
    output: Queue[Out] | None = None
    workers: int = 1
    counts_itself: bool = False

    def drive(self) -> None:
        """Run the stage on this thread until its input ends or its output is closed. Raises the errors of `work`."""
        try:
            with closing(self.work(self.input)) as results:
                for result in results:
                    if not self.counts_itself:
                        took_s = time.perf_counter() - self.input.taken_s
                        self.input.metrics.count_out(self.input.stage, result.source, took_s)
                    if self.output is not None:
                        self.output.put(result)
        except QueueClosed:
            pass
        finally:
            self.input.leave()
            self.input.read.set()
            if self.output is not None:
                self.output.close()


def is_in_time(frame: Frame, queue: Queue[Any], budget_s: float) -> bool:
    """Return whether a frame is young enough for the stage that took it from `queue`; if not, count it as dropped.

    No message is published that is known to be older than the budget. The age of a frame is the present time minus its
    capture time. It includes the delay of the link, decoding, inference and all queues. Frames of files are never too
    old. The first drop of a source gives a warning; the source itself catches up (`pipeline.sources.catch_up`).

    Args:
        budget_s: oldest allowed age; 0 allows every age.
    """
    if not frame.live or budget_s == 0 or frame.age_s <= budget_s - _SENDING_S:
        return True
    if not queue.drops[frame.source, TOO_OLD]:
        _log.warning(
            "%s: frame %d was %.2f s old before %s; the budget is %.2f s (flow.age_budget_s). Older frames are dropped "
            "and counted.", frame.source, frame.index, frame.age_s, queue.stage, budget_s,
        )  # fmt: skip
    queue.drop(frame, TOO_OLD)
    return False
