"""What a track says while it is not measured, and how honest its covariances are."""

import numpy as np
import pytest
from numpy.typing import NDArray

from trackers import Detections, LifecycleConfig, Tracker, TrackerConfig, Tracks

BODY = np.stack((np.tile([0.0, 20.0, 40.0], 3), np.repeat([0.0, 50.0, 100.0], 3)), axis=1)
NOBODY = Detections.of(np.empty((0, 4)), keypoints=np.empty((0, 9, 2)))
HAND = 2
CONFIG = TrackerConfig(lifecycle=LifecycleConfig(coast_s=1.0))


def person(pose_K2: NDArray[np.float64], box: NDArray[np.float64] | None = None) -> Detections:
    low, high = pose_K2[3:].min(axis=0), pose_K2[3:].max(axis=0)
    boxes = np.concatenate((low, high))[None] if box is None else box[None]
    return Detections.of(boxes, keypoints=pose_K2[None])


def hide(tracker: Tracker, frames: range, rate: float = 30.0) -> list[Tracks]:
    return [tracker.update(NOBODY, frame / rate) for frame in frames]


def test_a_fast_hand_stops_near_its_body_while_it_coasts() -> None:
    tracker = Tracker(CONFIG)
    for frame in range(61):
        pose = BODY.copy()
        pose[HAND] += [
            30.0 * np.sin(2.0 * np.pi * frame / 30),
            0.0,
        ]  # 188 px/s when it is hidden; a body is 100 px long
        tracker.update(person(pose), frame / 30)
    hidden = hide(tracker, range(61, 73))
    last = hidden[-1].keypoints_predicted_TK2[0]
    assert np.linalg.norm(last[HAND] - pose[HAND]) < 30.0
    np.testing.assert_allclose(last[3:], BODY[3:], atol=1.0)


def test_coasting_keypoints_move_and_grow_with_their_box() -> None:
    tracker = Tracker(CONFIG)
    for frame in range(60):
        pose = 300.0 + (BODY - [20.0, 75.0]) * (1.0 + 0.01 * frame) + [3.0 * frame, 0.0]
        seen = tracker.update(person(pose), frame / 30)
    hidden = hide(tracker, range(60, 63))[-1]
    before, after = seen.boxes_T4[0], hidden.boxes_T4[0]
    assert after[0] - before[0] > 6.0
    assert after[3] - after[1] > before[3] - before[1] + 0.5
    share = (pose - before[:2]) / (before[2:] - before[:2])
    np.testing.assert_allclose(hidden.keypoints_predicted_TK2[0], after[:2] + share * (after[2:] - after[:2]), atol=1.0)


def test_one_hidden_keypoint_follows_the_box_that_is_still_measured() -> None:
    tracker = Tracker(CONFIG)
    for frame in range(60):
        pose = BODY + np.array([4.0 * frame, 0.0])
        shown = pose.copy()
        if frame >= 30:
            shown[HAND] = np.nan
        tracks = tracker.update(person(shown), frame / 30)
    assert not tracks.measured_TK[0, HAND]
    np.testing.assert_allclose(tracks.keypoints_predicted_TK2[0, HAND], pose[HAND], atol=2.0)


def test_covariance_grows_while_a_track_coasts_and_with_the_time_of_a_prediction() -> None:
    rng = np.random.default_rng(0)
    tracker = Tracker(CONFIG)
    for frame in range(60):
        tracks = tracker.update(person(BODY + rng.normal(0.0, 1.0, BODY.shape)), frame / 30)
    hidden = hide(tracker, range(60, 70))
    variances = [tracks.covariance_TK3[0, :, 0].mean() for tracks in (tracks, *hidden)]
    assert (np.diff(variances) > 0.0).all()
    ahead = tracker.predict_to(69 / 30 + 0.2)
    assert (ahead.covariance_TK3[0, :, 0] > hidden[-1].covariance_TK3[0, :, 0]).all()


@pytest.mark.parametrize("noise_px", [0.5, 4.0])
@pytest.mark.parametrize("speed_px", [0.5, 3.0], ids=["calm", "lively"])
def test_ninety_percent_ellipses_cover_the_truth_and_are_not_far_larger_than_the_errors(
    noise_px: float, speed_px: float
) -> None:
    """People whose limbs wander about, with other noises and speeds than the settings were tuned on."""
    rng = np.random.default_rng(0)
    measured_inside, coasting_inside, missed, claimed = [], [], [], []
    for _ in range(6):
        tracker = Tracker(CONFIG)
        offset, speed = np.zeros(BODY.shape), np.zeros(BODY.shape)
        for frame in range(120):
            speed = 0.95 * speed + 0.3 * rng.normal(0.0, speed_px, BODY.shape)
            offset = 0.98 * offset + speed
            pose = BODY + offset
            shown = frame % 30 < 24
            detections = person(pose + rng.normal(0.0, noise_px, pose.shape), np.array([0.0, 0, 40, 100]))
            tracks = tracker.update(detections if shown else NOBODY, frame / 30)
            if frame >= 20 and len(tracks):
                squared = np.square(pose - tracks.keypoints_predicted_TK2[0]).sum(axis=1)
                inside = squared <= 4.605 * tracks.covariance_TK3[0, :, 0]
                missed.append(np.sqrt(squared.mean()))
                claimed.append(np.sqrt(2.0 * tracks.covariance_TK3[0, :, 0].mean()))
                (measured_inside if shown else coasting_inside).append(inside.mean())
    assert np.mean(measured_inside) > 0.8
    assert np.mean(coasting_inside) > 0.8
    assert np.mean(claimed) < 3.0 * np.sqrt(np.mean(np.square(missed)))


@pytest.mark.parametrize("frames", [1, 2])
@pytest.mark.parametrize("then_hidden", [False, True])
def test_a_detection_that_straddles_two_people_stretches_no_skeleton(frames: int, then_hidden: bool) -> None:
    tracker = Tracker(CONFIG)
    left, right = BODY + 100.0, BODY + np.array([190.0, 100.0])
    both = [np.concatenate((pose.min(axis=0), pose.max(axis=0))) for pose in (left, right)]
    for frame in range(30):
        jitter = np.random.default_rng(frame).normal(0.0, 1.0, (2, *BODY.shape))
        tracker.update(Detections.of(both, keypoints=np.stack((left, right)) + jitter), frame / 30)
    straddling = left.copy()
    straddling[::2] = right[::2]
    union = np.concatenate((left.min(axis=0), right.max(axis=0)))
    for frame in range(30, 30 + frames):
        assert_near(tracker.update(Detections.of(union, keypoints=straddling[None]), frame / 30), left, right)
    for frame in range(30 + frames, 45):
        after = NOBODY if then_hidden else Detections.of(both, keypoints=np.stack((left, right)))
        assert_near(tracker.update(after, frame / 30), left, right)


def assert_near(tracks: Tracks, *poses: NDArray[np.float64]) -> None:
    """Every track is one of the poses, to a fifth of a body's length."""
    assert len(tracks) >= 1
    for keypoints in (tracks.keypoints_TK2, tracks.keypoints_predicted_TK2):
        for pose_K2 in keypoints:
            assert min(np.linalg.norm(pose_K2 - pose, axis=1).max() for pose in poses) < 20.0
