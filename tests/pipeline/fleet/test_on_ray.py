"""A batch on a real Ray cluster of several nodes in one machine; small and slow, so part of `make test-slow`."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from pipeline.fleet.jobs import Job, Manifest
from pipeline.fleet.on_ray import run_on_ray
from pipeline.fleet.worker import Outcome
from tests.pipeline.fleet.clusters import add_node, cluster_of, on_ray
from tests.pipeline.fleet.test_local import make_jobs
from tests.pipeline.fleet.workers import Logging, StandIn, refuse
from tests.support import REPOSITORY

pytestmark = on_ray


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Two nodes of one CPU each, and a head that does no files."""
    with cluster_of(monkeypatch, 2) as made:
        yield made


def run(jobs: list[Job], address: str, workers: int = 0) -> list[Outcome]:
    outcomes: list[Outcome] = []
    run_on_ray(jobs, StandIn, address, outcomes.append, workers=workers)
    return sorted(outcomes, key=lambda outcome: outcome.job.folder)


def kill(cluster: Any, node: Any) -> None:
    cluster.remove_node(node, allow_graceful=False)


def test_every_file_is_done_though_workers_die_and_a_node_is_killed(cluster: Any, tmp_path: Path) -> None:
    jobs = make_jobs(tmp_path, ["x", "die once", "fail", *["sleep"] * 12])

    def kill_node() -> None:
        while not (jobs[4].folder / "poses.jsonl").exists():
            time.sleep(0.05)
        kill(cluster, next(iter(cluster.worker_nodes)))

    killer = threading.Thread(target=kill_node, daemon=True)
    killer.start()
    outcomes = run(jobs, cluster.address)
    killer.join(60)
    states = [outcome.state for outcome in outcomes]  # "skipped": the node was killed after the file, before its report
    assert [state.replace("skipped", "done") for state in states] == ["done", "done", "failed", *["done"] * 12]
    assert all((job.folder / "poses.jsonl").exists() for job in jobs if job.input.read_text() != "fail")
    again = run(jobs, cluster.address, workers=1)
    assert [outcome.state for outcome in again] == ["skipped", "skipped", "failed", *["skipped"] * 12]


def test_an_error_of_the_engine_ends_the_batch(cluster: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no weights"):
        run_on_ray(make_jobs(tmp_path, ["x"]), refuse, cluster.address, lambda outcome: None, workers=1)


def test_of_a_thousand_files_none_is_missing_and_none_is_done_twice_whatever_is_killed(
    cluster: Any, tmp_path: Path
) -> None:
    jobs = make_jobs(tmp_path, ["x"] * 1000)
    pids = tmp_path / "pids"
    pids.mkdir()
    outcomes: list[Outcome] = []

    def report(outcome: Outcome) -> None:
        """Kill a process that works, each time that a part of the files is done, and once a node."""
        outcomes.append(outcome)
        if len(outcomes) == 300:
            kill(cluster, next(iter(cluster.worker_nodes)))
            add_node(cluster)
        elif len(outcomes) % 125 == 0:
            alive = [path for path in pids.iterdir() if Path(f"/proc/{path.name}").exists()]
            with suppress(ProcessLookupError, IndexError):
                os.kill(int(random.choice(alive).name), signal.SIGKILL)

    run_on_ray(jobs, Logging(tmp_path), cluster.address, report, workers=4)
    assert len({outcome.job.folder for outcome in outcomes}) == len(outcomes) == 1000
    wrong = [outcome for outcome in outcomes if outcome.state not in ("done", "skipped")]
    assert not wrong
    for job in jobs:
        manifest = Manifest.read(job.folder)
        assert manifest is not None
        assert manifest.state == "done"
    finished = (tmp_path / "finished").read_text().split()
    assert len(finished) == len(set(finished)), "a file was done twice"
    processes = len(list(pids.iterdir()))
    print(f"{processes} processes took part")
    assert processes > 2, "nothing was killed"


def test_batch_whose_cluster_is_gone_goes_on_on_a_new_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    jobs = make_jobs(tmp_path, ["sleep"] * 10)
    code = (
        "import sys\nfrom pathlib import Path\nfrom tests.pipeline.fleet.test_on_ray import run\n"
        "from pipeline.fleet.jobs import find_jobs\n"
        f"run(find_jobs([{str(tmp_path / 'in')!r}], Path({str(tmp_path / 'out')!r})), sys.argv[1], workers=1)\n"
    )
    with cluster_of(monkeypatch, 1) as cluster:
        environment = os.environ | {"PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'clients/python'}"}
        process = subprocess.Popen(
            [sys.executable, "-c", code, cluster.address], env=environment, stderr=subprocess.DEVNULL
        )
        try:
            deadline_s = time.monotonic() + 180
            while not done(jobs):
                assert time.monotonic() < deadline_s
                assert process.poll() is None
                time.sleep(0.05)
            cluster.head_node.kill_all_processes(check_alive=False, allow_graceful=False)
            assert process.wait(120) != 0, "the batch says that all is well"
        finally:
            process.kill()
            process.wait()
    before = done(jobs)
    assert 0 < before < len(jobs)
    with cluster_of(monkeypatch, 1) as cluster:
        states = [outcome.state for outcome in run(jobs, cluster.address)]
    assert (states.count("skipped"), states.count("done")) == (before, len(jobs) - before)


def done(jobs: list[Job]) -> int:
    manifests = [Manifest.read(job.folder) for job in jobs]
    return sum(manifest is not None and manifest.state == "done" for manifest in manifests)
