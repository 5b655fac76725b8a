"""The worker of a batch: it loads the engine once, then processes one file after another."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from pipeline.errors import ERRORS, PipelineError
from pipeline.fleet.jobs import POSES, Job, locked, prepare, started
from pipeline.fleet.places import upload, working_folder
from pipeline.names import readable
from pipeline.outputs.convert import FORMATS, PoseLines, convert

if TYPE_CHECKING:
    from engines.prompts import PromptClass
    from pipeline.config import PipelineConfig

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class BatchSettings:
    """What a batch does with each file.

    Attributes:
        pipeline: settings of the pipeline.
        prompts: classes to look for.
        video: whether an annotated video is written.
        exports: formats of `pipeline.outputs.convert` to write in addition.
        overwrite: whether results of other settings, and files that no batch wrote, may be overwritten.
    """

    pipeline: PipelineConfig
    prompts: tuple[PromptClass, ...]
    video: bool = False
    exports: tuple[str, ...] = ()
    overwrite: bool = False


@dataclass(frozen=True)
class Outcome:
    """The result of a job.

    Attributes:
        state: "done"; "skipped", because its results were complete; or "failed".
        frames: frames that were processed.
        error: why it failed, one sentence; "" otherwise.
    """

    job: Job
    state: Literal["done", "skipped", "failed"]
    frames: int = 0
    error: str = ""


class Worker:
    """Has an engine for the whole life of a process.

    Args:
        settings: what to do with each file.
        threads: CPU threads of this worker; 0 for PyTorch's default.
    """

    def __init__(self, settings: BatchSettings, threads: int = 0) -> None:
        import torch

        from engines.engine import Engine

        if threads:
            torch.set_num_threads(threads)
        self._settings = settings
        self._identity = identity(settings)
        self._engine = Engine(settings.pipeline.engine_of_pipeline)

    def run(self, job: Job) -> Outcome:
        """Do one job. If anything is wrong with the file, the outcome is "failed" with a sentence."""
        try:
            with locked(job.folder):
                if not prepare(job, self._identity, overwrite=self._settings.overwrite):
                    return Outcome(job, "skipped")
                return self._process(job)
        except (*ERRORS, OSError) as error:
            return Outcome(job, "failed", error=str(error))
        except MemoryError:
            return Outcome(job, "failed", error=f"{job.input}: there was not enough memory; give fewer --workers")

    def _process(self, job: Job) -> Outcome:
        manifest = started(job, self._identity)
        manifest.write(job.folder)
        try:
            with working_folder(job.folder) as folder:
                outputs, frames = self._make(job.input, folder)
                upload(folder, job.folder)
        except ERRORS as error:
            msgspec.structs.replace(manifest, state="failed", error=readable(str(error))).write(job.folder)
            raise
        msgspec.structs.replace(manifest, state="done", outputs=outputs, frames=frames).write(job.folder)
        return Outcome(job, "done", frames)

    def _make(self, video: Path, folder: Path) -> tuple[tuple[str, ...], int]:
        """Write the results of a video into a folder; return their names, and the number of frames."""
        from pipeline.flow.pipeline import Pipeline

        settings, poses = self._settings, folder / POSES
        pipeline = Pipeline(settings.pipeline, poses=poses, video=folder / "annotated.mp4" if settings.video else None)
        pipeline.add(str(video))
        result = pipeline.run(self._engine, settings.prompts)
        if result.broken:
            raise PipelineError("; ".join(result.broken))
        exported = [folder / f"poses{FORMATS[kind][0]}" for kind in settings.exports]
        for kind, path in zip(settings.exports, exported, strict=True):
            convert(PoseLines(poses), kind, path)
        return tuple(path.name for path in (*result.outputs, *exported)), result.published


def identity(settings: BatchSettings) -> str:
    """Return the hash of everything that can change the results: configuration, prompts, weights, kinds of outputs."""
    from engines.checkpoint import RANDOM, default_weights
    from engines.folders import expanded

    digest = hashlib.sha256()
    engine = settings.pipeline.engine
    digest.update(repr((settings.pipeline, settings.video, sorted(settings.exports))).encode())
    for prompt in settings.prompts:
        digest.update(repr((prompt.name, prompt.skeleton, prompt.object_from, prompt.keypoints_from)).encode())
        for example in prompt.examples:
            digest.update(example.rgb_HW3.tobytes() + example.keypoints_K3.tobytes() + repr(example.box_xyxy).encode())
    weights = expanded(engine.weights) if engine.weights else default_weights(engine.model)
    if engine.weights != RANDOM:
        with weights.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()[:32]


def threads_per_worker(workers: int) -> int:
    """Divide this machine's cores among the workers; each gets at least one."""
    return max(1, (os.cpu_count() or 1) // workers)
