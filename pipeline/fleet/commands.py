"""The commands `batch`, `fleet FILE` and `fleet status`."""

from __future__ import annotations

import dataclasses
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from pipeline import standard_output
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
    out: Annotated[str, typer.Option(help="Folder for the results, or object storage such as s3://bucket/folder.")],
    pattern: Annotated[
        list[str] | None, typer.Option(help="Files to take from folders, such as '*.mp4'; by default all videos.")
    ] = None,
    workers: Annotated[int, typer.Option(help="Files at the same time; 0 chooses a number.")] = 0,
    video: Annotated[bool, typer.Option("--video", help="Write an annotated video of each input.")] = False,
    export: Annotated[
        list[str] | None,
        typer.Option(help="Also convert to csv, parquet, coco, sleap or dlc; may be given several times."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace results of other settings, and foreign files.")
    ] = False,
    ray: Annotated[str, typer.Option(help="Run on a Ray cluster: its address, or local.")] = "",
    cpus: Annotated[float, typer.Option(help="Cores that each file takes on Ray.")] = 1.0,
    gpus: Annotated[float, typer.Option(help="GPUs that each file takes on Ray; with 0.5, two share a GPU.")] = 0.0,
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
    """Process many files. An interrupted batch continues where it stopped."""
    from pipeline.config import load_config
    from pipeline.fleet.batch import Workers, run_batch
    from pipeline.fleet.jobs import VIDEO_PATTERNS, find_jobs
    from pipeline.fleet.places import place_of
    from pipeline.fleet.worker import BatchSettings

    flags = {
        "--model": ("engine.model", model),
        "--weights": ("engine.weights", weights),
        "--backend": ("engine.backend", backend),
    }
    settings = load_config(config, set_ or (), flags)
    jobs = find_jobs(inputs, place_of(out), pattern or VIDEO_PATTERNS)
    prompts = parse_prompts(settings.engine, prompt, keypoints, prompt_image, prompt_annotation, prompt_from)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    wanted = BatchSettings(settings, prompts, video, tuple(export or ()), overwrite)
    sys.exit(run_batch(jobs, wanted, Workers(workers, ray, cpus, gpus), Console(stderr=True)))


class _FileOrCommand(TyperGroup):
    """`fleet FILE` means `fleet run FILE`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            args = ["run", *args]
        return super().parse_args(ctx, args)


fleet = typer.Typer(
    help="Cameras spread over the machines of a Ray cluster: `fleet FILE`, `fleet status`.",
    cls=_FileOrCommand,
    no_args_is_help=True,
)


@fleet.command()
def run(
    file: Annotated[Path, typer.Argument(help="TOML file with the cameras; it is read again when it changes.")],
    ray: Annotated[str, typer.Option(help="Ray cluster: its address, or local for one on this machine.")] = "local",
) -> None:
    """Run the cameras of a file on a Ray cluster, until SIGINT or SIGTERM."""
    from pipeline.config import load_config
    from pipeline.fleet.cameras import WorkerSettings, engine_of
    from pipeline.fleet.config import read_fleet
    from pipeline.fleet.ray_cluster import connected
    from pipeline.fleet.supervisor import Fleet
    from pipeline.service.operations import describe

    config = read_fleet(file)
    threads = (
        "engine.threads",
        None if any("engine.threads" in text for text in config.set) else max(1, int(config.cpus)),
    )
    flags = {"cpus": threads, "keys": ("keys.folder", config.keys or None)}
    settings = load_config(Path(config.config) if config.config else None, config.set, flags)
    prompts = parse_prompts(settings.engine, config.prompt, config.keypoints)
    publish = dataclasses.replace(settings.publish, endpoint=config.publish)
    signals: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: signals.append(number))
    with connected(ray) as library:
        made = Fleet(
            library,
            config,
            lambda proxy: WorkerSettings(settings, prompts, proxy, engine_of, describe),
            publish,
            file.absolute(),
            settings.keys.folder,
        )
        Console(stderr=True).print(
            f"publishing on {made.endpoint}, directory on {made.directory}", soft_wrap=True, highlight=False
        )
        made.run(lambda: bool(signals))


@fleet.command()
def status(
    directory: Annotated[str, typer.Argument(help="`directory` in the fleet's file.")] = "tcp://127.0.0.1:5556",
    keys: Annotated[Path | None, typer.Option(help="Key file of this client, if the fleet uses keys.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print the state and the worker of each camera of a running fleet."""
    import msgspec

    from pipeline.fleet.directory import ask

    found = ask(directory, keys=keys)
    if json:
        standard_output.write(msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n")
        return
    cameras = Table("camera", "state", "frames/s", "worker", "moves", "error", title=f"cameras on {found.publish}")
    for camera in found.cameras:
        worker = "" if camera.worker is None else f"{camera.worker}: {camera.endpoint}"
        rate = f"{camera.frame_rate:.1f}"
        cameras.add_row(camera.name, camera.state, rate, worker, str(camera.moves), camera.error or "")
    workers = Table("worker", "state", "machine", "load of capacity, frames/s", "error", title="workers")
    for each in found.workers:
        load = f"{each.load_fps:.0f} of {each.capacity_fps:.0f}"
        workers.add_row(str(each.number), each.state, each.host, load, each.error or "")
    standard_output.show(lambda console: console.print(cameras, workers))
