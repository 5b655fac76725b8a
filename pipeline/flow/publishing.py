"""Publishing: one message per frame, and the states of the sources at a steady beat."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.flow.metrics import STOPPED, TOO_OLD, Metrics
from pipeline.flow.newest import Newest
from pipeline.flow.queues import Queue
from pipeline.flow.roster import Roster
from pipeline.flow.stages import is_in_time
from pipeline.frames import Frame, FrameTracks
from pipeline.keys import ServerKeys
from pipeline.outputs.messages import pose_message, skeleton_message
from pipeline.outputs.publisher import PublishConfig, Publisher
from xpose_client.host import boot_id
from xpose_client.messages import SCHEMA, Message, PoseMessage, SkeletonMessage, StatusMessage

if TYPE_CHECKING:
    from pipeline.outputs.poses import PoseFile
    from pipeline.outputs.recording import Recorder
    from pipeline.sources import Source

_log = logging.getLogger(__name__)

_LATE_JOINER_WAIT_S = 0.02


@dataclass(frozen=True, eq=False)
class Published:
    """A frame with its message and the skeletons that belong to it."""

    frame: Frame
    message: PoseMessage
    skeleton: SkeletonMessage

    @property
    def source(self) -> str:
        """Name of the frame's source."""
        return self.frame.source


