"""What Prometheus reads."""

import time
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from pipeline.config import PipelineConfig
from pipeline.flow.pipeline import Pipeline
from pipeline.keys import KeysConfig, make_keys
from pipeline.service.metrics import Exposition, PipelineCollector
from tests.pipeline.fakes import FakeSource
from tests.pipeline.flow.running import make_pipeline, run

ODD = 'a"b\\c\n<img>'


def samples(pipeline: Pipeline) -> dict[tuple[str, ...], float]:
    """Values by name and label values, as Prometheus' own parser reads them."""
    infos = {"xpose_engine_info": {"model": "nano", "backend": ODD}}
    collector = PipelineCollector(pipeline, lambda: infos, [("xpose_monitor_viewers", "Viewers.", lambda: 3.0)])
    families = text_string_to_metric_families(Exposition(collector).text().decode())
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def test_metrics_hold_the_counts_ages_times_and_states_of_a_run() -> None:
    source = FakeSource(20, ODD)
    source.drops["undecodable"] += 4
    pipeline = make_pipeline(source)
    run(pipeline)
    found = samples(pipeline)
    for stage in ("decode", "infer", "track", "publish"):
        assert found["xpose_frames_total", ODD, stage] == 20
    assert found["xpose_dropped_frames_total", "undecodable", ODD, "decode"] == 4
    assert found["xpose_frame_age_seconds_count", ODD] == 20
    assert found["xpose_frame_age_seconds_bucket", "+Inf", ODD] == 20
    assert found["xpose_stage_duration_seconds_count", "track"] == 20
    assert found["xpose_queue_wait_seconds_count", "infer"] == 20
    assert [found["xpose_source_state", ODD, state] for state in ("live", "late", "lost", "ended")] == [0, 0, 0, 1]
    assert abs(found["xpose_source_last_capture_timestamp_seconds", ODD] - time.time()) < 60
    assert found["xpose_source_reconnects_total", ODD] == 0
    assert found["xpose_queue_frames", "infer"] == 0
    assert found["xpose_monitor_viewers",] == 3
    assert found["xpose_subscriptions",] == 0
    assert found["xpose_engine_info", ODD, "nano"] == 1
    assert found["process_resident_memory_bytes",] > 0


def test_attempts_without_a_key_are_counted_where_keys_are_in_use(tmp_path: Path) -> None:
    make_keys(tmp_path / "keys", [])
    pipeline = make_pipeline(config=PipelineConfig(keys=KeysConfig(str(tmp_path / "keys"))))
    assert pipeline.keys is not None
    pipeline.keys.count_refused()
    assert samples(pipeline)["xpose_refused_connections_total",] == 1
    assert ("xpose_refused_connections_total",) not in samples(make_pipeline())


def test_histograms_count_upwards_to_all() -> None:
    pipeline = make_pipeline(FakeSource(50))
    run(pipeline)
    ages = {key[1]: value for key, value in samples(pipeline).items() if key[0] == "xpose_frame_age_seconds_bucket"}
    counts = [ages[bound] for bound in sorted(ages, key=float)]
    assert counts == sorted(counts)
    assert counts[-1] == 50


def test_metrics_of_a_pipeline_that_has_not_started_are_empty() -> None:
    assert not [key for key in samples(make_pipeline(FakeSource(1))) if key[0] == "xpose_frames_total"]
