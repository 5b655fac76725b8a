"""Jitter, lag and position error of smoothing: our modes, One-Euro, and Savitzky-Golay, which also uses later frames.

Jitter: mean length of the second difference. Position error: mean distance from the truth at the time that an estimate
is for (a fixed-lag estimate states its lag). Lag: the shift in time, in motion, that minimises the position error.

Legend: S signals (networks or persons), F frames, K keypoints.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from scipy.signal import savgol_filter

from benchmarks.tracking.data import Floats, PoseSequence, bonn_sequences, pose_sequence, shared_folder
from trackers import NoiseConfig, SmoothingConfig, TrackerConfig
from trackers.kalman import ACCELERATION, PP, VV, ConstantVelocityFilters
from trackers.keypoints import Keypoints

ONE_EURO_TUNED = SmoothingConfig(mode="one_euro", min_cutoff_hz=0.3, beta=0.5, derivative_cutoff_hz=10.0)
ONE_EURO_DEFAULT = SmoothingConfig(mode="one_euro", min_cutoff_hz=1.0, beta=0.007, derivative_cutoff_hz=1.0)
_FLY_FPS = 60.0  # not stated with the data; at 60 One-Euro gives the baseline's figures
_WARM_UP = 10  # frames not judged


@dataclass(frozen=True, slots=True)
class Stream:
    """Noisy signals and the true ones."""

    name: str
    times_s_F: Floats
    noisy_SFK2: Floats
    truth_SFK2: Floats  # of networks: their median, a pseudo-truth

    @property
    def size_px(self) -> float:
        """Median of the longer side of the keypoints' extent."""
        extent = np.nanmax(self.truth_SFK2, axis=2) - np.nanmin(self.truth_SFK2, axis=2)
        return float(np.nanmedian(extent.max(axis=-1)))


@dataclass(frozen=True, slots=True)
class Result:
    """Ratios to the raw signal, and the lag."""

    error: float
    jitter: float
    lag_ms: float


def network_streams() -> Iterator[Stream]:
    """`noise_streams/`: several networks on one video."""
    for name, file in (
        ("paw_left", "eks_ibl_paw_left"),
        ("mirror_mouse", "eks_mirror_mouse"),
        ("fly A", "eks_fly_camA"),
    ):
        with np.load(shared_folder() / "noise_streams" / f"{file}.npz", allow_pickle=False) as content:
            points = content["predictions"][..., :2].astype(np.float64)
            fps = float(content["fps"]) or _FLY_FPS
            times = content["timestamps"] if "timestamps" in content.files else np.arange(points.shape[1]) / fps
        yield Stream(name, times - times[0], points, np.broadcast_to(np.median(points, axis=0), points.shape))


def truth_streams() -> Iterator[Stream]:
    """True keypoints with added Gaussian noise: sleap_clip with 2 px, each Bonn sequence with 10 px."""
    tracks = shared_folder() / "tracks"
    clip = pose_sequence(tracks / "sleap_clip_gt.json.gz", 25.0)
    yield _noisy(clip, 2.0, "sleap_clip + 2 px")
    for sequence in bonn_sequences():
        yield _noisy(sequence, 10.0, f"bonn {sequence.name} + 10 px")


def detector_stream() -> Stream:
    """sleap_clip with its own poor detector: two of the keypoints."""
    tracks = shared_folder() / "tracks"
    truth = _as_array(pose_sequence(tracks / "sleap_clip_gt.json.gz", 25.0))
    found = _as_array(pose_sequence(tracks / "sleap_clip_pred2node.json.gz", 25.0))
    return Stream("sleap_clip, its own detector", np.arange(truth.shape[1]) / 25.0, found, truth[:, :, :2])


def _noisy(sequence: PoseSequence, noise_px: float, name: str) -> Stream:
    truth = _as_array(sequence)
    noise = np.random.default_rng(0).normal(0.0, noise_px, truth.shape)
    return Stream(name, np.arange(truth.shape[1]) / sequence.fps, truth + noise, truth)


