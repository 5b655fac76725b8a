"""The age contract of live sources: no message is published that is known to be older than the budget.

The age of a frame is the present moment minus its capture time. It sums the delay of the link, decoding, inference and
all queues. A frame that is too old is dropped, counted and reported. The source itself catches up
(`pipeline.sources.catch_up`).
"""

from __future__ import annotations

import logging

from pipeline.frames import Frame

_log = logging.getLogger(__name__)

_SENDING_S = 0.005
"""Time to make and send a message: what is checked before must still hold after it."""


class AgeBudget:
    """Tells which live frames are too old for a stage. Frames of files are never too old.

    Args:
        budget_s: oldest allowed age; 0 allows every age.
        stage: name of the stage, for the warning.
    """

    def __init__(self, budget_s: float, stage: str) -> None:
        self._budget_s = budget_s
        self._stage = stage
        self._warned: set[str] = set()

    def allows(self, frame: Frame) -> bool:
        """Whether the frame is young enough. The first frame of a source that is not gives a warning."""
        if not frame.live or self._budget_s == 0 or frame.age_s <= self._budget_s - _SENDING_S:
            return True
        if frame.source not in self._warned:
            self._warned.add(frame.source)
            _log.warning(
                "%s: frame %d was %.2f s old before %s; the budget is %.2f s (flow.age_budget_s). Older frames are "
                "dropped and counted.", frame.source, frame.index, frame.age_s, self._stage, self._budget_s,
            )  # fmt: skip
        return False
