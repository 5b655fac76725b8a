"""A worker makes the results of a file with the real pipeline, and says what is wrong with a file that it cannot do."""

import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipeline.config import PipelineConfig
from pipeline.errors import ConfigError
from pipeline.fleet.batch import Workers, run_batch
from pipeline.fleet.jobs import Manifest, find_jobs
from pipeline.fleet.worker import BatchSettings, Worker, identity
from tests.pipeline.fakes import MUG, FakeEngine
from tests.pipeline.videos import write_video
from tests.support import REPOSITORY


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> BatchSettings:
    monkeypatch.setattr("engines.engine.Engine", lambda config: FakeEngine())
    return BatchSettings(PipelineConfig(), (MUG,), video=True, exports=("csv",))


def test_results_are_complete_and_named_in_the_manifest(settings: BatchSettings, tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", 5)
    (job,) = find_jobs([str(tmp_path / "clip.mp4")], tmp_path / "out")
    worker = Worker(settings)
    assert (outcome := worker.run(job)).state == "done", outcome.error
    assert outcome.frames == 5
    manifest = Manifest.read(job.folder)
    assert manifest is not None
    assert manifest.outputs == ("poses.jsonl", "annotated.mp4", "poses.csv")
    assert (job.folder / "poses.jsonl").read_bytes().count(b"\n") == 5
    assert worker.run(job).state == "skipped"


def test_a_bad_file_fails_with_its_sentence_and_is_tried_again(settings: BatchSettings, tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    (job,) = find_jobs([str(tmp_path / "bad.mp4")], tmp_path / "out")
    worker = Worker(settings)
    outcome = worker.run(job)
    assert outcome.state == "failed"
    assert "bad.mp4" in outcome.error
    assert (manifest := Manifest.read(job.folder)) is not None
    assert manifest.state == "failed"
    write_video(tmp_path / "bad.mp4", 3)
    assert worker.run(job).state == "done"


def test_file_for_which_the_memory_of_its_worker_is_not_enough_fails_alone(
    settings: BatchSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_video(tmp_path / "large.mp4", 2)
    write_video(tmp_path / "small.mp4", 2)
    large, small = find_jobs([str(tmp_path)], tmp_path / "out")
    worker = Worker(settings)
    with monkeypatch.context() as patched:

        def submit(engine: FakeEngine, images: Any) -> Any:
            """Allocate under a limit on this process's address space."""
            before = resource.getrlimit(resource.RLIMIT_AS)
            used_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used_bytes + (64 << 20), before[1]))
            try:
                return bytearray(1 << 30)
            finally:
                resource.setrlimit(resource.RLIMIT_AS, before)

        patched.setattr(FakeEngine, "submit", submit)
        outcome = worker.run(large)
    assert (outcome.state, "not enough memory" in outcome.error) == ("failed", True)
    assert worker.run(small).state == "done"


def test_everything_that_changes_results_changes_the_identity(settings: BatchSettings) -> None:
    import dataclasses

    one = identity(settings)
    assert identity(settings) == one
    for change in ({"video": False}, {"exports": ()}, {"prompts": (dataclasses.replace(MUG, name="cup"),)}):
        assert identity(dataclasses.replace(settings, **change)) != one


def test_a_batch_says_what_failed_and_exits_with_1(
    settings: BatchSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_here(jobs: Any, make_worker: Any, workers: int, report: Any) -> None:
        worker = make_worker(1)
        for job in jobs:
            report(worker.run(job))

    monkeypatch.setattr("pipeline.fleet.batch.run_local", run_here)
    write_video(tmp_path / "good.mp4", 2)
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    jobs = find_jobs([str(tmp_path)], tmp_path / "out")
    assert run_batch(jobs, settings, Workers(1), Console(stderr=True, width=200)) == 1
    said = capsys.readouterr().err
    assert "1 done (2 frames), 0 already complete, 1 failed" in said
    (tmp_path / "bad.mp4").unlink()
    assert run_batch(find_jobs([str(tmp_path)], tmp_path / "out"), settings, Workers(1), Console(stderr=True)) == 0


def test_what_cannot_be_made_is_refused_before_anything_runs(settings: BatchSettings) -> None:
    import dataclasses

    with pytest.raises(ConfigError, match="--export xls"):
        run_batch([], dataclasses.replace(settings, exports=("xls",)), Workers(), Console())
    with pytest.raises(ConfigError, match="--workers -1"):
        Workers(-1)


def test_the_command_runs_a_batch(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", 2)
    command = [sys.executable, "run_pipeline.py", "batch", str(tmp_path), "--out", str(tmp_path / "out")]
    options = ["--model", "nano", "--backend", "eager", "--export", "csv", "--workers", "1"]
    ended = subprocess.run(
        [*command, *options], cwd=REPOSITORY, capture_output=True, text=True, timeout=240, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert "1 done (2 frames)" in ended.stderr
    assert (tmp_path / "out" / "clip.mp4" / "poses.csv").exists()
