"""Settings of a tracker, with tuned defaults.

Times are in seconds. Lengths are fractions of the object's size, which is sqrt(width * height) of its box.
The defaults were tuned on dancetrack0004-0035, the Bonn sequences 0000* and the first half of sleap_clip. The
same values are used for every data set.

Three settings decide which detections count, all in `AssociationConfig`: `low_score`, `high_score` and `new_score`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields

from trackers.errors import TrackerConfigError


def _check_range(owner: object, name: str, low: float, high: float) -> None:
    value = getattr(owner, name)
    if not (math.isfinite(value) and low <= value <= high):
        raise TrackerConfigError(
            f"{type(owner).__name__}.{name}: got {value}; allowed is {low} to {high}; change this setting"
        )


def _check_non_negative(owner: object) -> None:
    for item in fields(owner):  # type: ignore[arg-type]
        if isinstance(getattr(owner, item.name), (int, float)):
            _check_range(owner, item.name, 0.0, 1e9)


@dataclass(frozen=True, slots=True)
class MotionConfig:
    """Constant-velocity filter of a box. The centre and the size of a box have separate noises.

    Process noise grows with the true time between updates.
    """

    measurement: float = 0.027  # standard deviation of a detected coordinate, sizes
    doubt: float = 0.31  # measurement variance is multiplied by 1 + 25 * doubt * (1 - score)^2 (arXiv:2107.07638)
    centre_walk: float = 0.18  # random walk of the centre, sizes/sqrt(s)
    centre_acceleration: float = 0.64  # white acceleration of the centre, sizes/s^1.5
    size_walk: float = 0.29  # random walk of width and height, sizes/sqrt(s)
    size_acceleration: float = 0.049  # white acceleration of width and height, sizes/s^1.5
    speed: float = 0.31  # standard deviation of a new object's velocity, sizes/s
    heading_s: float = 0.26  # time constant of the observed velocity that association compares directions with

    def __post_init__(self) -> None:
        _check_non_negative(self)


@dataclass(frozen=True, slots=True)
class NoiseConfig:
    """Noise of a keypoint: the values before it is learned, how it is learned, and which measurements are rejected.

    A "ratio" is acceleration density * interval^3 / measurement variance. It compares how much a keypoint moves with
    how much its measurements scatter.
    """

    prior: float = 0.01  # standard deviation of a keypoint before any is measured, sizes
    prior_ratio: float = 1.0  # ratio before any is measured
    prior_updates: float = 4.0  # the prior counts as this many measurements
    memory_updates: float = 50.0  # the estimate forgets measurements older than about this many updates
    floor_px: float = 0.14  # least standard deviation of a measurement, px
    calm: float = 1.5  # the learned ratio is divided by this, which smooths a little more than the likeliest model
    least_ratio: float = 0.02  # lower limit of the ratio
    most_ratio: float = 1000.0  # upper limit of the ratio
    clip_sigma: float = 4.0  # larger second differences count as this many standard deviations
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
    """Which detection continues which track. Similarities are roughly 0 to 1.

    The similarity of two boxes is buffered IoU * height IoU (Hybrid-SORT, AAAI 2024) * sqrt(ratio of heights) *
    score^score_power, plus a term for the direction of motion, minus a term for a change of score.
    """

    low_score: float = 0.1  # detections below this score are ignored
    high_score: float = 0.51  # detections at or above this score take part in the first round of matching
    new_score: float = 0.7  # minimum score to start a track
    first_similarity: float = 0.077  # minimum similarity of a match in the first round
    second_similarity: float = 0.43  # minimum similarity in the second round: doubtful detections, recently seen tracks
    buffer: float = 0.14  # boxes grow by this fraction on every side before their overlap is taken (C-BIoU, WACV 2023)
    speed_buffer: float = 0.31  # additional growth per size/s of the track's speed
    score_power: float = 0.77  # exponent of the score in the first round
    low_score_power: float = 0.07  # exponent of the score in the second round
    heading_weight: float = 0.056  # weight of moving on in the observed direction (OC-SORT, CVPR 2023)
    heading_speed: float = 0.35  # speed from which the direction has its full weight, sizes/s
    score_weight: float = 0.1  # weight of a change of score (Hybrid-SORT, AAAI 2024)
    pose_weight: float = 0.4  # share of OKS in the similarity when track and detection have keypoints
    pose_similarity: float = 0.2  # minimum similarity of such a pair in any round
    default_sigma: float = 0.07  # OKS sigma of skeletons that publish none, until it is learned from the residuals
    max_detections: int = 1000  # at most this many detections are used per update, the best by score

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
    """When tracks are confirmed, published and deleted."""

    confirm_hits: int = 2  # detections that confirm a track; one is enough in the first update and after a time jump
    tentative_s: float = 0.0  # an unconfirmed track is deleted when it was not detected for longer than this
    coast_s: float = 0.15  # a confirmed track is published for this long after its last detection
    lost_s: float = 1.6  # a confirmed track can be recognised for this long after its last detection
    max_tracks: int = 2000  # no track is started beyond this number

    def __post_init__(self) -> None:
        _check_non_negative(self)
        _check_range(self, "confirm_hits", 1, 1000)
        _check_range(self, "max_tracks", 1, 1_000_000)


@dataclass(frozen=True, slots=True)
class CoastingConfig:
    """Motion of points that are not measured: keypoints follow their object's box, and both come to rest."""

    own_motion_s: float = 0.1  # time constant with which a keypoint's motion relative to its box dies out
    box_motion_s: float = 0.3  # time constant with which the published velocity of an unmeasured box dies out
    doubt: float = 2.0  # relative motion below sqrt(2 * doubt) standard deviations of its velocity is ignored
    check_s: float = 0.2  # interval at which each track measures how far its keypoints drift from a prediction
    growth: float = 1.55  # the variance of that drift grows with this power of time

    def __post_init__(self) -> None:
        _check_non_negative(self)
        for name in ("own_motion_s", "box_motion_s", "check_s"):
            _check_range(self, name, 1e-3, 1e3)


@dataclass(frozen=True, slots=True)
class SmoothingConfig:
    """How keypoints are smoothed. No mode uses later frames.

    mode:
        "fixed_lag"  Adaptive Kalman filter, one update late: `keypoints_TK2` is the estimate for the update before
                     (`Tracks.smoothing_lag_s`). When updates are more than `longest_lag_s` apart, it is "kalman".
        "kalman"     Adaptive Kalman filter at the time of the update: no lag, more jitter.
        "one_euro"   One-Euro filter with the last three settings.
        "raw"        The measurements.
    """

    mode: str = "fixed_lag"
    longest_lag_s: float = 0.0335  # longest delay of "fixed_lag"
    min_cutoff_hz: float = 0.3  # One-Euro: cut-off frequency at rest
    beta: float = 0.5  # One-Euro: increase of the cut-off frequency with speed, Hz per px/s
    derivative_cutoff_hz: float = 10.0  # One-Euro: cut-off frequency of the speed

    def __post_init__(self) -> None:
        allowed = ("fixed_lag", "kalman", "one_euro", "raw")
        if self.mode not in allowed:
            raise TrackerConfigError(
                f"SmoothingConfig.mode: got {self.mode!r}; allowed are {', '.join(allowed)}: choose one of them"
            )
        _check_non_negative(self)


@dataclass(frozen=True, slots=True)
class SmoothingGroup:
    """A different smoothing for some keypoints, for example the wrists."""

    keypoints: tuple[int, ...]  # indices of the keypoints
    smoothing: SmoothingConfig
    class_index: int | None = None  # the class that it applies to; None: every class


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
