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
    """Constant-velocity filter of a box; "size" is sqrt(width * height). Noises grow with true time.

    The box's centre and its width and height have noises of their own; a measurement of low score is trusted less.
    """

    measurement: float = 0.027  # standard deviation of a detected coordinate, sizes
    doubt: float = 0.31  # measurement variance grows by 1 + 25 * doubt * (1 - score)^2 (NSA Kalman, arXiv:2107.07638)
    centre_walk: float = 0.18  # random walk, sizes/sqrt(s)
    centre_acceleration: float = 0.64  # white acceleration, sizes/s^1.5
    size_walk: float = 0.29
    size_acceleration: float = 0.049
    speed: float = 0.31  # standard deviation of a new object's velocity, sizes/s
    heading_s: float = 0.26  # time constant of the observed velocity that association compares headings with

    def __post_init__(self) -> None:
        _check_non_negative(self)


@dataclass(frozen=True, slots=True)
class NoiseConfig:
    """What is assumed of a keypoint's noise before it is learned, and how it is learned.

    A "ratio" is acceleration density * interval^3 / measurement variance: how much a keypoint moves against how much
    it trembles.
    """

    prior: float = 0.01  # standard deviation of a keypoint before any is measured, sizes
    prior_ratio: float = 1.0
    prior_updates: float = 4.0  # how many measurements the prior counts for
    memory_updates: float = 50.0  # the estimate forgets measurements older than about this many
    floor_px: float = 0.14  # no detector's coordinates are better
    calm: float = 1.5  # the learned ratio is divided by this: a little more smoothing than the likeliest model's
    least_ratio: float = 0.02
    most_ratio: float = 1000.0
    clip_sigma: float = 4.0  # second differences beyond it count as this large
    gate_sigma: float = 5.0  # a keypoint is rejected when it is this many standard deviations from its prediction,
    gate_size: float = 0.15  # and also farther than this share of the longer side of its box,
    gate_speed: float = 2.0  # plus this share per second since its track was last measured
    gate_patience: int = 2  # a keypoint that is rejected more often than this in a row starts afresh where it is

    def __post_init__(self) -> None:
        _check_non_negative(self)
        for name in ("prior", "floor_px", "calm", "least_ratio", "memory_updates"):
            _check_range(self, name, 1e-6, 1e6)


@dataclass(frozen=True, slots=True)
class AssociationConfig:
    """Which detection continues which track. Similarities are about 0..1.

    The similarity of a pair of boxes is buffered IoU * height IoU (Hybrid-SORT, AAAI 2024) *
    sqrt(ratio of heights) * score^score_power, plus what speaks for its direction, less what speaks against its score.
    """

    low_score: float = 0.1  # detections below are ignored
    high_score: float = 0.51  # from here on they take part in the first round
    new_score: float = 0.7  # founding a track needs this
    first_similarity: float = 0.077  # least similarity in the round of confident detections
    second_similarity: float = 0.43  # in the round of doubtful ones, which only continue tracks seen a moment ago
    buffer: float = 0.14  # boxes grow by this fraction on every side before their overlap is taken (C-BIoU, WACV 2023)
    speed_buffer: float = 0.31  # and by this much more per size/s of the track's speed
    score_power: float = 0.77
    low_score_power: float = 0.07  # instead of score_power in the second round
    heading_weight: float = 0.056  # for moving on in the observed direction (OC-SORT, CVPR 2023, with Kalman tracks)
    heading_speed: float = 0.35  # sizes/s from which a direction counts fully
    score_weight: float = 0.1  # against a change of score (Hybrid-SORT, AAAI 2024)
    pose_weight: float = 0.4  # share of OKS in the similarity where both sides have keypoints
    pose_similarity: float = 0.2  # least similarity of such a pair in any round
    default_sigma: float = 0.07  # OKS sigma where the skeleton publishes none, until learned from the residuals
    max_detections: int = 1000  # the best by score are kept

    def __post_init__(self) -> None:
        _check_non_negative(self)
        for name in ("high_score", "new_score", "low_score", "pose_weight", "pose_similarity"):
            _check_range(self, name, 0.0, 1.0)
        _check_range(self, "default_sigma", 1e-3, 1.0)
        _check_range(self, "heading_speed", 1e-3, 1e3)
        for name in ("first_similarity", "second_similarity"):
            _check_range(self, name, 1e-6, 1.0)
        _check_range(self, "max_detections", 1, 100_000)


