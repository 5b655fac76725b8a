"""Learned noise, gates, smoothing modes."""

import numpy as np
import pytest
from numpy.typing import NDArray

from trackers import Detections, SmoothingConfig, SmoothingGroup, Tracker, TrackerConfig, TrackerConfigError, Tracks

KEYPOINTS = 9
BODY = np.stack((np.tile([0.0, 20.0, 40.0], 3), np.repeat([0.0, 50.0, 100.0], 3)), axis=1) + 100.0


def follow(
    config: TrackerConfig, keypoints_FK2: NDArray[np.float64], rate: float = 30.0
) -> tuple[Tracker, list[Tracks]]:
    tracker = Tracker(config)
    box = np.array([[100.0, 100.0, 140.0, 200.0]])
    results = []
    for frame, keypoints in enumerate(keypoints_FK2):
        move = keypoints[0] - keypoints_FK2[0, 0]
        results.append(tracker.update(Detections.of(box + np.tile(move, 2), keypoints=keypoints[None]), frame / rate))
    return tracker, results


def noisy_still(noise_px: float, frames: int = 200, seed: int = 0) -> NDArray[np.float64]:
    result = BODY + np.random.default_rng(seed).normal(0.0, noise_px, (frames, KEYPOINTS, 2))
    result[:, 0] = BODY[0]
    return result


@pytest.mark.parametrize("noise_px", [1.0, 3.0])
def test_measurement_noise_is_learned(noise_px: float) -> None:
    tracker, _ = follow(TrackerConfig(), noisy_still(noise_px))
    learned = np.sqrt(np.median(tracker._keypoints.learner.noise_TK[0, 1:]))
    assert 0.75 * noise_px < learned < 1.25 * noise_px


def test_covariance_matches_the_error_that_is_made() -> None:
    _, results = follow(TrackerConfig(), noisy_still(2.0))
    errors = np.stack([r.keypoints_predicted_TK2[0, 1:] for r in results[50:]]) - BODY[1:]
    claimed = np.stack([r.covariance_TK3[0, 1:, 0] for r in results[50:]]).mean()
    assert 0.3 < np.square(errors).mean() / claimed < 2.0


def test_smoothing_is_nearer_the_truth_and_calmer_than_raw() -> None:
    _, results = follow(TrackerConfig(), noisy_still(2.0))
    raw = np.stack([r.keypoints_raw_TK2[0, 1:] for r in results[30:]])
    smooth = np.stack([r.keypoints_TK2[0, 1:] for r in results[30:]])
    assert np.abs(smooth - BODY[1:]).mean() < 0.7 * np.abs(raw - BODY[1:]).mean()
    assert np.abs(np.diff(smooth, n=2, axis=0)).mean() < 0.4 * np.abs(np.diff(raw, n=2, axis=0)).mean()


def test_fixed_lag_is_for_the_time_that_it_states() -> None:
    moving = BODY + np.arange(60)[:, None, None] * np.array([3.0, 1.0])
    _, results = follow(TrackerConfig(), moving)
    assert results[-1].smoothing_lag_s == pytest.approx(1 / 30)
    np.testing.assert_allclose(results[-1].keypoints_TK2[0], moving[-2], atol=0.05)
    np.testing.assert_allclose(results[-1].keypoints_predicted_TK2[0], moving[-1], atol=0.05)


def test_fixed_lag_gives_way_to_the_causal_filter_at_low_rates() -> None:
    moving = BODY + np.arange(60)[:, None, None] * np.array([3.0, 1.0])
    _, results = follow(TrackerConfig(), moving, rate=10.0)
    assert results[-1].smoothing_lag_s == 0.0
    np.testing.assert_allclose(results[-1].keypoints_TK2[0], moving[-1], atol=0.05)


def test_outlier_on_one_keypoint_moves_nothing() -> None:
    clean = np.broadcast_to(BODY, (40, KEYPOINTS, 2)).copy()
    wild = clean.copy()
    wild[30, 4] += 500.0
    _, expected = follow(TrackerConfig(), clean)
    _, got = follow(TrackerConfig(), wild)
    for frame in (30, 31, 39):
        np.testing.assert_allclose(got[frame].keypoints_TK2, expected[frame].keypoints_TK2, atol=1e-6)
    assert not got[30].measured_TK[0, 4]
    assert got[30].measured_TK[0, :4].all()
    assert got[30].keypoints_raw_TK2[0, 4, 0] == pytest.approx(BODY[4, 0] + 500.0)


def test_a_keypoint_that_stays_away_is_believed() -> None:
    jumped = np.broadcast_to(BODY, (40, KEYPOINTS, 2)).copy()
    jumped[20:, 4] += 500.0
    _, results = follow(TrackerConfig(), jumped)
    np.testing.assert_allclose(results[22].keypoints_TK2[0, 4], BODY[4] + 500.0, atol=1e-6)


@pytest.mark.parametrize("mode", ["raw", "kalman", "one_euro", "fixed_lag"])
def test_every_mode_follows_a_still_pose_exactly(mode: str) -> None:
    still = np.broadcast_to(BODY, (30, KEYPOINTS, 2))
    _, results = follow(TrackerConfig(smoothing=SmoothingConfig(mode=mode)), still)
    np.testing.assert_allclose(results[-1].keypoints_TK2[0], BODY, atol=1e-9)


def test_a_group_of_keypoints_has_its_own_smoothing() -> None:
    group = SmoothingGroup(keypoints=(2, 3), smoothing=SmoothingConfig(mode="raw"))
    signal = noisy_still(2.0)
    _, results = follow(TrackerConfig(smoothing_groups=(group,)), signal)
    _, plain = follow(TrackerConfig(), signal)
    np.testing.assert_array_equal(results[-1].keypoints_TK2[0, 2:4], signal[-1, 2:4])
    np.testing.assert_array_equal(results[-1].keypoints_TK2[0, 4:], plain[-1].keypoints_TK2[0, 4:])


def test_one_euro_equals_its_paper() -> None:
    """Casiez et al. 2012, algorithm 1, with the speed taken from the filtered value."""
    config = SmoothingConfig(mode="one_euro", min_cutoff_hz=1.2, beta=0.02, derivative_cutoff_hz=2.0)
    signal = noisy_still(2.0, frames=40)
    _, results = follow(TrackerConfig(smoothing=config), signal)
    value, speed, dt = signal[0], np.zeros((KEYPOINTS, 2)), 1 / 30

    def blend(cutoff: float | NDArray[np.float64]) -> float | NDArray[np.float64]:
        return 1.0 / (1.0 + 1.0 / (2.0 * np.pi * cutoff * dt))

    for measured in signal[1:]:
        speed = speed + blend(2.0) * ((measured - value) / dt - speed)
        value = value + blend(1.2 + 0.02 * np.abs(speed)) * (measured - value)
    np.testing.assert_allclose(results[-1].keypoints_TK2[0], value, atol=1e-9)


def test_an_unknown_mode_is_refused_with_the_allowed_ones() -> None:
    with pytest.raises(TrackerConfigError, match="fixed_lag, kalman, one_euro, raw"):
        SmoothingConfig(mode="median")
