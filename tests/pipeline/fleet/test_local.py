"""A batch on processes: every file once, whatever dies meanwhile."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.fleet.jobs import Job, Manifest, find_jobs
from pipeline.fleet.local import run_local
from pipeline.fleet.worker import Outcome
from tests.pipeline.fleet.workers import StandIn, refuse
from tests.support import REPOSITORY


def make_jobs(folder: Path, texts: list[str]) -> list[Job]:
    for index, text in enumerate(texts):
        path = folder / "in" / f"{index:04d}.mp4"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return find_jobs([str(folder / "in")], folder / "out")


def run(jobs: list[Job], workers: int = 2) -> list[Outcome]:
    outcomes: list[Outcome] = []
    run_local(jobs, StandIn, workers, outcomes.append)
    return sorted(outcomes, key=lambda outcome: outcome.job.folder)


def test_every_file_is_done_once_and_only_once(tmp_path: Path) -> None:
    jobs = make_jobs(tmp_path, ["x"] * 100)
    assert [outcome.state for outcome in run(jobs)] == ["done"] * 100
    assert [outcome.state for outcome in run(jobs)] == ["skipped"] * 100
    pids = [(job.folder / "poses.jsonl").read_text().split() for job in jobs]
    assert all(len(lines) == 1 for lines in pids)
    assert len({lines[0] for lines in pids}) == 2, "both workers took part"


def test_a_worker_that_dies_costs_its_file_alone(tmp_path: Path) -> None:
    outcomes = run(make_jobs(tmp_path, ["x", "die", "x", "die once", "fail", "x"]))
    assert [outcome.state for outcome in outcomes] == ["done", "failed", "done", "done", "failed", "done"]
    assert "worker died 2 times" in outcomes[1].error
    assert outcomes[4].error == "is no video"


def test_an_error_of_the_engine_ends_the_batch(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no weights"):
        run_local(make_jobs(tmp_path, ["x"] * 3), refuse, 2, lambda outcome: None)


def test_a_killed_batch_goes_on_where_it_stopped_and_leaves_no_workers(tmp_path: Path) -> None:
    jobs = make_jobs(tmp_path, ["sleep"] * 8)
    code = (
        "from pathlib import Path\nfrom tests.pipeline.fleet.test_local import *\n"
        f"if __name__ == '__main__': run(find_jobs([{str(tmp_path / 'in')!r}], Path({str(tmp_path / 'out')!r})))\n"
    )
    script = tmp_path / "batch.py"
    script.write_text(code)
    environment = os.environ | {"PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'clients/python'}"}
    process = subprocess.Popen([sys.executable, str(script)], env=environment)
    deadline_s = time.monotonic() + 120
    while not (done := [job for job in jobs if (job.folder / "poses.jsonl").exists()]):
        assert time.monotonic() < deadline_s
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    workers = {int(line) for job in done for line in (job.folder / "poses.jsonl").read_text().split()}
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < deadline_s, "a worker outlived the batch"
        time.sleep(0.05)
    before = sum((manifest := Manifest.read(job.folder)) is not None and manifest.state == "done" for job in jobs)
    states = [outcome.state for outcome in run(jobs)]
    assert states.count("skipped") == before > 0
    assert states.count("done") == len(jobs) - before
