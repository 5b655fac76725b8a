"""The files of a batch, and the folder of results that each of them gets.

The folder structure of the inputs is kept: for the folder `videos`, the results of `videos/a/clip.mp4` are in
`OUT/a/clip.mp4/`. A manifest in each folder of results names the input and a hash of the settings. Complete results are
not made again. Results of other settings are overwritten only with `--overwrite`.
"""

from __future__ import annotations

import fcntl
import fnmatch
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from pipeline.errors import ConfigError, OutputError
from pipeline.fleet.places import Place
from pipeline.names import readable
from pipeline.sources.addresses import RECORDING_SUFFIXES

VIDEO_PATTERNS = tuple(f"*{suffix}" for suffix in sorted(RECORDING_SUFFIXES | {".ts"}))
"""A file that ends with .ts is a recording; from a server it may be a stream without an end."""
MANIFEST = "manifest.json"
POSES = "poses.jsonl"
_LOCK = ".lock"


@dataclass(frozen=True)
class Job:
    """One input file and its folder of results."""

    input: Path
    folder: Place


class Manifest(msgspec.Struct, frozen=True):
    """Describes a folder of results.

    Attributes:
        state: "started", then "done" or "failed".
        settings: hash of everything that can change the results: configuration, prompts, weights, kinds of outputs.
        input: path of the input; a byte that is not UTF-8 is written as \\xNN.
        input_bytes: size of the input.
        input_modified_ns: time of the input's last change, ns since 1970.
        outputs: names of the files, relative to the folder.
        frames: frames that were processed.
        error: why it failed, one sentence; "" otherwise.
    """

    state: Literal["started", "done", "failed"]
    settings: str
    input: str
    input_bytes: int
    input_modified_ns: int
    outputs: tuple[str, ...] = ()
    frames: int = 0
    error: str = ""

    @classmethod
    def read(cls, folder: Place) -> Manifest | None:
        """Return the manifest of a folder; None if there is none that can be read."""
        try:
            return msgspec.json.decode((folder / MANIFEST).read_bytes(), type=cls)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            return None

    def write(self, folder: Place) -> None:
        """Replace the manifest of a folder in one step: readers see the old one or the new one."""
        data = msgspec.json.format(msgspec.json.encode(self), indent=1)
        if not isinstance(folder, Path):  # object storage replaces whole objects
            folder.mkdir(parents=True, exist_ok=True)
            (folder / MANIFEST).write_bytes(data)
            return
        partial = folder / f".{MANIFEST}.{os.getpid()}"
        partial.write_bytes(data)
        partial.replace(folder / MANIFEST)


def find_jobs(inputs: Sequence[str], out: Place, patterns: Sequence[str] = VIDEO_PATTERNS) -> list[Job]:
    """Return a job for each file, sorted by path, each file once.

    Args:
        inputs: files; folders, searched recursively; `@list.txt`, a file with a path in each line.
        out: folder for the results.
        patterns: names of files to take from folders, such as "*.mp4"; the case of letters does not matter.
    Raises:
        ConfigError: an input does not exist, nothing matches, or two inputs would share a folder of results.
    """
    jobs: dict[Place, Job] = {}
    inside = out.resolve() if isinstance(out, Path) else None
    for path in _expanded(inputs):
        if path.is_dir():
            found = sorted(file for file in path.rglob("*") if _matches(file.name, patterns) and file.is_file())
            for file in found:
                if inside not in file.resolve().parents:  # results of an earlier batch are no inputs
                    _add(jobs, Job(file, out / file.relative_to(path)))
        elif path.exists():
            _add(jobs, Job(path, out / path.name))
        else:
            raise ConfigError(f"{path}: there is no such file or folder")
    if not jobs:
        raise ConfigError(f"no file in {', '.join(inputs)} matches {', '.join(patterns)}; give --pattern")
    return [jobs[folder] for folder in sorted(jobs, key=str)]


def prepare(job: Job, settings: str, *, overwrite: bool) -> bool:
    """Return whether the job has to be done; False if its results are complete.

    Raises:
        OutputError: the folder holds something that this batch may not overwrite.
    """
    manifest = Manifest.read(job.folder)
    if manifest is None:
        if job.folder.exists() and any(entry.name != _LOCK for entry in job.folder.iterdir()) and not overwrite:
            raise OutputError(f"{job.folder}: holds files that no batch wrote; choose another --out, or --overwrite")
        return True
    stat = job.input.stat()
    same_input = (manifest.input_bytes, manifest.input_modified_ns) == (stat.st_size, stat.st_mtime_ns)
    complete = manifest.state == "done" and all((job.folder / name).is_file() for name in manifest.outputs)
    if complete and same_input and manifest.settings == settings:
        return False
    if complete and not overwrite:
        changed = "settings or weights" if same_input else "an input that has changed"
        raise OutputError(f"{job.folder}: holds results of other {changed}; choose another --out, or --overwrite")
    return True


@contextmanager
def locked(folder: Place) -> Iterator[None]:
    """Lock the folder for this process. If the process dies, the lock is released. Object storage has no locks.

    Raises:
        OutputError: another batch has locked it, or it cannot be created.
    """
    if not isinstance(folder, Path):
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / _LOCK).open("w")
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror}); choose another --out") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(f"{folder}: another batch works on it; wait for its end") from error
        try:
            yield
        finally:
            (folder / _LOCK).unlink(missing_ok=True)


def started(job: Job, settings: str) -> Manifest:
    """Return the manifest for the start of a job."""
    stat = job.input.stat()
    return Manifest("started", settings, readable(str(job.input)), stat.st_size, stat.st_mtime_ns)


def _expanded(inputs: Sequence[str]) -> Iterator[Path]:
    for text in inputs:
        if not text.startswith("@"):
            yield Path(text)
            continue
        try:
            lines = Path(text[1:]).read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        except OSError as error:
            raise ConfigError(f"{text}: the list cannot be read ({error.strerror})") from error
        yield from (Path(line.strip()) for line in lines if line.strip() and not line.startswith("#"))


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name.lower(), pattern.lower()) for pattern in patterns)


def _add(jobs: dict[Place, Job], job: Job) -> None:
    other = jobs.setdefault(job.folder, job)
    if other.input.resolve() != job.input.resolve():
        raise ConfigError(
            f"{other.input} and {job.input} would both write to {job.folder}; give their common folder as input, or "
            "run two batches"
        )