@dataclass(frozen=True, slots=True)
class LifecycleConfig:
    """When tracks are believed, published and forgotten."""

    confirm_hits: int = 2  # detections until a track is published; in the first update one is enough
    tentative_s: float = 0.0  # an unconfirmed track survives unseen for this long
    coast_s: float = 0.15  # a confirmed track is published unseen for this long
    lost_s: float = 1.6  # and can be recognised again for this long
    max_tracks: int = 2000  # births beyond it are dropped: memory stays bounded

    def __post_init__(self) -> None:
        _check_non_negative(self)
        _check_range(self, "confirm_hits", 1, 1000)
        _check_range(self, "max_tracks", 1, 1_000_000)


@dataclass(frozen=True, slots=True)
class CoastingConfig:
    """Motion of what is not measured: keypoints follow their object's box, and both come to rest."""

    own_motion_s: float = 0.1  # time constant with which a keypoint's own motion, relative to its box, dies out
    box_motion_s: float = 0.3  # time constant with which the velocity of a box that is not measured dies out
    doubt: float = 2.0  # own motion below about this many standard deviations of its velocity, squared, is ignored
    check_s: float = 0.2  # interval at which each track measures how far keypoints drift from such a prediction
    growth: float = 1.55  # the variance of that drift grows with this power of time

    def __post_init__(self) -> None:
        _check_non_negative(self)
        for name in ("own_motion_s", "box_motion_s", "check_s"):
            _check_range(self, name, 1e-3, 1e3)


@dataclass(frozen=True, slots=True)
class SmoothingConfig:
    """How a keypoint is smoothed; always causal.

    mode:
        "fixed_lag"  the adaptive Kalman filter, seen from one update later: `keypoints_K2` is for that much before
                     the update (`Track.smoothing_lag_s`); "kalman" where updates lie farther apart than the limit.
        "kalman"     the adaptive Kalman filter at the time of the update: no lag, more jitter.
        "one_euro"   One-Euro with the three settings below.
        "raw"        as measured.
    """

    mode: str = "fixed_lag"
    longest_lag_s: float = 0.0335
    min_cutoff_hz: float = 0.3
    beta: float = 0.5
    derivative_cutoff_hz: float = 10.0

    def __post_init__(self) -> None:
        allowed = ("fixed_lag", "kalman", "one_euro", "raw")
        if self.mode not in allowed:
            raise TrackerConfigError(
                f"SmoothingConfig.mode: got {self.mode!r}; allowed are {', '.join(allowed)}: choose one of them"
            )
        _check_non_negative(self)


@dataclass(frozen=True, slots=True)
class SmoothingGroup:
    """Another smoothing for some keypoints, say the wrists."""

    keypoints: tuple[int, ...]
    smoothing: SmoothingConfig
    class_index: int | None = None  # None: of every class


@dataclass(frozen=True, slots=True)
class TrackerConfig:
    """Settings of `trackers.Tracker`."""

    motion: MotionConfig = field(default_factory=MotionConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    association: AssociationConfig = field(default_factory=AssociationConfig)
    lifecycle: LifecycleConfig = field(default_factory=LifecycleConfig)
    coasting: CoastingConfig = field(default_factory=CoastingConfig)
    smoothing: SmoothingConfig = field(default_factory=SmoothingConfig)
    smoothing_groups: tuple[SmoothingGroup, ...] = ()
