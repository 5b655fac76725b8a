"""Identities, lifecycle, time."""

import numpy as np
import pytest
from numpy.typing import NDArray

from trackers import Detections, LifecycleConfig, Tracker, TrackerConfig, TrackState

SIZE = np.array([40.0, 100.0])


def boxes_at(centres_N2: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.concatenate((centres_N2 - SIZE / 2, centres_N2 + SIZE / 2), axis=1)


def walkers(time_s: float) -> NDArray[np.float64]:
    """Two people who cross at 2.5 s, one nearer than the other."""
    return np.array([[100.0 + 80.0 * time_s, 200.0], [500.0 - 80.0 * time_s, 235.0]])


@pytest.mark.parametrize("rate", [30.0, 15.0, 7.5])
def test_identities_survive_a_crossing_at_any_rate(rate: float) -> None:
    tracker = Tracker()
    for frame in range(int(5 * rate)):
        tracks = tracker.update(Detections.of(boxes_at(walkers(frame / rate))), frame / rate)
    assert tracks.ids_T.tolist() == [1, 2]
    np.testing.assert_allclose(tracks.boxes_T4, boxes_at(walkers(frame / rate)))


def test_identities_survive_uneven_time_steps() -> None:
    rng = np.random.default_rng(0)
    times = np.cumsum(rng.uniform(0.01, 0.2, 60))
    tracker = Tracker()
    for time_s in times:
        tracks = tracker.update(Detections.of(boxes_at(walkers(float(time_s)))), float(time_s))
    assert tracks.ids_T.tolist() == [1, 2]


def test_identity_returns_after_an_occlusion_of_a_second() -> None:
    tracker = Tracker()
    for frame in range(90):
        hidden = 30 <= frame < 60
        centres = np.array([[100.0 + 2.0 * frame, 200.0]])[: 0 if hidden else 1]
        tracks = tracker.update(Detections.of(boxes_at(centres)), frame / 30)
        if frame == 32:
            assert tracks[0].state is TrackState.COASTING
            assert not tracks[0].measured
            np.testing.assert_allclose(tracks[0].box_xyxy, boxes_at(np.array([[164.0, 200.0]]))[0], atol=2.0)
        if frame == 50:
            assert len(tracks) == 0
    assert tracks.ids_T.tolist() == [1]


def test_identity_is_forgotten_after_lost_s_and_never_used_again() -> None:
    tracker = Tracker(TrackerConfig(lifecycle=LifecycleConfig(lost_s=0.5)))
    still = Detections.of(boxes_at(np.array([[100.0, 100.0]])))
    nothing = Detections.of(np.empty((0, 4)))
    tracker.update(still, 0.0)
    tracker.update(nothing, 1.0)
    for time_s in (1.1, 1.2, 1.3):
        tracks = tracker.update(still, time_s)
    assert tracks.ids_T.tolist() == [2]
    tracker.reset()
    assert tracker.update(still, 0.0).ids_T.tolist() == [3]


def test_a_single_false_alarm_is_never_published() -> None:
    tracker = Tracker()
    steady = boxes_at(np.array([[100.0, 100.0]]))
    alarm = boxes_at(np.array([[900.0, 500.0]]))
    for frame in range(10):
        boxes = np.concatenate((steady, alarm)) if frame == 5 else steady
        assert tracker.update(Detections.of(boxes), frame / 30).ids_T.tolist() == [1]


def test_classes_never_mix() -> None:
    tracker = Tracker()
    box = boxes_at(np.array([[100.0, 100.0]]))
    for frame in range(6):
        tracks = tracker.update(Detections.of(np.repeat(box, 2, axis=0), classes=[0, 1]), frame / 30)
    assert tracks.classes_T.tolist() == [0, 1]
    swapped = tracker.update(Detections.of(box, classes=[1]), 6 / 30)
    assert [t.id for t in swapped if t.measured] == [2]


def test_doubtful_detections_continue_a_track_but_found_none() -> None:
    tracker = Tracker()
    box = boxes_at(np.array([[100.0, 100.0]]))
    tracker.update(Detections.of(box, scores=[0.9]), 0.0)
    for frame in range(1, 20):
        tracks = tracker.update(Detections.of(box, scores=[0.2]), frame / 30)
        assert tracks.measured_T.tolist() == [True]
    stranger = Tracker()
    for frame in range(20):
        assert len(stranger.update(Detections.of(box, scores=[0.2]), frame / 30)) == 0


def test_the_same_input_gives_the_same_output() -> None:
    def run() -> list[tuple[list[int], list[float]]]:
        rng = np.random.default_rng(3)
        tracker, output = Tracker(), []
        for frame in range(60):
            centres = rng.uniform(0.0, 400.0, (8, 2))
            keypoints = centres[:, None] + rng.normal(0.0, 10.0, (8, 5, 2))
            tracks = tracker.update(Detections.of(boxes_at(centres), keypoints=keypoints), frame / 30)
            output.append((tracks.ids_T.tolist(), tracks.boxes_T4.ravel().tolist()))
        return output

    assert run() == run()


def test_prompt_change_keeps_ids_of_classes_that_stay_and_restarts_keypoints() -> None:
    tracker = Tracker()
    boxes = boxes_at(np.array([[100.0, 100.0], [400.0, 100.0]]))
    keypoints = np.repeat(boxes[:, None, :2], 3, axis=1) + np.arange(3)[None, :, None] * 10.0
    for frame in range(5):
        tracker.update(Detections.of(boxes, classes=[0, 1], keypoints=keypoints), frame / 30)
    tracker.set_classes({1: 0}, {0: np.full(4, 0.05)})
    fresh = np.repeat(boxes[1:, None, :2], 4, axis=1) + 70.0
    tracks = tracker.update(Detections.of(boxes[1:], keypoints=fresh), 5 / 30)
    assert [(t.id, t.class_index) for t in tracks] == [(2, 0)]
    np.testing.assert_allclose(tracks[0].keypoints_K2, fresh[0])


def test_keypoints_without_boxes_are_tracked() -> None:
    tracker = Tracker()
    pose = np.stack((np.linspace(0, 40, 9), np.linspace(0, 100, 9)), axis=1)
    for frame in range(20):
        keypoints = np.stack((pose + frame * 2.0, pose + np.array([300.0 - frame * 2.0, 0.0])))
        tracks = tracker.update(Detections.of(np.full((2, 4), np.nan), keypoints=keypoints), frame / 30)
    assert tracks.ids_T.tolist() == [1, 2]


def test_detections_with_and_without_keypoints_may_alternate() -> None:
    tracker = Tracker()
    boxes = boxes_at(np.array([[100.0, 100.0]]))
    keypoints = np.array([[[90.0, 80.0], [110.0, 120.0]]])
    for frame in range(20):
        given = keypoints if frame % 2 else None
        tracks = tracker.update(Detections.of(boxes, keypoints=given), frame / 30)
    assert tracks.ids_T.tolist() == [1]
    np.testing.assert_allclose(tracks[0].keypoints_K2, keypoints[0], atol=1e-6)


def test_predict_to_moves_by_the_velocity_and_changes_nothing() -> None:
    tracker = Tracker()
    for frame in range(60):
        centre = np.array([[100.0 + 3.0 * frame, 100.0]])
        tracks = tracker.update(Detections.of(boxes_at(centre), keypoints=centre[:, None]), frame / 30)
    ahead = tracker.predict_to(59 / 30 + 0.1)
    np.testing.assert_allclose(
        ahead.keypoints_predicted_TK2, tracks.keypoints_predicted_TK2 + 0.1 * tracks.velocity_TK2, atol=0.02
    )
    assert (ahead.covariance_TK3[..., 0] > tracks.covariance_TK3[..., 0]).all()
    np.testing.assert_array_equal(tracker.predict_to(0.0).keypoints_predicted_TK2, tracks.keypoints_predicted_TK2)


def test_published_arrays_are_not_changed_by_later_updates() -> None:
    tracker = Tracker()
    results = []
    for frame in range(5):
        centre = np.array([[100.0 + 3.0 * frame, 100.0]])
        tracks = tracker.update(Detections.of(boxes_at(centre), keypoints=centre[:, None]), frame / 30)
        results.append((tracks, tracks.boxes_T4.copy(), tracks.keypoints_TK2.copy(), tracks.velocity_TK2.copy()))
    for tracks, boxes, keypoints, velocity in results:
        np.testing.assert_array_equal(tracks.boxes_T4, boxes)
        np.testing.assert_array_equal(tracks.keypoints_TK2, keypoints)
        np.testing.assert_array_equal(tracks.velocity_TK2, velocity)


def test_sigmas_are_learned_where_none_are_published() -> None:
    rng = np.random.default_rng(0)
    published, learning = Tracker(sigmas={0: np.full(4, 0.05)}), Tracker()
    pose = np.array([[80.0, 60.0], [120.0, 60.0], [80.0, 140.0], [120.0, 140.0]])
    spread = np.array([[0.5], [0.5], [8.0], [8.0]])
    for frame in range(400):
        keypoints = pose + rng.normal(0.0, 1.0, (1, 4, 2)) * spread
        for tracker in (published, learning):
            tracker.update(Detections.of(boxes_at(np.array([[100.0, 100.0]])), keypoints=keypoints), frame / 30)
    classes = np.zeros(1, np.int64)
    np.testing.assert_array_equal(published._sigmas.of(classes, 4), np.full((1, 4), 0.05))
    learned = learning._sigmas.of(classes, 4)[0]
    assert learned[:2].max() < 0.06 < learned[2:].min()
