"""Assignment and similarity."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from trackers.association import assign
from trackers.geometry import keypoint_boxes, oks_pairs


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.floats(0.1, 1.0), st.integers(0, 10_000))
def test_assign_is_optimal_over_allowed_pairs(tracks: int, detections: int, density: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    gains = rng.uniform(0.01, 1.0, (tracks, detections)) * (rng.random((tracks, detections)) < density)
    rows, columns = gains.nonzero()
    got_rows, got_columns = assign(rows, columns, gains[rows, columns], gains.shape)
    assert len(set(got_rows.tolist())) == len(got_rows)
    assert len(set(got_columns.tolist())) == len(got_columns)
    assert (gains[got_rows, got_columns] > 0.0).all()
    best = gains[linear_sum_assignment(gains, maximize=True)].sum()
    np.testing.assert_allclose(gains[got_rows, got_columns].sum(), best, atol=1e-12)


def test_oks_is_cocos_formula_over_common_keypoints() -> None:
    first = np.array([[[0.0, 0.0], [10.0, 0.0], [np.nan, np.nan]]])
    second = np.array([[[3.0, 4.0], [np.nan, np.nan], [1.0, 1.0]]])
    oks, common = oks_pairs(first, second, np.array([2500.0]), np.full((1, 3), 0.05))
    np.testing.assert_allclose(oks, np.exp(-25.0 / (2.0 * 2500.0 * (2.0 * 0.05) ** 2)))
    assert common.all()


def test_oks_without_a_common_keypoint_is_zero_and_says_so() -> None:
    absent = np.full((1, 2, 2), np.nan)
    oks, common = oks_pairs(absent, np.zeros((1, 2, 2)), np.array([100.0]), np.full((1, 2), 0.05))
    assert oks[0] == 0.0
    assert not common[0]


def test_keypoint_box_ignores_a_wild_keypoint_and_gives_thin_poses_some_width() -> None:
    body = np.stack((np.linspace(0, 40, 9), np.linspace(0, 100, 9)), axis=1)
    wild = body.copy()
    wild[4] += 5000.0
    arm = np.stack((np.full(9, 5.0), np.linspace(0, 100, 9)), axis=1)
    boxes = keypoint_boxes(np.stack((body, wild, arm, np.full((9, 2), np.nan))))
    np.testing.assert_allclose(boxes[0], [0, 0, 40, 100])
    np.testing.assert_allclose(boxes[1], [0, 0, 40, 100])
    np.testing.assert_allclose(boxes[2], [0, 0, 10, 100])
    assert np.isnan(boxes[3]).all()