def _as_array(sequence: PoseSequence) -> Floats:
    known = np.unique(np.concatenate(sequence.ids))
    result = np.full((len(known), len(sequence.ids), sequence.keypoints[0].shape[1], 2), np.nan)
    for frame, (ids, keypoints) in enumerate(zip(sequence.ids, sequence.keypoints, strict=True)):
        result[np.searchsorted(known, ids), frame] = keypoints
    return result


def smooth(stream: Stream, config: TrackerConfig) -> Floats:
    """Run the tracker's own filters over the signals; row f of the result is the estimate for time f."""
    signals, frames, count = stream.noisy_SFK2.shape[:3]
    rows = slice(None)
    keypoints, filters = Keypoints(config), ConstantVelocityFilters(2)
    length_S1 = np.full((signals, 1), stream.size_px)
    interval_s = float(np.median(np.diff(stream.times_s_F)))
    first = stream.noisy_SFK2[:, 0]
    keypoints.widen(count, np.empty((0, 1)), 0.0, interval_s)
    keypoints.append(first, np.square(length_S1), 0.0, interval_s)
    box = np.zeros((signals, 2, 2))
    filters = ConstantVelocityFilters(2 + count)
    variance = np.zeros((5, signals, 2 + count))
    variance[PP, :, 2:], variance[VV, :, 2:] = keypoints.learner.noise_TK, keypoints.learner.speed_variance()
    variance[ACCELERATION, :, 2:] = keypoints.learner.acceleration_TK
    variance[PP, :, :2] = 1.0
    position = np.concatenate((box, first), axis=1)
    filters.append(position, np.zeros_like(position), variance)
    result = np.full_like(stream.noisy_SFK2, np.nan)
    result[:, 0] = first
    for frame in range(1, frames):
        time_s = float(stream.times_s_F[frame])
        step_s = time_s - float(stream.times_s_F[frame - 1])
        measured = stream.noisy_SFK2[:, frame]
        filters.predict(step_s)
        residual = measured - filters.position_TP2[:, 2:]
        reach_S1 = (config.noise.gate_size + config.noise.gate_speed * step_s) * length_S1
        correction = keypoints.sort_out(residual, filters.variance_5TP[PP, :, 2:], rows, measured, reach_S1)
        noise = np.concatenate((np.ones((signals, 2)), correction.noise_MK), axis=1)
        valid = np.concatenate((np.zeros((signals, 2), np.bool_), correction.accepted_MK), axis=1)
        filters.update(rows, np.concatenate((box, measured), axis=1), noise, valid)
        keypoints.accept(filters, rows, measured, correction, time_s)
        estimates = (measured, filters.position_TP2[:, 2:], filters.lagged_TP2[:, 2:])
        smoothed = keypoints.smoothing.smoothed(np.zeros(signals, np.int64), rows, *estimates, step_s)
        lagging = keypoints.smoothing.lag_s(config.smoothing, step_s) > 0.0
        result[:, frame - 1 if lagging else frame] = smoothed
    if np.isnan(result[:, -1]).all():
        result[:, -1] = filters.position_TP2[:, 2:]
    return result


def judge(stream: Stream, smoothed_SFK2: Floats, delay_s: float) -> Result:
    """Compare with the truth and the raw signal.

    Args:
        delay_s: delay of the estimates after the time that they are for.
    """
    raw, truth = stream.noisy_SFK2, stream.truth_SFK2
    judged = ~np.isnan(truth[..., 0]) & ~np.isnan(raw[..., 0]) & ~np.isnan(smoothed_SFK2[..., 0])
    judged[:, :_WARM_UP] = False
    error = _distance(smoothed_SFK2, truth)[judged].mean() / _distance(raw, truth)[judged].mean()
    jitter = _jitter(smoothed_SFK2) / _jitter(raw)
    return Result(float(error), float(jitter), 1000.0 * (_lag_s(stream, smoothed_SFK2) + delay_s))


def _distance(first: Floats, second: Floats) -> Floats:
    return np.asarray(np.linalg.norm(first - second, axis=-1))


def _jitter(points_SFK2: Floats) -> float:
    return float(np.nanmean(np.linalg.norm(np.diff(points_SFK2[:, _WARM_UP:], n=2, axis=1), axis=-1)))


