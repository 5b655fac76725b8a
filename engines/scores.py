"""What the scores of each model mean: thresholds, and the scale that trackers share. Needs no torch.

Three settings decide which detections count (`engines.config.EngineConfig`): `score_threshold`, `doubtful_score` and
`nms_iou`. Where they are None, the model's own values below are used.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Kept(NamedTuple):
    """Which of a model's detections are kept."""

    score_threshold: float
    nms_iou: float


class Calibration(NamedTuple):
    """What a model's scores mean.

    Attributes:
        kept: detections above the threshold count by themselves.
        doubtful_score: in videos, detections above this score continue a track.
        sure_score: detections from this score on start a track.
    """

    kept: Kept
    doubtful_score: float
    sure_score: float


PUBLISHED = Calibration(Kept(score_threshold=0.1, nms_iou=0.9), doubtful_score=0.1, sure_score=0.3)
"""Source of `kept`: X-Pose's demo (XPOSE.md 2.4). A focal loss keeps the scores low: a sure person may score 0.3."""
NANO = Calibration(Kept(score_threshold=0.48, nms_iou=0.5), doubtful_score=0.2, sure_score=0.48)
"""Photographs without people rarely score 0.48; nano finds each object several times (engines/weights/NANO.md)."""


def calibration_of(model_name: str) -> Calibration:
    """Return the calibration of a model."""
    return NANO if model_name == "nano" else PUBLISHED


def kept_of(model_name: str, score_threshold: float | None = None, nms_iou: float | None = None) -> Kept:
    """Threshold and overlap as given; the model's own where they are None."""
    own = calibration_of(model_name).kept
    return Kept(
        own.score_threshold if score_threshold is None else score_threshold,
        own.nms_iou if nms_iou is None else nms_iou,
    )


class ScoreScale:
    """The model's scores on the scale that trackers are tuned for, and back.

    0, `sure` and 1 of the model are 0, `tracker_sure` and 1 of the tracker; the scale is linear in between.

    Args:
        sure: minimum score of the model to start a track; inside (0, 1).
        tracker_sure: the same score for the tracker (`AssociationConfig.new_score`); inside (0, 1).
    """

    def __init__(self, sure: float, tracker_sure: float) -> None:
        self._model, self._tracker = (0.0, sure, 1.0), (0.0, tracker_sure, 1.0)

    def to_tracker(self, scores: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Convert scores of the model; any shape."""
        return np.asarray(np.interp(scores, self._model, self._tracker), np.float64)

    def to_model(self, scores: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Undo `to_tracker`."""
        return np.asarray(np.interp(scores, self._tracker, self._model), np.float64)
