"""The sources of a pipeline, each with a decoder thread and a lane of the first queue."""

from __future__ import annotations

import itertools
import logging
import threading
from contextlib import closing

from pipeline.errors import PipelineError, SourceError
from pipeline.flow.queues import Lane, Queue, QueueClosed
from pipeline.flow.roster import Roster
from pipeline.flow.stages import FlowConfig
from pipeline.flow.threads import Threads, join
from pipeline.frames import Frame
from pipeline.sources import Source

_log = logging.getLogger(__name__)


class Intake:
    """Adds and removes sources. All methods are for any thread.

    Args:
        config: sizes of the lanes, and the age budget.
        frames: queue of the decoded frames. It closes when the last source ends.
        threads: starts the decoders.
        hold: keep the queue open when there are no sources.
        session: see `Roster`.

    Attributes:
        roster: the sources.
        broken: one sentence for each source that could not be opened or ended with an error.
    """

    def __init__(self, config: FlowConfig, frames: Queue[Frame], threads: Threads, *, hold: bool, session: int) -> None:
        self.roster = Roster(session)
        self.broken: list[str] = []
        self._config = config
        self._frames = frames
        self._threads = threads
        self._hold = hold
        self._lock = threading.RLock()
        self._lanes: dict[str, Lane[Frame]] = {}
        self._decoders: list[threading.Thread] = []
        frames.metrics.watch("decode", self.roster.drops)

    def add(self, source: Source, session: int | None) -> None:
        """Add a source under a name that no other source has.

        Raises:
            PipelineError: the pipeline has ended.
        """
        with self._lock:
            name = source.name = self._free_name(source.name)
            source.age_budget_s = self._config.age_budget_s
            capacity = self._config.live_queue if source.live else self._config.file_queue
            try:
                self._lanes[name] = self._frames.lane(capacity, drop_oldest=source.live)
            except QueueClosed as error:
                raise PipelineError(f"{name}: the pipeline has ended; start another one") from error
            self.roster.add(source, session)

    def start(self, source: Source) -> None:
        """Start the decoder of a source that was added."""
        with self._lock:
            lane = self._lanes[source.name]
            self._decoders = [thread for thread in self._decoders if thread.is_alive()]
            self._decoders.append(self._threads.start(f"decode {source.name}", lambda: self._decode(source, lane)))

    def remove(self, name: str) -> None:
        """Stop a source and drop its waiting frames. Its decoder may end later.

        Raises:
            PipelineError: there is no source of this name.
        """
        with self._lock:
            source = self.roster.remove(name)
            if source is None:
                names = ", ".join(source.name for source in self.roster.sources()) or "none"
                raise PipelineError(f"{name}: there is no source of this name; the sources are {names}")
            source.stop()
            source.status.ended()
            lane = self._lanes.get(name)
            if lane is not None:
                lane.close(drop_waiting=True)
                self._end_lane(name, lane)

    def stop(self) -> None:
        """Ask all sources to end."""
        for source in self.roster.sources():
            source.stop()

    def join(self, timeout_s: float) -> bool:
        """Wait for the decoders for at most `timeout_s`; return whether all have ended."""
        return join(self._decoders, timeout_s)

    def _decode(self, source: Source, lane: Lane[Frame]) -> None:
        """Open a source, put all its frames on its lane, and close it. If it fails, the other sources continue."""
        error = None
        try:
            with closing(iter(source)) as frames:
                for frame in frames:
                    if not source.live:
                        source.status.picture(frame)
                    self._frames.metrics.count_out("decode", frame.source, frame.decode_s)
                    lane.put(frame)
        except SourceError as failure:
            error = str(failure)
            _log.warning("%s", error)
            self.broken.append(error)
        except QueueClosed:
            pass
        finally:
            source.status.ended(error)
            self._end_lane(source.name, lane)

    def _end_lane(self, name: str, lane: Lane[Frame]) -> None:
        """Close a lane and forget it. The end of the last lane closes the queue."""
        with self._lock:
            lane.close()
            if self._lanes.get(name) is lane:
                del self._lanes[name]
            if not self._lanes and not self._hold:
                self._frames.close()

    def _free_name(self, name: str) -> str:
        """Return a name that is not in use. The second `clip` becomes `clip-2`, because topics contain the name."""
        names = (name if number == 1 else f"{name}-{number}" for number in itertools.count(1))
        return next(free for free in names if free not in self._lanes)
