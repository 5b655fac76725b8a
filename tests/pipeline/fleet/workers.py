"""Workers for tests: no engine, and files that tell what to do."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec

from pipeline.fleet.jobs import Job, locked, prepare, started
from pipeline.fleet.worker import Outcome


@dataclass
class StandIn:
    """Writes a line per job. The input's text may be "die", "die once", "fail" or "sleep"."""

    threads: int

    def run(self, job: Job) -> Outcome:
        with locked(job.folder):
            if not prepare(job, "stand-in", overwrite=False):
                return Outcome(job, "skipped")
            started(job, "stand-in").write(job.folder)
            text = job.input.read_text()
            if text == "die" or (text == "die once" and not (job.folder / "died").exists()):
                (job.folder / "died").touch()
                os._exit(9)
            if text == "fail":
                return Outcome(job, "failed", error="is no video")
            if text == "sleep":
                time.sleep(0.5)
            with (job.folder / "poses.jsonl").open("a") as file:
                file.write(f"{os.getpid()}\n")
            stat = job.input.stat()
            manifest = started(job, "stand-in")
            type(manifest)("done", "stand-in", manifest.input, stat.st_size, stat.st_mtime_ns, ("poses.jsonl",)).write(
                job.folder
            )
            return Outcome(job, "done", 1)


def refuse(threads: int) -> StandIn:
    """Fail as a worker fails whose weights are absent."""
    raise ValueError("no weights")


@dataclass
class Logging:
    """Makes stand-ins that leave their process id in `folder/pids` and a line in `folder/finished` for each file."""

    folder: Path

    def __call__(self, threads: int) -> "Logging":
        (self.folder / "pids" / str(os.getpid())).touch()
        return self

    def run(self, job: Job) -> Outcome:
        """Do a job; a death in it leaves the manifest as it was, or complete."""
        with locked(job.folder):
            if not prepare(job, "logging", overwrite=False):
                return Outcome(job, "skipped")
            manifest = started(job, "logging")
            manifest.write(job.folder)
            (job.folder / "poses.jsonl").write_text("pose\n")
            time.sleep(0.02)  # so that deaths fall into the middle of a file
            msgspec.structs.replace(manifest, state="done", outputs=("poses.jsonl",)).write(job.folder)
            with (self.folder / "finished").open("a") as file:
                file.write(f"{job.input.name}\n")
            return Outcome(job, "done", 1)
