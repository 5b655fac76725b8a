"""Tracking: one tracker per source, prompts that change, and predictions for the present moment."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from engines.scores import ScoreScale
from pipeline.flow.metrics import STOPPED
from pipeline.flow.queues import Queue
from pipeline.flow.roster import Roster
from pipeline.frames import FramePoses, FrameTracks
from trackers import Detections as TrackerDetections
from trackers import StillTracker, Tracker

if TYPE_CHECKING:
    from engines.detections import Detections
    from engines.prompts import PromptClass

MakeTracker = Callable[[bool, Mapping[int, NDArray[np.float64]]], Tracker | StillTracker]
"""Makes a tracker for stills (True) or for video (False), from the OKS sigmas [K] of each class index."""


@dataclass(frozen=True)
class ScoreRules:
    """How the trackers use scores.

    Attributes:
        scale: converts between the model's scores, which are published, and the trackers' scores.
        still_threshold: in stills, detections above this score are kept; on the trackers' scale.
    """

    scale: ScoreScale
    still_threshold: float


class PromptedTracker:
    """The tracker of one source. When the prompts change, tracks of removed classes end with the next frame."""

    def __init__(self, make_tracker: MakeTracker) -> None:
        self._make = make_tracker
        self._tracker: Tracker | StillTracker | None = None
        self._last: Detections | None = None

    def update(self, poses: FramePoses, rules: ScoreRules) -> FrameTracks:
        """Return the frame's tracks.

        The predictions of a live frame are for now. Those of a recorded live frame are for the moment of the recorded
        predictions. Those of other frames are for the frame's own time.
        """
        frame, found = poses.frame, poses.detections
        tracker = self._follow_prompts(found, still=frame.still)
        if isinstance(tracker, StillTracker):
            tracker.score_threshold = rules.still_threshold
        if frame.pts_s is None and not frame.still:
            raise ValueError(f"frame {frame.index} of {frame.source} is no still but has no time")
        scores_N = rules.scale.to_tracker(found.scores_N)
        time_s = frame.pts_s or 0.0
        tracks = tracker.update(TrackerDetections(found.boxes_N4, scores_N, found.class_N, found.keypoints_NK2), time_s)
        age_s = frame.recorded.age_s if frame.recorded else frame.age_s if frame.live else None
        if age_s is not None:
            tracks = tracker.predict_to(time_s + age_s)
        return FrameTracks(frame, found, replace(tracks, scores_T=rules.scale.to_model(tracks.scores_T)), age_s)

    def _follow_prompts(self, found: Detections, *, still: bool) -> Tracker | StillTracker:
        last, self._last = self._last, found
        if self._tracker is not None and last is not None and last.prompt_id == found.prompt_id:
            return self._tracker
        sigmas = {index: np.array(prompt.skeleton.oks_sigmas) for index, prompt in enumerate(found.prompts)}
        if self._tracker is None or last is None:
            self._tracker = self._make(still, sigmas)
        else:
            self._tracker.set_classes(_kept_classes(last.prompts, found.prompts), sigmas)
        return self._tracker


def _kept_classes(old: tuple[PromptClass, ...], new: tuple[PromptClass, ...]) -> dict[int, int]:
    """Map old class indices to new ones, for classes with the same name and the same keypoints."""
    places = {(prompt.name, prompt.skeleton.keypoints): index for index, prompt in enumerate(new)}
    keys = [(prompt.name, prompt.skeleton.keypoints) for prompt in old]
    return {index: places[key] for index, key in enumerate(keys) if key in places}


def track(
    make_tracker: MakeTracker, rules: Callable[[], ScoreRules], roster: Roster, frames: Queue[FramePoses]
) -> Generator[FrameTracks]:
    """Track the objects of each source with its own tracker. A source that is added again gets a new tracker.

    Args:
        rules: returns the current rules for scores.
        roster: knows which frames come from removed sources.
    """
    trackers: dict[str, PromptedTracker] = defaultdict(lambda: PromptedTracker(make_tracker))
    newest: dict[str, int] = {}
    for poses in frames:
        if roster.is_gone(poses.frame):
            frames.drop(poses, STOPPED)
            continue
        if poses.frame.index <= newest.get(poses.source, -1):  # the source was added again
            del trackers[poses.source]
        newest[poses.source] = poses.frame.index
        yield trackers[poses.source].update(poses, rules())
