"""Results in object storage: fsspec's in-memory kind, whose objects live as long as this process."""

import secrets
from pathlib import Path

import pandas
import pytest

from pipeline.config import PipelineConfig
from pipeline.errors import ConfigError, OutputError
from pipeline.fleet.jobs import MANIFEST, Job, Manifest, find_jobs, prepare
from pipeline.fleet.places import Place, place_of, upload
from pipeline.fleet.worker import BatchSettings, Worker
from tests.pipeline.fakes import MUG, FakeEngine
from tests.pipeline.videos import write_video

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


@pytest.fixture
def bucket() -> Place:
    return place_of(f"memory://{secrets.token_hex(8)}/results")


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Worker:
    monkeypatch.setattr("engines.engine.Engine", lambda config: FakeEngine())
    return Worker(BatchSettings(PipelineConfig(), (MUG,), video=True, exports=("csv",)))


def names(place: Place) -> set[str]:
    return {entry.name for entry in place.iterdir()}


def test_results_go_to_object_storage_as_they_would_to_a_disk(worker: Worker, bucket: Place, tmp_path: Path) -> None:
    (tmp_path / "in/a").mkdir(parents=True)
    write_video(tmp_path / "in/a/clip.mp4", 5)
    write_video(tmp_path / "in/b.mp4", 3)
    jobs = find_jobs([str(tmp_path / "in")], bucket)
    assert [worker.run(job).state for job in jobs] == ["done", "done"]
    folder = bucket / "a" / "clip.mp4"
    on_disk = find_jobs([str(tmp_path / "in")], tmp_path / "out")
    assert worker.run(on_disk[0]).state == "done"
    assert names(folder) == names(on_disk[0].folder)
    assert (folder / "poses.jsonl").read_bytes().count(b"\n") == 5
    (tmp_path / "poses.csv").write_bytes((folder / "poses.csv").read_bytes())
    assert set(pandas.read_csv(tmp_path / "poses.csv")["keypoint"]) == {"rim", "base", "handle"}
    assert [worker.run(job).state for job in jobs] == ["skipped", "skipped"]


def test_interrupted_upload_is_done_again_and_other_results_are_not_overwritten(
    worker: Worker, bucket: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_video(tmp_path / "clip.mp4", 2)
    (job,) = find_jobs([str(tmp_path / "clip.mp4")], bucket)

    def fail(*_: object) -> None:
        raise RuntimeError("the bucket is gone")

    with monkeypatch.context() as patched:
        patched.setattr("fsspec.implementations.memory.MemoryFileSystem.put_file", fail)
        outcome = worker.run(job)
    assert outcome.state == "failed"
    assert "cannot be written (the bucket is gone)" in outcome.error
    manifest = Manifest.read(job.folder)
    assert manifest is not None
    assert manifest.state == "failed"
    assert worker.run(job).state == "done"
    with pytest.raises(OutputError, match="other settings"):
        prepare(job, "other", overwrite=False)
    (job.folder / MANIFEST).unlink()
    with pytest.raises(OutputError, match="no batch wrote"):
        prepare(job, "other", overwrite=False)


def test_path_stays_a_path_and_unknown_storage_is_an_error(tmp_path: Path) -> None:
    assert place_of("out/x") == Path("out/x")
    with pytest.raises(ConfigError, match="no kind of storage"):
        place_of("nonsense://bucket")
    upload(tmp_path, tmp_path / "elsewhere")
    assert not (tmp_path / "elsewhere").exists()


def test_job_of_object_storage_can_be_sent_to_another_process(bucket: Place) -> None:
    import pickle

    job = Job(Path("clip.mp4"), bucket / "clip.mp4")
    assert pickle.loads(pickle.dumps(job)) == job
