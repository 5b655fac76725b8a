"""A batch on a real Ray cluster of two nodes in one machine; small and slow, so part of `make test-slow`."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.fleet.on_ray import run_on_ray
from pipeline.fleet.worker import Outcome
from tests.pipeline.fleet.test_local import make_jobs
from tests.pipeline.fleet.workers import StandIn, refuse

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning"),
]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray = pytest.importorskip("ray")
    utilities = pytest.importorskip("ray.cluster_utils")
    made = utilities.Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    ray.init(address=made.address, log_to_driver=False)
    yield made
    ray.shutdown()
    made.shutdown()


def run(jobs: list[Any], address: str, workers: int = 0) -> list[Outcome]:
    outcomes: list[Outcome] = []
    run_on_ray(jobs, StandIn, address, outcomes.append, workers=workers)
    return sorted(outcomes, key=lambda outcome: outcome.job.folder)


def test_every_file_is_done_though_workers_die_and_a_node_is_killed(cluster: Any, tmp_path: Path) -> None:
    node = cluster.add_node(num_cpus=1)
    jobs = make_jobs(tmp_path, ["x", "die once", "fail", *["sleep"] * 12])

    def kill_node() -> None:
        while not (jobs[4].folder / "poses.jsonl").exists():
            time.sleep(0.05)
        cluster.remove_node(node, allow_graceful=False)

    killer = threading.Thread(target=kill_node, daemon=True)
    killer.start()
    outcomes = run(jobs, cluster.address)
    killer.join(60)
    assert [outcome.state for outcome in outcomes] == ["done", "done", "failed", *["done"] * 12]
    assert all((job.folder / "poses.jsonl").exists() for job in jobs if job.input.read_text() != "fail")
    again = run(jobs, cluster.address, workers=1)
    assert [outcome.state for outcome in again] == ["skipped", "skipped", "failed", *["skipped"] * 12]


def test_an_error_of_the_engine_ends_the_batch(cluster: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no weights"):
        run_on_ray(make_jobs(tmp_path, ["x"]), refuse, cluster.address, lambda outcome: None, workers=1)
