"""The commands `batch` and `fleet`."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from pipeline.options import (
    Backend,
    Keypoints,
    Model,
    Overrides,
    Preset,
    Prompt,
    PromptAnnotation,
    PromptFrom,
    PromptImage,
    Weights,
    parse_prompts,
)


def batch(
    inputs: Annotated[list[str], typer.Argument(help="Files, folders, or @list.txt with a path in each line.")],
    out: Annotated[Path, typer.Option(help="Folder for the results; one folder in it for each input.")],
    pattern: Annotated[
        list[str] | None, typer.Option(help="Files to take from folders, such as '*.mp4'; by default all videos.")
    ] = None,
    workers: Annotated[int, typer.Option(help="Files at a time; 0 chooses.")] = 0,
    video: Annotated[bool, typer.Option("--video", help="Write an annotated video of each input.")] = False,
    export: Annotated[
        list[str] | None, typer.Option(help="Also convert to csv, parquet, coco, sleap or dlc; give several times.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace results of other settings.")] = False,
    ray: Annotated[str, typer.Option(help="Run on a Ray cluster: its address, or local.")] = "",
    cpus: Annotated[float, typer.Option(help="Cores that a file takes on Ray.")] = 1.0,
    gpus: Annotated[float, typer.Option(help="GPUs that a file takes on Ray; 0.5 puts two on one.")] = 0.0,
    prompt: Prompt = "person",
    keypoints: Keypoints = None,
    prompt_image: PromptImage = None,
    prompt_annotation: PromptAnnotation = None,
    prompt_from: PromptFrom = "example",
    model: Model = None,
    weights: Weights = None,
    backend: Backend = None,
    config: Preset = None,
    set_: Overrides = None,
) -> None:
    """Process many files; an interrupted batch goes on where it stopped."""
    from pipeline.config import load_config
    from pipeline.fleet.batch import Workers, run_batch
    from pipeline.fleet.jobs import VIDEO_PATTERNS, find_jobs
    from pipeline.fleet.worker import BatchSettings

    flags = {
        "--model": ("engine.model", model),
        "--weights": ("engine.weights", weights),
        "--backend": ("engine.backend", backend),
    }
    settings = load_config(config, set_ or (), flags)
    jobs = find_jobs(inputs, out, pattern or VIDEO_PATTERNS)
    prompts = parse_prompts(settings.engine, prompt, keypoints, prompt_image, prompt_annotation, prompt_from)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    wanted = BatchSettings(settings, prompts, video, tuple(export or ()), overwrite)
    sys.exit(run_batch(jobs, wanted, Workers(workers, ray, cpus, gpus), Console(stderr=True)))
