"""Which files a batch takes, where their results go, and which results it leaves alone."""

import os
from pathlib import Path

import msgspec
import pytest

from pipeline.errors import ConfigError, OutputError
from pipeline.fleet.jobs import Job, Manifest, find_jobs, locked, prepare, started


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def test_folders_are_searched_and_their_structure_is_mirrored(tmp_path: Path) -> None:
    touch(tmp_path / "in/a/clip.mp4", tmp_path / "in/b/c/CLIP.AVI", tmp_path / "in/notes.txt", tmp_path / "one.mkv")
    out = tmp_path / "out"
    jobs = find_jobs([str(tmp_path / "in"), str(tmp_path / "one.mkv")], out)
    assert {str(job.folder.relative_to(out)) for job in jobs} == {"a/clip.mp4", "b/c/CLIP.AVI", "one.mkv"}
    assert [job.input.name for job in find_jobs([str(tmp_path / "in")], out, ["*.txt"])] == ["notes.txt"]


def test_results_of_an_earlier_batch_are_no_inputs(tmp_path: Path) -> None:
    touch(tmp_path / "clip.mp4", tmp_path / "out/clip.mp4/annotated.mp4")
    jobs = find_jobs([str(tmp_path)], tmp_path / "out")
    assert [job.input for job in jobs] == [tmp_path / "clip.mp4"]


def test_a_list_names_a_file_in_each_line(tmp_path: Path) -> None:
    touch(tmp_path / "a b.mp4", tmp_path / "c.mp4")
    (tmp_path / "list.txt").write_text(f"# clips\n{tmp_path / 'a b.mp4'}\n\n{tmp_path / 'c.mp4'}\n")
    assert len(find_jobs([f"@{tmp_path / 'list.txt'}"], tmp_path / "out")) == 2


@pytest.mark.parametrize(
    ("inputs", "says"),
    [(["absent"], "absent: there is no such file"), (["@absent"], "list cannot be read"), (["."], "no file in")],
)
def test_inputs_that_give_nothing_are_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inputs: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=says):
        find_jobs(inputs, tmp_path / "out")


def test_two_inputs_never_share_a_folder_of_results(tmp_path: Path) -> None:
    touch(tmp_path / "a/clip.mp4", tmp_path / "b/clip.mp4")
    with pytest.raises(ConfigError, match="would both write"):
        find_jobs([str(tmp_path / "a"), str(tmp_path / "b")], tmp_path / "out")
    assert len(find_jobs([str(tmp_path / "a"), str(tmp_path / "a/clip.mp4")], tmp_path / "out")) == 1


def test_manifest_holds_a_file_name_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.mp4")
    touch(path)
    job = Job(path, tmp_path)
    started(job, "s").write(tmp_path)
    manifest = Manifest.read(tmp_path)
    assert manifest is not None
    assert manifest.input == f"{tmp_path}/caf\\xe9.mp4"


@pytest.fixture
def done(tmp_path: Path) -> Job:
    """A job whose results are complete under the settings "s"."""
    job = Job(tmp_path / "clip.mp4", tmp_path / "out/clip.mp4")
    touch(job.input, job.folder / "poses.jsonl")
    msgspec.structs.replace(started(job, "s"), state="done", outputs=("poses.jsonl",)).write(job.folder)
    return job


def test_complete_results_are_not_made_again(done: Job) -> None:
    assert not prepare(done, "s", overwrite=False)
    assert not prepare(done, "s", overwrite=True)


def test_results_of_other_settings_or_of_a_changed_input_are_overwritten_only_when_told(done: Job) -> None:
    with pytest.raises(OutputError, match="other settings or weights"):
        prepare(done, "t", overwrite=False)
    assert prepare(done, "t", overwrite=True)
    done.input.write_bytes(b"longer")
    with pytest.raises(OutputError, match="input that has changed"):
        prepare(done, "s", overwrite=False)


def test_incomplete_results_are_made_again(done: Job) -> None:
    (done.folder / "poses.jsonl").unlink()
    assert prepare(done, "s", overwrite=False)
    for state in ("started", "failed"):
        msgspec.structs.replace(started(done, "other"), state=state).write(done.folder)
        assert prepare(done, "s", overwrite=False)


def test_files_that_no_batch_wrote_are_left_alone(tmp_path: Path) -> None:
    job = Job(tmp_path / "clip.mp4", tmp_path / "out/clip.mp4")
    touch(job.input, job.folder / "poses.jsonl")
    with pytest.raises(OutputError, match="no batch wrote"):
        prepare(job, "s", overwrite=False)
    (job.folder / "manifest.json").write_text("{")
    with pytest.raises(OutputError, match="no batch wrote"):
        prepare(job, "s", overwrite=False)
    assert Manifest.read(job.folder) is None
    assert prepare(job, "s", overwrite=True)


def test_a_folder_is_held_by_one_batch_at_a_time(tmp_path: Path) -> None:
    with locked(tmp_path / "x"), pytest.raises(OutputError, match="another batch works on it"), locked(tmp_path / "x"):
        pass
    with pytest.raises(OutputError, match="what went wrong"), locked(tmp_path / "x"):
        raise OutputError("what went wrong")
    assert not list((tmp_path / "x").iterdir())
