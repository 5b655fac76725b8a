"""Tracking and smoothing of objects with keypoints, from any detector. Needs numpy, scipy and filterpy only."""

from trackers.config import (
    AssociationConfig,
    LifecycleConfig,
    MotionConfig,
    NoiseConfig,
    SmoothingConfig,
    SmoothingGroup,
    TrackerConfig,
)
from trackers.errors import TrackerConfigError, TrackerError, TrackerInputError
from trackers.stills import StillTracker
from trackers.tracker import Tracker
from trackers.types import Detections, Track, Tracks, TrackState

__all__ = [
    "AssociationConfig",
    "Detections",
    "LifecycleConfig",
    "MotionConfig",
    "NoiseConfig",
    "SmoothingConfig",
    "SmoothingGroup",
    "StillTracker",
    "Track",
    "TrackState",
    "Tracker",
    "TrackerConfig",
    "TrackerConfigError",
    "TrackerError",
    "TrackerInputError",
    "Tracks",
]
