"""Whatever comes in: no exception, no NaN where a value is due, no unbounded growth."""

import gc
import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from trackers import Detections, LifecycleConfig, Tracker, TrackerConfig, TrackerConfigError, TrackerInputError, Tracks
from trackers.config import AssociationConfig

SIZE = np.array([30.0, 60.0])
BOX = np.array([[10.0, 10.0, 50.0, 110.0]])
VALUES = st.one_of(st.floats(-2000.0, 2000.0), st.sampled_from([math.nan, math.inf, -math.inf, 0.0, 1e300, -1e300]))
TIMES = st.one_of(st.floats(0.0, 10.0), st.sampled_from([math.nan, math.inf, -math.inf, -5.0, 1e12, 0.0]))


def check(tracks: Tracks) -> None:
    assert np.isfinite(tracks.boxes_T4).all()
    assert (tracks.boxes_T4[:, 2:] >= tracks.boxes_T4[:, :2]).all()
    assert np.isfinite(tracks.scores_T).all()
    assert np.isfinite(tracks.age_s_T).all()
    assert math.isfinite(tracks.time_s)
    assert len(set(tracks.ids_T.tolist())) == len(tracks)
    measured = tracks.measured_TK
    for values in (tracks.keypoints_TK2, tracks.keypoints_predicted_TK2, tracks.velocity_TK2, tracks.covariance_TK3):
        assert np.isfinite(values[measured]).all()
    assert (tracks.covariance_TK3[measured][:, [0, 2]] >= 0.0).all()


@st.composite
def frames(draw: st.DrawFn) -> list[tuple[Detections, float]]:
    result = []
    for _ in range(draw(st.integers(1, 6))):
        count, keypoints = draw(st.integers(0, 4)), draw(st.integers(0, 3))
        result.append(
            (
                Detections(
                    draw(arrays(np.float64, (count, 4), elements=VALUES)),
                    draw(arrays(np.float64, (count,), elements=st.one_of(st.floats(0.0, 1.0), VALUES))),
                    draw(arrays(np.int64, (count,), elements=st.integers(-1, 2))),
                    draw(arrays(np.float64, (count, keypoints, 2), elements=VALUES)) if keypoints else None,
                ),
                draw(TIMES),
            )
        )
    return result


@settings(max_examples=150, deadline=None)
@given(frames())
def test_anything_gives_finite_tracks(sequence: list[tuple[Detections, float]]) -> None:
    tracker = Tracker(TrackerConfig(lifecycle=LifecycleConfig(confirm_hits=1)))
    seen: set[int] = set()
    for detections, time_s in sequence:
        tracks = tracker.update(detections, time_s)
        check(tracks)
        check(tracker.predict_to(time_s))
        assert all(i in seen or i > max(seen, default=0) for i in tracks.ids_T.tolist())
        seen |= set(tracks.ids_T.tolist())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(0.0, 300.0), st.floats(0.0, 300.0)), min_size=1, max_size=8), st.integers(0, 1000))
