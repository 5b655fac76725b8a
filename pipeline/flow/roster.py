"""The sources of a pipeline, which can be added and removed while it runs.

A removed source is reported as "ended" for a few seconds and then forgotten. Some of its frames may still be in the
stages. `is_gone` distinguishes them from frames of a later source with the same name.
"""

from __future__ import annotations

import threading
import time
from collections import Counter

from pipeline.frames import Frame
from pipeline.sources import Source

_REPORTED_FOR_S = 5.0


class Roster:
    """Sources by name. All methods are for any thread.

    Args:
        session: of the messages of each source that was given no other one, ns since 1970.

    Attributes:
        removals: number of sources that were removed.
    """

    def __init__(self, session: int) -> None:
        self.removals = 0
        self._session = session
        self._sessions: dict[str, int] = {}
        self._lock = threading.Lock()
        self._sources: dict[str, Source] = {}
        self._leaving: dict[str, tuple[Source, float]] = {}  # with the time when they are forgotten
        self._names: set[str] = set()
        self._removed_ns: dict[str, int] = {}
        self._past_drops: Counter[tuple[str, str]] = Counter()

    def add(self, source: Source, session: int | None = None) -> None:
        """Add a source; it replaces an ended one with its name, and then has a session of its own in any case."""
        with self._lock:
            if session is not None or source.name in self._names:
                self._sessions[source.name] = session or time.time_ns()
            self._names.add(source.name)
            ended = self._sources.pop(source.name, None)
            if ended is not None:
                self._past_drops.update(_drops_of(ended))
            self._sources[source.name] = source

    def remove(self, name: str) -> Source | None:
        """Remove a source and return it; None if there is none with this name. Its earlier frames count as gone."""
        with self._lock:
            source = self._sources.pop(name, None)
            if source is not None:
                self._forget(name)
                self._leaving[name] = (source, time.monotonic() + _REPORTED_FOR_S)
                self._removed_ns[name] = time.monotonic_ns()
                self.removals += 1
            return source

    def session_of(self, name: str) -> int:
        """Return the session of a source's messages."""
        return self._sessions.get(name, self._session)

    def sources(self) -> list[Source]:
        """Return every source that was added and not removed, in order; the latest one of each name."""
        with self._lock:
            return list(self._sources.values())

    def reported(self) -> list[Source]:
        """Return the sources, including those that were removed a few seconds ago."""
        with self._lock:
            now_s = time.monotonic()
            for name in [name for name, (_, forget_s) in self._leaving.items() if now_s >= forget_s]:
                self._forget(name)
            leaving = {name: source for name, (source, _) in self._leaving.items()}
            return list({**leaving, **self._sources}.values())

    def is_gone(self, frame: Frame) -> bool:
        """Whether the frame comes from a source that was removed after its capture."""
        return frame.capture_monotonic_ns <= self._removed_ns.get(frame.source, 0)

    def drops(self) -> Counter[tuple[str, str]]:
        """Return how many pictures never became a frame, by (source, reason), for all sources, also removed ones."""
        with self._lock:
            drops = Counter(self._past_drops)
            for source in (*self._sources.values(), *(source for source, _ in self._leaving.values())):
                drops.update(_drops_of(source))
            return drops

    def _forget(self, name: str) -> None:
        if name in self._leaving:
            self._past_drops.update(_drops_of(self._leaving.pop(name)[0]))


def _drops_of(source: Source) -> dict[tuple[str, str], int]:
    return {(source.name, reason): count for reason, count in dict(source.drops).items()}
