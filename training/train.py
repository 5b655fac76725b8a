"""Train: python -m training.train RECIPE --data FOLDER --out FOLDER; with torchrun, in several processes.

The same command continues an interrupted run, as long as --out is the same.
"""

import logging
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from training.memory import keep_freed_memory
from training.recipe import Recipe, load_recipe
from training.trainer import Trainer

SHOWN = ("total", "last/label", "last/point_l1", "last/oks", "last/giou", "dense")
NARROW = ("NO AVX", "AVX2")
"""Results of `get_cpu_capability` for processors on which bf16 in PyTorch is many times slower than fp32."""

logger = logging.getLogger(__name__)


def warn_of_slow_bf16(recipe: Recipe) -> None:
    """Warn if this processor is slow with the precision of the recipe, and say what to change."""
    if recipe.precision == "bf16" and torch.backends.cpu.get_cpu_capability() in NARROW:
        logger.warning('bf16 is many times slower than fp32 on this processor: set precision = "fp32" in the recipe')


def main(
    recipe: Annotated[Path, typer.Argument(help="TOML file, see training/recipes")],
    data: Annotated[Path, typer.Option(help="folder of image caches, see training.data.build")],
    out: Annotated[Path, typer.Option(help="folder of the run; an interrupted run continues")],
    stop_at: Annotated[int | None, typer.Option(help="stop after this step and save")] = None,
    workers: Annotated[
        int, typer.Option(help="processes that draw canvases ahead; beside a GPU, as many as there are cores", min=0)
    ] = 0,
) -> None:
    """Run a recipe."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        trainer = Trainer(load_recipe(recipe), data, out, workers)
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(str(error)) from error
    if trainer.processes.device.type == "cpu":
        keep_freed_memory()
        warn_of_slow_bf16(trainer.recipe)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=trainer.processes.rank != 0) as progress:
        task = progress.add_task("training", total=trainer.recipe.steps, completed=trainer.step)
        started, images = time.monotonic(), 0

        def show(step: int, log: dict[str, float]) -> None:
            nonlocal images
            phase, _ = trainer.recipe.phase_at(step - 1)
            images += phase.batch * phase.accumulate
            rate = images / (time.monotonic() - started)
            text = "  ".join(f"{name} {log[name]:.3f}" for name in SHOWN if name in log)
            progress.update(task, completed=step, description=f"{rate:.1f} images/s  {text}")
            if step % 20 == 0:
                logger.info("step %d  %.1f images/s  %s", step, rate, text)

        trainer.run(show, stop_at)


if __name__ == "__main__":
    typer.run(main)
