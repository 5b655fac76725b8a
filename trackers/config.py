"""Every setting of a tracker, with the tuned defaults. Times are seconds, lengths are fractions of the object's size.

The defaults were tuned on dancetrack0004-0035 and the Bonn sequences 0000*, and serve every data set alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields

from trackers.errors import TrackerConfigError


def _check_range(owner: object, name: str, low: float, high: float) -> None:
    value = getattr(owner, name)
    if not (math.isfinite(value) and low <= value <= high):
        raise TrackerConfigError(
            f"{type(owner).__name__}.{name}: got {value}; allowed is {low} to {high}: correct the configuration"
        )


def _check_non_negative(owner: object) -> None:
    for item in fields(owner):  # type: ignore[arg-type]
        if isinstance(getattr(owner, item.name), (int, float)):
            _check_range(owner, item.name, 0.0, 1e9)


@dataclass(frozen=True, slots=True)
class MotionConfig:
    """Constant-velocity filters of box and keypoints; "size" is sqrt(width * height) of the box.

    Each coordinate follows white acceleration plus a small random walk; both grow with true time.
    """

    box_measurement: float = 0.05  # standard deviation of a detected coordinate, sizes
    box_walk: float = 0.20  # random walk of a coordinate, sizes/sqrt(s)
    box_acceleration: float = 0.30  # white acceleration, sizes/s^1.5
    box_speed: float = 0.30  # standard deviation of a new object's velocity, sizes/s
    keypoint_measurement: float = 0.03  # starting value; learned from the residuals from then on
    keypoint_walk: float = 0.05
    keypoint_acceleration: float = 1.0
    keypoint_speed: float = 1.0
    gate_sigma: float = 5.0  # a keypoint this far from its prediction does not move its filter
    gate_patience: int = 2  # rejected so often in a row, the keypoint restarts where it is measured
    noise_memory: float = 0.95  # forgetting factor of the learned measurement noise, per update

    def __post_init__(self) -> None:
        _check_non_negative(self)
        _check_range(self, "noise_memory", 0.0, 1.0)


@dataclass(frozen=True, slots=True)
class AssociationConfig:
    """Which detection continues which track. Similarities are 0..1."""

    high_score: float = 0.6  # detections from here on take part in the first round and may found tracks
    new_score: float = 0.7  # founding a track needs this score
    low_score: float = 0.1  # below: ignored
    buffer: float = 0.3  # boxes grow by this fraction on every side before their overlap is taken
    first_similarity: float = 0.2  # least similarity in the round of confident detections
    second_similarity: float = 0.5  # in the round of doubtful detections
    tentative_similarity: float = 0.3  # for tracks that are not confirmed yet
    pose_weight: float = 0.5  # share of OKS in the similarity where both sides have keypoints
    default_sigma: float = 0.07  # OKS sigma where the skeleton publishes none; learned from the residuals from then on
    max_detections: int = 1000  # the best by score are kept

    def __post_init__(self) -> None:
        _check_non_negative(self)
        for name in ("high_score", "new_score", "low_score", "pose_weight", "default_sigma"):
            _check_range(self, name, 0.0, 1.0)
        _check_range(self, "max_detections", 1, 100_000)


@dataclass(frozen=True, slots=True)
class LifecycleConfig:
    """When tracks are believed, published and forgotten."""

    confirm_hits: int = 2  # detections until a track is published; in the first update one is enough
    tentative_s: float = 0.0  # an unconfirmed track survives unseen for this long
    coast_s: float = 0.2  # a confirmed track is published unseen for this long
    lost_s: float = 1.0  # and can be recognised again for this long
    max_tracks: int = 2000  # births beyond it are dropped: memory stays bounded

    def __post_init__(self) -> None:
        _check_non_negative(self)
        _check_range(self, "confirm_hits", 1, 1000)
        _check_range(self, "max_tracks", 1, 1_000_000)


@dataclass(frozen=True, slots=True)
class SmoothingConfig:
    """One way of smoothing for one group of keypoints.

    mode: "raw" (none), "one_euro".
    """

    mode: str = "one_euro"
    min_cutoff_hz: float = 0.3
    beta: float = 0.5
    derivative_cutoff_hz: float = 10.0

    def __post_init__(self) -> None:
        allowed = ("raw", "one_euro")
        if self.mode not in allowed:
            raise TrackerConfigError(
                f"SmoothingConfig.mode: got {self.mode!r}; allowed are {allowed}: choose one of them"
            )
        _check_non_negative(self)


@dataclass(frozen=True, slots=True)
class TrackerConfig:
    """Settings of `trackers.Tracker`."""

    motion: MotionConfig = field(default_factory=MotionConfig)
    association: AssociationConfig = field(default_factory=AssociationConfig)
    lifecycle: LifecycleConfig = field(default_factory=LifecycleConfig)
    smoothing: SmoothingConfig = field(default_factory=SmoothingConfig)
