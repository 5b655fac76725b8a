"""The status that the monitor page shows in addition to the pictures: one JSON text, made twice a second while there
are viewers.
"""

from __future__ import annotations

import time

import msgspec

from pipeline.flow.pipeline import Pipeline
from pipeline.service.access import Steering
from pipeline.service.health import state_of
from pipeline.service.operations import Operations
from xpose_client.control_messages import EngineState, SourceReport


class Overview:
    """Makes the status of the page.

    Args:
        steer: what viewers may change.
    """

    def __init__(self, pipeline: Pipeline, operations: Operations, steer: Steering) -> None:
        self._pipeline = pipeline
        self._operations = operations
        self._steer = steer
        self._found_s: dict[str, float] = {}  # when a source last had tracks

    def knows(self, name: str) -> bool:
        """Whether there is a source of this name."""
        return any(source.name == name for source in self._pipeline.sources)

    def state(self, name: str) -> str:
        """The state of a source; "ended" where there is none."""
        return next((state_of(source) for source in self._pipeline.sources if source.name == name), "ended")

    def infos(self) -> dict[str, dict[str, str]]:
        """Return the texts among the metrics."""
        status = self._operations.status()
        names = ",".join(entry.name for entry in status.prompts.classes)
        return {
            "xpose_engine_info": {
                "model": status.engine.model,
                "backend": status.engine.backend,
                "device": status.engine.device,
                "precision": status.engine.precision,
                "version": status.versions.get("xpose-stream", ""),
            },
            "xpose_prompt_info": {"id": str(status.prompts.id), "classes": names},
        }

    def json(self) -> bytes:
        """Return the status of all sources, the prompts, and what viewers may change."""
        status = self._operations.status()
        sources = [self._source(entry) for entry in status.sources]
        kept = {entry.status.source for entry in status.sources}
        self._found_s = {name: at_s for name, at_s in self._found_s.items() if name in kept}
        return msgspec.json.encode(
            {
                "at_s": time.monotonic(),
                "engine": _engine(status.engine),
                "prompt": {"id": status.prompts.id, "text": ", ".join(entry.name for entry in status.prompts.classes)},
                "categories": status.categories.names,
                "may": {
                    "prompts": self._steer != "nothing",
                    "free_words": not status.categories.closed,
                    "sources": self._steer == "all",
                },
                "sources": sources,
            }
        )

    def _source(self, entry: SourceReport) -> dict[str, object]:
        status, name = entry.status, entry.status.source
        newest = self._operations.newest(name)
        if newest is not None and newest.message.tracks and status.state == "live":
            self._found_s[name] = time.monotonic()
        captured_ns = status.last_capture_unix_ns
        silent_s = None if captured_ns is None else max(0.0, (time.time_ns() - captured_ns) / 1e9)
        late = status.state in ("late", "lost")
        found_s = self._found_s.get(name)
        return {
            "name": name,
            "state": status.state,
            "silent_s": silent_s,
            "age_s": (silent_s if late else entry.age_s) if entry.live else None,
            "lag_s": status.lag_s,
            "published": entry.published,
            "drops": status.drops,
            "last_error": status.last_error,
            "reconnects": status.reconnects,
            "found_ago_s": None if found_s is None else time.monotonic() - found_s,
        }


def _engine(engine: EngineState) -> str:
    size = "" if engine.input_size is None else f", {engine.input_size[0]} × {engine.input_size[1]} px"
    return f"{engine.model}, {engine.backend}, {engine.precision}{size}"