def _lag_s(stream: Stream, smoothed_SFK2: Floats) -> float:
    times, truth = stream.times_s_F, stream.truth_SFK2
    interval_s = float(np.median(np.diff(times)))
    speed_SFK = np.linalg.norm(np.gradient(truth, axis=1), axis=-1)
    moving = speed_SFK > np.nanmedian(speed_SFK)
    moving[:, :30], moving[:, -30:] = False, False
    shifts = np.arange(-2.0, 8.01, 0.1)
    errors = []
    for shift in shifts:
        low = np.clip(np.arange(len(times)) - shift, 0, len(times) - 1.001)
        index = np.floor(low).astype(np.int64)
        part = (low - index)[None, :, None, None]
        moved = truth[:, index] * (1.0 - part) + truth[:, index + 1] * part
        errors.append(np.nanmean(_distance(smoothed_SFK2, moved)[moving]) if moving.any() else 0.0)
    return float(shifts[int(np.nanargmin(errors))] * interval_s)


def savitzky_golay(stream: Stream) -> tuple[Floats, float]:
    """The reference, which also uses later frames."""
    return np.asarray(savgol_filter(stream.noisy_SFK2, 7, 2, axis=1)), 0.0


def methods(config: TrackerConfig) -> dict[str, Callable[[Stream], tuple[Floats, float]]]:
    """Name -> (smoothed signals, delay in s)."""

    def ours(smoothing: SmoothingConfig) -> Callable[[Stream], tuple[Floats, float]]:
        def run(stream: Stream) -> tuple[Floats, float]:
            interval_s = float(np.median(np.diff(stream.times_s_F)))
            own = replace(config, smoothing=smoothing)
            if smoothing.mode == "one_euro":  # the plain peer has no gate
                own = replace(own, noise=replace(config.noise, gate_sigma=1e6))
            return smooth(stream, own), Keypoints(own).smoothing.lag_s(smoothing, interval_s)

        return run

    return {
        "ours (default: fixed_lag)": ours(config.smoothing),
        "ours, kalman": ours(SmoothingConfig(mode="kalman")),
        "One-Euro tuned": ours(ONE_EURO_TUNED),
        "One-Euro default": ours(ONE_EURO_DEFAULT),
        "Savitzky-Golay 7/2, sees the future": savitzky_golay,
    }


def smoothing_scores(config: TrackerConfig) -> Iterator[tuple[str, str, Result]]:
    """Yield stream, method, result."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # means over absent persons
        for stream in (*network_streams(), *truth_streams(), detector_stream()):
            for name, method in methods(config).items():
                if method is savitzky_golay and np.isnan(stream.noisy_SFK2).any():
                    continue  # it knows no gaps
                smoothed, delay_s = method(stream)
                yield stream.name, name, judge(stream, smoothed, delay_s)


def trade_off(config: TrackerConfig) -> dict[str, dict[str, list[Result]]]:
    """Stream -> family -> results along its one free setting, for the plot of jitter against position error."""
    result: dict[str, dict[str, list[Result]]] = {}
    for stream in network_streams():
        interval_s = float(np.median(np.diff(stream.times_s_F)))
        families: dict[str, list[Result]] = {"ours (fixed_lag)": [], "ours (kalman)": [], "One-Euro": []}
        for calm in (0.1, 0.3, 0.7, 1.5, 3.0, 8.0, 20.0):
            noise: NoiseConfig = replace(config.noise, calm=calm)
            for mode in ("fixed_lag", "kalman"):
                own = replace(config, noise=noise, smoothing=SmoothingConfig(mode=mode))
                delay_s = Keypoints(own).smoothing.lag_s(own.smoothing, interval_s)
                families[f"ours ({mode})"].append(judge(stream, smooth(stream, own), delay_s))
        for beta in (2.0, 1.0, 0.5, 0.2, 0.1, 0.05, 0.02):
            plain = replace(config.noise, gate_sigma=1e6)
            own = replace(config, noise=plain, smoothing=replace(ONE_EURO_TUNED, beta=beta))
            families["One-Euro"].append(judge(stream, smooth(stream, own), 0.0))
        result[stream.name] = families
    return result
