"""The age contract of live sources: no message is published that is known to be older than the budget.

The age of a frame is the present moment minus its capture time. It sums the delay of the link, decoding, inference and
all queues. A frame that is too old is dropped, counted and reported. The source itself catches up
(`pipeline.sources.catch_up`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from pipeline.flow.metrics import Metrics
from pipeline.frames import Frame

_log = logging.getLogger(__name__)

_SENDING_S = 0.005
"""Time to make and send a message: what is checked before must still hold behind it."""


class AgeBudget:
    """Drops live frames that are older than the budget; frames of files are never too old.

    Args:
        budget_s: oldest age that is allowed; 0 allows every age.
        stage: which stage counts the drops.
        live: names of the live sources.
    """

    def __init__(self, budget_s: float, stage: str, live: Sequence[str], metrics: Metrics) -> None:
        self._budget_s = budget_s
        self._stage = stage
        self._live = set(live) if budget_s > 0 else set()
        self._metrics = metrics
        self._warned: set[str] = set()

    def allows(self, frame: Frame) -> bool:
        """Whether the frame is young enough; counts it where it is not, and warns once per source."""
        if frame.source not in self._live:
            return True
        age_s = frame.age_s
        if age_s <= self._budget_s - _SENDING_S:
            return True
        self._metrics.count_drop(self._stage, frame.source, "too old")
        if frame.source not in self._warned:
            self._warned.add(frame.source)
            _log.warning(
                "%s: frame %d was %.2f s old before %s, the budget is %.2f s (line.age_budget_s): it and others "
                "like it are dropped and counted", frame.source, frame.index, age_s, self._stage, self._budget_s,
            )  # fmt: skip
        return False