class Publish:
    """The stage that makes one message per frame, publishes it, and writes it as a line of text.

    It also publishes one status message per source every `beat_s`, whatever the source does.

    Args:
        age_budget_s: older live results are dropped, and a live source whose newest picture is older is late.
        poses: file for the messages; None for none.
        roster: the sources whose states are published.
        newest: gets each published frame.
        recorder: returns the recording that is going on, if any.
        keys: who may subscribe; None where everybody may who can reach the address.

    Attributes:
        endpoint: the address that was bound; "" for none.
        publisher: the socket, while the stage runs.
    """

    def __init__(
        self,
        config: PublishConfig,
        age_budget_s: float,
        metrics: Metrics,
        poses: PoseFile | None,
        roster: Roster,
        newest: Newest,
        recorder: Callable[[], Recorder | None],
        keys: ServerKeys | None = None,
    ) -> None:
        self.endpoint = ""
        self.publisher: Publisher | None = None
        self._config = config
        self._keys = keys
        self._age_budget_s = age_budget_s
        self._metrics = metrics
        self.poses = poses
        self._roster = roster
        self._newest = newest
        self._outlets: list[Callable[[Message], None]] = []
        self._recorder = recorder
        self._known_recorder: Recorder | None = None
        self._next_beat_s = 0.0
        self._removals = 0
        self._seq: dict[str, int] = {}
        self._skeletons: dict[str, SkeletonMessage] = {}

    def __call__(self, frames: Queue[FrameTracks]) -> Generator[Published]:
        """Open the socket and the file, publish every frame, close them."""
        with ExitStack() as opened:
            opened.callback(self._newest.end)
            publisher = None
            if self._config.endpoint:
                publisher = self.publisher = opened.enter_context(Publisher(self._config, self._keys))
                self.endpoint = publisher.endpoint
                _log.info("publishing on %s", self.endpoint)
                self._outlets.append(publisher.publish)
            opened.callback(self._end, publisher)
            if self.poses is not None:
                self._outlets.append(opened.enter_context(self.poses).write)
            for tracked in frames.polled(self._config.beat_s if publisher is None else _LATE_JOINER_WAIT_S):
                if publisher is not None:
                    publisher.serve_late_joiners()
                self._beat(publisher)
                if tracked is None:
                    continue
                if self._roster.is_gone(tracked.frame):
                    frames.drop(tracked, STOPPED)
                    continue
                recorder = self._current_recorder()
                published = self._publish(tracked, recorder) if self._is_due(tracked, frames) else None
                if recorder is not None:
                    recorder.tracked(tracked, None if published is None else published.message)
                if published is not None:
                    self._newest.put(published)
                    yield published

    def _is_due(self, tracked: FrameTracks, frames: Queue[FrameTracks]) -> bool:
        """Whether a frame gets a message: it is young enough; or it is a recorded frame that had a message."""
        recorded = tracked.frame.recorded
        if recorded is not None and not recorded.published:
            frames.drop(tracked, TOO_OLD)
            return False
        return is_in_time(tracked.frame, frames, self._age_budget_s)

    def _current_recorder(self) -> Recorder | None:
        """The running recording. A new one first gets the present skeletons."""
        recorder = self._recorder()
        if recorder is not self._known_recorder:
            self._known_recorder = recorder
            if recorder is not None:
                for skeleton in self._skeletons.values():
                    recorder.message(skeleton)
        return recorder

    def _publish(self, tracked: FrameTracks, recorder: Recorder | None) -> Published:
        source, found = tracked.source, tracked.detections
        session, skeleton = self._roster.session_of(source), self._skeletons.get(source)
        messages: list[Message] = []
        if skeleton is not None and skeleton.session != session:
            del self._seq[source]
        if skeleton is None or (skeleton.session, skeleton.prompt_id) != (session, found.prompt_id):
            skeleton = self._skeletons[source] = skeleton_message(
                found.prompts,
                found.prompt_id,
                source=source,
                session=session,
                publish_unix_ns=time.time_ns(),
                replay=tracked.frame.recorded is not None,
            )
            messages.append(skeleton)
            if recorder is not None:
                recorder.message(skeleton)
        seq = self._seq[source] = self._seq.get(source, -1) + 1
        message = pose_message(tracked, session=session, seq=seq, publish_unix_ns=time.time_ns())
        if tracked.frame.recorded is None:
            self._metrics.count_age(source, tracked.frame.age_s)
        for item in (*messages, message):
            for put_out in self._outlets:
                put_out(item)
        return Published(tracked.frame, message, skeleton)

    def _beat(self, publisher: Publisher | None) -> None:
        """Publish and record the states of all sources when it is time, and at once where a source was removed."""
        now_s, removals = time.monotonic(), self._roster.removals
        if now_s >= self._next_beat_s or removals != self._removals:
            self._removals = removals
            self._next_beat_s = max(self._next_beat_s, now_s - self._config.beat_s / 2) + self._config.beat_s
            recorder, reported = self._current_recorder(), self._roster.reported()
            for source in reported if publisher is not None or recorder is not None else ():
                message = self.status_message(source)
                if publisher is not None:
                    publisher.publish(message)
                if recorder is not None:
                    recorder.message(message)
            self._forget_removed(publisher, {source.name for source in reported})

    def _forget_removed(self, publisher: Publisher | None, reported: set[str]) -> None:
        """Late joiners get nothing of a removed source but its end, for as long as that is reported."""
        present = {source.name for source in self._roster.sources()}
        if publisher is not None:
            publisher.keep_only(present, reported)
        for name in self._skeletons.keys() - present:
            del self._skeletons[name], self._seq[name]
            self._newest.forget(name)

    def _end(self, publisher: Publisher | None) -> None:
        """Publish and record that every source has ended."""
        for source in self._roster.reported():
            source.status.ended()
        self._next_beat_s = 0.0
        self._beat(publisher)

    def status_message(self, source: Source) -> StatusMessage:
        """Return the state of one source, made now. For any thread."""
        view = source.status.view(self._age_budget_s if source.live else 0.0)
        return StatusMessage(
            schema=SCHEMA,
            session=self._roster.session_of(source.name),
            host=boot_id(),
            source=source.name,
            state=view.state,
            since_unix_ns=view.since_unix_ns,
            publish_unix_ns=time.time_ns(),
            publish_monotonic_ns=time.monotonic_ns(),
            frame_rate=round(view.frame_rate, 2),
            lag_s=view.lag_s,
            drops=dict(self._metrics.drops(source.name)),
            last_error=view.last_error,
            last_capture_unix_ns=view.last_capture_unix_ns,
            capture_clock=view.capture_clock if source.live else "file",
            clock_offset_s=view.clock_offset_s,
            beat_s=self._config.beat_s,
            reconnects=view.reconnects,
            replay=source.recorded,
        )
