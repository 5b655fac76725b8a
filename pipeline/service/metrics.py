"""The pipeline's metrics in Prometheus' format.

All values are read during a scrape, so there is no cost between two scrapes. Names and units follow Prometheus' guide:
a prefix, base units, `_total` for counters. Texts are labels of a metric with the value 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import get_args

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from pipeline.flow.metrics import LatencyHistogram, Metrics
from pipeline.flow.pipeline import Pipeline
from pipeline.sources import Source
from pipeline.sources.status import State

CONTENT_TYPE = CONTENT_TYPE_LATEST

_BOUNDS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)

Gauge = tuple[str, str, Callable[[], float]]


class PipelineCollector(Collector):
    """Reads the metrics of a pipeline.

    Args:
        infos: name and labels of each metric that has texts, such as {"xpose_engine_info": {"model": "nano"}}.
        gauges: name, description and value of further gauges.
    """

    def __init__(
        self, pipeline: Pipeline, infos: Callable[[], Mapping[str, Mapping[str, str]]], gauges: Iterable[Gauge]
    ) -> None:
        self._pipeline = pipeline
        self._infos = infos
        self._gauges = tuple(gauges)

    def collect(self) -> Iterable[Metric]:
        """Return all metrics at this moment."""
        yield from self._frames()
        yield from self._sources()
        queued = GaugeMetricFamily("xpose_queue_frames", "Frames that wait for a stage.", labels=["stage"])
        for stage in self._pipeline.stages:
            queued.add_metric([stage.input.stage], len(stage.input))
        yield queued
        subscriptions = self._pipeline.subscriptions
        yield GaugeMetricFamily("xpose_subscriptions", "Subscriptions to the messages, by topic prefix.", subscriptions)
        for name, what, value in self._gauges:
            yield GaugeMetricFamily(name, what, value())
        for name, labels in self._infos().items():
            info = GaugeMetricFamily(name, "Always 1; the labels have the facts.", labels=list(labels))
            info.add_metric(list(labels.values()), 1)
            yield info

    def _frames(self) -> Iterable[Metric]:
        view = self._pipeline.metrics.view()
        passed = CounterMetricFamily("xpose_frames", "Frames that a stage passed on.", labels=["source", "stage"])
        for (stage, source), count in view.frames_out.items():
            passed.add_metric([source, stage], count)
        yield passed
        drops = CounterMetricFamily(
            "xpose_dropped_frames", "Frames that were dropped, by reason.", labels=["source", "stage", "reason"]
        )
        for (stage, source, reason), count in view.drops.items():
            drops.add_metric([source, stage, reason], count)
        yield drops
        if self._pipeline.keys is not None:
            what = "Attempts to connect without an allowed key."
            yield CounterMetricFamily("xpose_refused_connections", what, value=self._pipeline.keys.refused)
        took = {stage: times for stage, times in view.took.items() if stage != Metrics.CAPTURE_TO_PUBLISH}
        yield _histogram("xpose_stage_duration_seconds", "Time that a stage takes per frame.", "stage", took)
        yield _histogram("xpose_queue_wait_seconds", "Time that a frame waits for a stage.", "stage", view.waited)
        yield _histogram("xpose_frame_age_seconds", "Age of a frame when it is published.", "source", view.ages)

    def _sources(self) -> Iterable[Metric]:
        state = GaugeMetricFamily("xpose_source_state", "1 for the state of a source.", labels=["source", "state"])
        lag = GaugeMetricFamily("xpose_source_lag_seconds", "Delay that the link has built up.", labels=["source"])
        newest = GaugeMetricFamily(
            "xpose_source_last_capture_timestamp_seconds", "Capture time of the newest picture.", labels=["source"]
        )
        reconnects = CounterMetricFamily(
            "xpose_source_reconnects", "How often a lost connection was opened again.", labels=["source"]
        )
        for name, source in _named(self._pipeline.sources).items():
            view = source.status.view(source.age_budget_s if source.live else 0.0)
            for other in get_args(State):
                state.add_metric([name, other], view.state == other)
            if view.lag_s is not None:
                lag.add_metric([name], view.lag_s)
            if view.last_capture_unix_ns is not None:
                newest.add_metric([name], view.last_capture_unix_ns / 1e9)
            reconnects.add_metric([name], view.reconnects)
        yield from (state, lag, newest, reconnects)


class Exposition:
    """Makes the answer of `/metrics`: metrics of the pipeline and of the process."""

    def __init__(self, collector: PipelineCollector) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(collector)
        ProcessCollector(registry=self._registry)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)


def _named(sources: Iterable[Source]) -> dict[str, Source]:
    """Return the sources by name; a later one replaces an earlier one of the same name."""
    return {source.name: source for source in list(sources)}


def _histogram(name: str, what: str, label: str, histograms: Mapping[str, LatencyHistogram]) -> HistogramMetricFamily:
    family = HistogramMetricFamily(name, what, labels=[label])
    for value, times in histograms.items():
        buckets = [(str(bound_s), count) for bound_s, count in zip(_BOUNDS_S, times.cumulative(_BOUNDS_S), strict=True)]
        family.add_metric([value], buckets=[*buckets, ("+Inf", times.count)], sum_value=times.sum_s)
    return family
