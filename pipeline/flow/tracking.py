"""What a tracker needs around it in the pipeline: prompts that change, and predictions for the present moment."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from engines.detections import Detections
from pipeline.frames import FramePoses
from trackers import Detections as TrackerDetections
from trackers import Tracker, Tracks

if TYPE_CHECKING:
    from engines.prompts import PromptClass

MakeTracker = Callable[[Mapping[int, NDArray[np.float64]]], Tracker]
"""Makes a tracker from the OKS sigmas [K] of each class index."""


class ScoreScale:
    """X-Pose's scores on the scale that the tracker was tuned on, and back.

    A focal loss keeps X-Pose's scores low: what it is sure of may score 0.3. The tracker's parameters are those of
    detectors that say 0.7 there. In between, and up to 1, the scale is straight, so that nothing changes its rank.

    Args:
        sure: the score from which a detection of the network may found a track; inside (0, 1).
        tracker_sure: what the tracker asks of such a detection (`AssociationConfig.new_score`); inside (0, 1).
    """

    def __init__(self, sure: float, tracker_sure: float) -> None:
        self._network, self._tracker = (0.0, sure, 1.0), (0.0, tracker_sure, 1.0)

    def to_tracker(self, scores_N: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return what the tracker is told."""
        return np.interp(scores_N, self._network, self._tracker)

    def to_network(self, scores_T: NDArray[np.float64]) -> NDArray[np.float64]:
        """Undo `to_tracker`."""
        return np.interp(scores_T, self._tracker, self._network)


class PromptedTracker:
    """A tracker that follows the prompts: tracks of a class that went away end on the frame that lacks it."""

    def __init__(self, make_tracker: MakeTracker, scale: ScoreScale) -> None:
        self._make = make_tracker
        self._scale = scale
        self._tracker: Tracker | None = None
        self._prompt_id = -1
        self._prompts: tuple[PromptClass, ...] = ()

    def update(self, poses: FramePoses, *, predict_to_now: bool) -> Tracks:
        """Return the tracks of this frame; their predictions are for now, or else for the frame's own time."""
        tracker = self._follow(poses.detections)
        frame, found = poses.frame, poses.detections
        if frame.pts_s is None:
            raise ValueError(f"frame {frame.index} of {frame.source} is no still but has no time")
        scores_N = self._scale.to_tracker(found.scores_N)
        detections = TrackerDetections(found.boxes_N4, scores_N, found.class_N, found.keypoints_NK2)
        tracks = tracker.update(detections, frame.pts_s)
        if predict_to_now:
            age_s = (time.monotonic_ns() - frame.capture_monotonic_ns) / 1e9
            tracks = tracker.predict_to(frame.pts_s + age_s)
        return replace(tracks, scores_T=self._scale.to_network(tracks.scores_T))

    def _follow(self, found: Detections) -> Tracker:
        sigmas = {index: np.array(prompt.skeleton.oks_sigmas) for index, prompt in enumerate(found.prompts)}
        if self._tracker is None:
            self._tracker = self._make(sigmas)
        elif found.prompt_id != self._prompt_id:
            self._tracker.set_classes(_kept_classes(self._prompts, found.prompts), sigmas)
        self._prompt_id, self._prompts = found.prompt_id, found.prompts
        return self._tracker


def _kept_classes(old: tuple[PromptClass, ...], new: tuple[PromptClass, ...]) -> dict[int, int]:
    """Map old class indices to new ones, for classes that are prompted by the same name with the same keypoints."""
    places = {(prompt.name, prompt.skeleton.keypoints): index for index, prompt in enumerate(new)}
    keys = [(prompt.name, prompt.skeleton.keypoints) for prompt in old]
    return {index: places[key] for index, key in enumerate(keys) if key in places}
