"""Counters and percentiles."""

import numpy as np
import pytest

from pipeline.flow.metrics import LatencyHistogram, Metrics


def test_percentiles_are_right_to_two_percent_over_seven_decades() -> None:
    durations_s = np.exp(np.random.default_rng(0).uniform(np.log(2e-6), np.log(20), 5000))
    histogram = LatencyHistogram()
    for duration_s in durations_s:
        histogram.add(duration_s)
    for percent in (50, 95, 99):
        expected_s = np.percentile(durations_s, percent, method="inverted_cdf")
        assert abs(histogram.percentile_s(percent) / expected_s - 1) < 0.02


def test_no_durations_have_no_percentile_and_extremes_stay_in_range() -> None:
    histogram = LatencyHistogram()
    assert histogram.percentile_s(99) is None
    histogram.add(0.0)
    histogram.add(1e9)
    assert histogram.count == 2
    assert histogram.percentile_s(1) < 2e-6


def test_report_adds_sources_up_and_keeps_reasons_apart() -> None:
    metrics = Metrics()
    drops = {("a", "too old"): 1, ("b", "newer frame"): 3}
    metrics.watch("infer", lambda: drops)
    for source in ("a", "b", "b"):
        metrics.count_in("infer", source, waited_s=0.2)
        metrics.count_out("infer", source, took_s=0.01)
    metrics.count_age("a", 0.1)
    infer, whole = metrics.report()
    assert (infer.name, infer.frames_in, infer.frames_out) == ("infer", 3, 3)
    assert infer.dropped == {"too old": 1, "newer frame": 3}
    assert infer.waited.percentile_s(50) == pytest.approx(0.2, rel=0.02)
    assert infer.took.percentile_s(50) == pytest.approx(0.01, rel=0.02)
    assert whole.name == Metrics.CAPTURE_TO_PUBLISH
    assert whole.took.percentile_s(50) == pytest.approx(0.1, rel=0.02)
    assert metrics.frames_out("infer", "b") == 2
    assert metrics.drops("b") == {"newer frame": 3}
    assert metrics.drops().total() == 4
    assert (metrics.age_s("a"), metrics.age_s("b")) == (0.1, None)


def test_cumulative_counts_hold_what_does_not_exceed_each_bound() -> None:
    durations_s = np.exp(np.random.default_rng(1).uniform(np.log(2e-6), np.log(20), 2000))
    histogram = LatencyHistogram()
    for duration_s in durations_s:
        histogram.add(duration_s)
    for bound_s, count in zip(
        (1e-7, 1e-3, 0.1, 5.0, 1e6), histogram.cumulative((1e-7, 1e-3, 0.1, 5.0, 1e6)), strict=True
    ):
        assert (durations_s < 0.98 * bound_s).sum() <= count <= (durations_s < 1.02 * bound_s).sum()
    assert histogram.sum_s == pytest.approx(durations_s.sum())


def test_view_stays_as_it_was_when_more_is_counted() -> None:
    metrics = Metrics()
    metrics.watch("infer", lambda: {("a", "too old"): 2})
    metrics.count_out("infer", "a", took_s=0.5)
    metrics.count_age("a", 0.25)
    view = metrics.view()
    metrics.count_out("infer", "a", took_s=0.5)
    metrics.count_age("a", 0.25)
    assert view.frames_out == {("infer", "a"): 1}
    assert view.drops == {("infer", "a", "too old"): 2}
    assert (view.took["infer"].count, view.ages["a"].count, view.ages["a"].sum_s) == (1, 1, 0.25)
