"""Still pictures: a track for every detection, at once."""

import math

import numpy as np
import pytest

from trackers import Detections, StillTracker, TrackState

BOXES = np.array([[10.0, 10.0, 50.0, 110.0], [200.0, 10.0, 240.0, 110.0]])
POSES = np.array([[[20.0, 30.0], [math.nan, math.nan]], [[210.0, 30.0], [220.0, 90.0]]])


def test_every_detection_of_a_still_is_a_confirmed_track_with_its_own_values() -> None:
    tracks = StillTracker().update(Detections.of(BOXES, scores=[0.9, 0.4], classes=[1, 0], keypoints=POSES))
    assert tracks.ids_T.tolist() == [1, 2]
    assert tracks.classes_T.tolist() == [1, 0]
    assert tracks.scores_T.tolist() == [0.9, 0.4]
    assert tracks.detection_T.tolist() == [0, 1]
    assert {track.state for track in tracks} == {TrackState.CONFIRMED}
    np.testing.assert_array_equal(tracks.boxes_T4, BOXES)
    for points in (tracks.keypoints_raw_TK2, tracks.keypoints_TK2, tracks.keypoints_predicted_TK2):
        np.testing.assert_array_equal(points, POSES)
    assert tracks.measured_TK.tolist() == [[True, False], [True, True]]


def test_a_still_claims_no_velocity_and_no_covariance() -> None:
    tracks = StillTracker().update(Detections.of(BOXES, keypoints=POSES))
    assert np.isnan(tracks.velocity_TK2).all()
    assert np.isnan(tracks.covariance_TK3).all()


def test_ids_of_stills_are_never_used_again() -> None:
    tracker = StillTracker()
    seen = [tracker.update(Detections.of(BOXES), time_s).ids_T.tolist() for time_s in (0.0, 1.0, 0.5)]
    tracker.reset()
    tracker.set_classes({0: 0}, {})
    assert [*seen, tracker.update(Detections.of(BOXES), 0.0).ids_T.tolist()] == [[1, 2], [3, 4], [5, 6], [7, 8]]


def test_doubtful_and_invalid_detections_of_a_still_are_dropped() -> None:
    boxes = np.concatenate((BOXES, [[0.0, 0.0, math.nan, 10.0]]))
    tracks = StillTracker(score_threshold=0.5).update(Detections.of(boxes, scores=[0.5, 0.6, 0.9]))
    assert tracks.detection_T.tolist() == [1]


def test_a_prediction_of_a_still_is_its_last_update() -> None:
    tracker = StillTracker()
    assert len(tracker.predict_to(1.0)) == 0
    tracks = tracker.update(Detections.of(BOXES, keypoints=POSES))
    assert tracker.predict_to(10.0) is tracks


def test_published_arrays_are_read_only() -> None:
    tracks = StillTracker().update(Detections.of(BOXES, keypoints=POSES))
    with pytest.raises(ValueError, match="read-only"):
        tracks.boxes_T4[0, 0] = 1.0
