"""Whether the pipeline is alive, and whether it is ready to work.

Alive: no thread works on one frame for longer than a limit. A thread that waits for a frame is healthy. A thread that
waits for room in the queue after it is healthy, too; then the next thread may be stuck, and it is checked in the same
way. The thread of a live source is healthy while it yields pictures or tries to connect, so a camera that is off does
not make the pipeline unhealthy.

Ready: the engine is warm, and at least one live source is live or all files were opened.
"""

from __future__ import annotations

import time
from typing import Any

from pipeline.flow.pipeline import Pipeline
from pipeline.flow.stages import Stage
from pipeline.sources import Source, SourceConfig


class Health:
    """Checks a pipeline. For any thread.

    Args:
        stall_s: longest time that a stage may take for one frame.
        sources: settings of the sources, whose time-outs bound how long their threads may be silent.
    """

    def __init__(self, pipeline: Pipeline, stall_s: float, sources: SourceConfig) -> None:
        self._pipeline = pipeline
        self._stall_s = stall_s
        self._silent_s = stall_s + 2 * (sources.open_timeout_s + sources.read_timeout_s)

    def stalled(self) -> list[str]:
        """Return one sentence for each thread that is stuck; none if the pipeline is alive."""
        started_s = self._pipeline.started_s
        if started_s is None:
            return []
        up_s = time.monotonic() - started_s
        found = [sentence for stage in self._pipeline.stages if (sentence := self._stalled_stage(stage))]
        return found + [
            f"the thread of {source.name} has done nothing for {silent_s:.0f} s; its bound is {self._silent_s:.0f} s"
            for source in list(self._pipeline.sources)
            if source.live and (silent_s := min(source.status.unmoved_s(), up_s)) > self._silent_s
        ]

    def unready(self) -> str | None:
        """Return why the pipeline is not ready, or None if it is ready."""
        if self._pipeline.started_s is None:
            return "the engine is warming up"
        sources = list(self._pipeline.sources)
        states = {source.name: state_of(source) for source in sources}
        live = [source.name for source in sources if source.live]
        files = [source.name for source in sources if not source.live]
        if any(states[name] == "live" for name in live):
            return None
        if files and all(states[name] != "connecting" for name in files):
            return None
        if not sources:
            return "there is no source yet"
        return "no source is live: " + ", ".join(f"{name} is {state}" for name, state in states.items())

    def _stalled_stage(self, stage: Stage[Any, Any]) -> str | None:
        working_s = stage.input.working_s()
        if working_s <= self._stall_s or (stage.output is not None and stage.output.waiting_producers):
            return None
        name = stage.input.stage
        return f"stage {name} has worked on one frame for {working_s:.0f} s; its bound is {self._stall_s:.0f} s"


def state_of(source: Source) -> str:
    """The state of a source at this moment; only a live one can be late."""
    return source.status.view(source.age_budget_s if source.live else 0.0).state
