"""Counters and percentiles."""

import numpy as np

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
    for source in ("a", "b", "b"):
        metrics.count_in("infer", source)
        metrics.count_out("infer", source)
    metrics.count_drop("infer", "a", "too old")
    metrics.count_drop("infer", "b", "newer frame", 3)
    metrics.add_latency(Metrics.CAPTURE_TO_PUBLISH, 0.1)
    metrics.add_latency("infer", 0.01)
    infer, whole = metrics.report()
    assert (infer.name, infer.frames_in, infer.frames_out) == ("infer", 3, 3)
    assert infer.dropped == {"too old": 1, "newer frame": 3}
    assert whole.name == Metrics.CAPTURE_TO_PUBLISH
    assert metrics.frames_out("infer", "b") == 2
    assert (metrics.dropped("b"), metrics.dropped()) == (3, 4)