def test_output_does_not_depend_on_the_order_of_detections(corners: list[tuple[float, float]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    corner_N2 = np.array(corners)
    distinct = np.unique(corner_N2.round(), axis=0)
    boxes = np.concatenate((distinct, distinct + SIZE), axis=1)
    scores = rng.permutation(np.linspace(0.75, 1.0, len(boxes)))  # all different: no ties
    one, other = Tracker(), Tracker()
    for frame in range(4):
        order = rng.permutation(len(boxes))
        first = one.update(Detections.of(boxes + frame, scores), frame / 30)
        second = other.update(Detections.of(boxes[order] + frame, scores[order]), frame / 30)
        assert sorted(map(tuple, first.boxes_T4)) == sorted(map(tuple, second.boxes_T4))


def test_empty_frames_end_tracks_in_time_and_nothing_else() -> None:
    tracker = Tracker()
    tracker.update(Detections.of(BOX), 0.0)
    for frame in range(1, 100):
        check(tracker.update(Detections.of(np.empty((0, 4))), frame / 30))
    assert len(tracker._table) == 0


@pytest.mark.parametrize(
    "box",
    [
        [math.nan, 0, 10, 10],
        [0, 0, math.inf, 10],
        [50, 10, 10, 110],
        [10, 10, 10, 110],
        [0, 0, 1e9, 1e9],
    ],
    ids=["nan", "infinite", "negative", "zero", "huge"],
)
def test_an_invalid_box_is_no_detection(box: list[float]) -> None:
    tracker = Tracker()
    for frame in range(3):
        tracks = tracker.update(Detections.of(np.concatenate((BOX, [box]))), frame / 30)
        check(tracks)
    assert tracks.ids_T.tolist() == [1]
    assert tracks.detection_T.tolist() == [0]


def test_time_that_stands_still_is_no_step() -> None:
    tracker = Tracker()
    for _ in range(5):
        tracks = tracker.update(Detections.of(BOX), 1.0)
        check(tracks)
    assert tracks.ids_T.tolist() == [1]
    assert tracks[0].age_s == 0.0


@pytest.mark.parametrize("reset_to", [0.0, -1e6, math.nan])
def test_identity_survives_a_clock_that_jumps_back(reset_to: float) -> None:
    tracker = Tracker()
    for frame in range(30):
        tracker.update(Detections.of(BOX + frame * 2.0), 100.0 + frame / 30)
    for frame in range(30, 60):
        tracks = tracker.update(Detections.of(BOX + frame * 2.0), reset_to + (frame - 30) / 30)
        check(tracks)
    assert tracks.ids_T.tolist() == [1]
    assert tracks[0].age_s == pytest.approx(59 / 30, abs=0.01)


@pytest.mark.parametrize("jump_s", [2.0, 1e9])
def test_a_jump_ahead_ends_tracks(jump_s: float) -> None:
    """The object stands where it stood, so that nothing but the time tells the tracks apart."""
    tracker = Tracker()
    for frame in range(5):
        assert tracker.update(Detections.of(BOX), frame / 30).ids_T.tolist() == [1]
    for frame in range(5, 8):
        tracks = tracker.update(Detections.of(BOX), jump_s + frame / 30)
        check(tracks)
        assert 1 not in tracks.ids_T.tolist()
    assert tracks.ids_T.tolist() == [2]


@pytest.mark.parametrize("odd_step_s", [0.0, 1e-9, 1e-6, 1e-3, 1.0])
def test_one_odd_time_step_leaves_speeds_as_they_were(odd_step_s: float) -> None:
    """A walker of 90 px/s whose times are true; one step is much shorter or longer than the others."""
    tracker, time_s = Tracker(), 0.0
    for frame in range(60):
        time_s += odd_step_s if frame == 40 else 1 / 30
        move = np.array([90.0 * time_s, 0.0])
        pose = BOX[0].reshape(2, 2) + move + np.random.default_rng(frame).normal(0.0, 0.3, (2, 2))
        tracks = tracker.update(Detections.of(BOX + np.tile(move, 2), keypoints=pose[None]), time_s)
        check(tracks)
        if frame >= 30:
            assert tracks.ids_T.tolist() == [1]
            np.testing.assert_allclose(tracks.velocity_TK2[0], [[90.0, 0.0]] * 2, atol=30.0)


def test_two_objects_exactly_on_top_of_each_other_keep_two_ids() -> None:
    tracker = Tracker()
    for frame in range(20):
        tracks = tracker.update(Detections.of(np.repeat(BOX, 2, axis=0)), frame / 30)
        check(tracks)
    assert tracks.ids_T.tolist() == [1, 2]
    assert sorted(tracks.detection_T.tolist()) == [0, 1]


@pytest.mark.parametrize("spread", [0.0, 3000.0], ids=["one spot", "apart"])
def test_two_thousand_detections_at_once_are_cut_to_the_best(spread: float) -> None:
    rng = np.random.default_rng(0)
    limit = 200
    config = TrackerConfig(association=AssociationConfig(max_detections=limit))
    tracker = Tracker(config)
    corner = rng.uniform(0.0, spread, (2000, 2)) if spread else np.zeros((2000, 2))
    boxes = np.concatenate((corner, corner + SIZE), axis=1)
    scores = rng.uniform(0.75, 1.0, 2000)
    keypoints = boxes[:, None, :2] + rng.uniform(0.0, 30.0, (2000, 17, 2))
    for frame in range(3):
        tracks = tracker.update(Detections.of(boxes, scores, keypoints=keypoints), frame / 30)
        check(tracks)
    assert len(tracks) == limit
    assert tracks.scores_T.min() >= np.sort(scores)[-limit]


def test_two_thousand_detections_do_not_break_the_defaults() -> None:
    rng = np.random.default_rng(0)
    corner = rng.uniform(0.0, 3000.0, (2000, 2))
    boxes = np.concatenate((corner, corner + SIZE), axis=1)
    tracker = Tracker()
    for frame in range(2):
        tracks = tracker.update(Detections.of(boxes, rng.uniform(0.75, 1.0, 2000)), frame / 30)
        check(tracks)
        assert len(tracks) == TrackerConfig().association.max_detections


def test_tracks_are_bounded() -> None:
    config = TrackerConfig(lifecycle=LifecycleConfig(max_tracks=10, confirm_hits=1))
    tracker = Tracker(config)
    corner = np.arange(50.0)[:, None] * 100.0
    boxes = np.concatenate((corner, corner, corner + 30.0, corner + 60.0), axis=1)
    assert len(tracker.update(Detections.of(boxes), 0.0)) == 10


def test_memory_stays_flat_over_births_and_deaths() -> None:
    rng = np.random.default_rng(0)
    tracker = Tracker()

    def run(first: int, last: int) -> int:
        for frame in range(first, last):
            if frame % 5 == 0:
                corner = rng.uniform(0.0, 1000.0, (3, 2))
            boxes = np.concatenate((corner, corner + 50.0), axis=1)
            keypoints = corner[:, None] + rng.uniform(0.0, 50.0, (3, 5, 2))
            tracker.update(Detections.of(boxes, keypoints=keypoints), frame / 30)
        gc.collect()  # empties the interpreter's own lists of spare tuples, too
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    early = run(0, 300)
    late = run(300, 1200)
    tracemalloc.stop()
    assert late < early + 50_000  # bytes


def test_shapes_that_disagree_are_named() -> None:
    with pytest.raises(TrackerInputError, match=r"scores \(2,\)"):
        Detections(BOX, np.ones(2), np.zeros(1, np.int64))


def test_a_setting_out_of_range_is_named() -> None:
    with pytest.raises(TrackerConfigError, match=r"AssociationConfig.new_score: got 1.5; allowed is 0.0 to 1.0"):
        AssociationConfig(new_score=1.5)
