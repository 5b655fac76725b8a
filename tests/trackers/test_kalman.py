"""The batched filters against filterpy, and their fixed-lag estimate against a smoother."""

import numpy as np
import pytest
from filterpy.kalman import KalmanFilter

from trackers.kalman import ACCELERATION, PP, VV, WALK, ConstantVelocityFilters

TRACKS, POINTS = 4, 5


def make_filters(rng: np.random.Generator) -> ConstantVelocityFilters:
    filters = ConstantVelocityFilters(POINTS)
    variance = np.zeros((5, TRACKS, POINTS))
    for row in (PP, VV, WALK, ACCELERATION):
        variance[row] = rng.uniform(0.5, 5.0, (TRACKS, POINTS))
    position, velocity = rng.normal(0.0, 50.0, (2, TRACKS, POINTS, 2))
    filters.append(position, velocity, variance)
    return filters


def make_reference(filters: ConstantVelocityFilters, track: int, point: int, axis: int) -> KalmanFilter:
    reference = KalmanFilter(dim_x=2, dim_z=1)
    reference.x = np.array([[filters.position_TP2[track, point, axis]], [filters.velocity_TP2[track, point, axis]]])
    pp, pv, vv = filters.variance_5TP[:3, track, point]
    reference.P = np.array([[pp, pv], [pv, vv]])
    reference.H = np.array([[1.0, 0.0]])
    return reference


@pytest.mark.parametrize("axis", [0, 1])
def test_batch_equals_filterpy_to_1e_9_over_uneven_steps_and_misses(axis: int) -> None:
    rng = np.random.default_rng(0)
    filters = make_filters(rng)
    references = {(t, p): make_reference(filters, t, p, axis) for t in range(TRACKS) for p in range(POINTS)}
    for _ in range(60):
        dt = float(rng.uniform(0.0, 0.2))
        walk, acceleration = filters.variance_5TP[WALK], filters.variance_5TP[ACCELERATION]
        rows = np.sort(rng.permutation(TRACKS)[: rng.integers(1, TRACKS + 1)])
        measured = rng.normal(0.0, 50.0, (len(rows), POINTS, 2))
        noise = rng.uniform(0.1, 4.0, (len(rows), POINTS))
        valid = rng.random((len(rows), POINTS)) < 0.8
        for (track, point), reference in references.items():
            reference.F = np.array([[1.0, dt], [0.0, 1.0]])
            white = np.array([[dt**3 / 3, dt**2 / 2], [dt**2 / 2, dt]])
            reference.Q = acceleration[track, point] * white + np.diag([walk[track, point] * dt, 0.0])
            reference.predict()
            if track in rows and valid[list(rows).index(track), point]:
                at = list(rows).index(track), point
                reference.update(np.array([[measured[(*at, axis)]]]), R=np.array([[noise[at]]]))
        filters.predict(dt)
        filters.update(rows, measured, noise, valid)
        for (track, point), reference in references.items():
            got = [filters.position_TP2[track, point, axis], filters.velocity_TP2[track, point, axis]]
            np.testing.assert_allclose(got, reference.x[:, 0], rtol=0.0, atol=1e-9)
            pp, pv, vv = filters.variance_5TP[:3, track, point]
            np.testing.assert_allclose([[pp, pv], [pv, vv]], reference.P, rtol=0.0, atol=1e-9)


def test_all_rows_as_a_slice_give_what_an_index_array_gives() -> None:
    one, other = make_filters(np.random.default_rng(1)), make_filters(np.random.default_rng(1))
    measured, noise = np.full((TRACKS, POINTS, 2), 7.0), np.full((TRACKS, POINTS), 2.0)
    one.predict(0.1)
    one.update(slice(None), measured, noise, None)
    other.predict(0.1)
    other.update(np.arange(TRACKS), measured, noise, None)
    np.testing.assert_array_equal(one.position_TP2, other.position_TP2)
    np.testing.assert_array_equal(one.variance_5TP, other.variance_5TP)


def test_lagged_estimate_equals_one_step_of_the_rts_smoother() -> None:
    filters = make_filters(np.random.default_rng(2))
    rng = np.random.default_rng(3)
    filters.predict(0.1)
    everything = np.ones((TRACKS, POINTS), np.bool_)
    filters.update(slice(None), rng.normal(0.0, 50.0, (TRACKS, POINTS, 2)), np.ones((TRACKS, POINTS)), everything)
    track, point, axis, dt = 2, 3, 1, 0.07
    before = make_reference(filters, track, point, axis)
    transition = np.array([[1.0, dt], [0.0, 1.0]])
    filters.predict(dt)
    after_prediction = make_reference(filters, track, point, axis)
    filters.update(slice(None), rng.normal(0.0, 50.0, (TRACKS, POINTS, 2)), np.ones((TRACKS, POINTS)), everything)
    after_update = make_reference(filters, track, point, axis)
    gain = before.P @ transition.T @ np.linalg.inv(after_prediction.P)
    smoothed = before.x + gain @ (after_update.x - after_prediction.x)
    np.testing.assert_allclose(filters.lagged_TP2[track, point, axis], smoothed[0, 0], atol=1e-9)


def test_an_unknown_point_leaves_the_others_untouched() -> None:
    filters = make_filters(np.random.default_rng(4)).resized(POINTS + 1)
    filters.predict(0.1)
    assert np.isnan(filters.position_TP2[:, POINTS]).all()
    assert np.isfinite(filters.position_TP2[:, :POINTS]).all()
    assert np.isfinite(filters.variance_5TP[:3, :, :POINTS]).all()
