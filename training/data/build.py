"""Build image caches: python -m training.data.build lspet|synthetic|coco|index … ; see `--help` of each."""

import logging
import tomllib
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from engines.skeletons import load_skeleton
from pipeline.synthetic import SceneConfig
from training.data.cache import write_cache
from training.data.records import read_records
from training.data.synthetic import read_synthetic
from training.unikpt.catalogue import LSPET
from training.unikpt.coco_layout import CocoRules, read_coco_layout
from training.unikpt.images import ImageFinder
from training.unikpt.index import load_index
from training.unikpt.schema import Record, Report

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Build an image cache for training or evaluation.")
Side = Annotated[int, typer.Option(help="longer side in the cache, pixels; larger images shrink to it")]


class SyntheticSet(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which scenes: one per seed from `first_seed` on; `scene` holds fields of `SceneConfig`."""

    first_seed: int
    count: int
    scene: dict[str, Any] = {}


def load_synthetic_set(path: Path) -> tuple[SyntheticSet, SceneConfig]:
    """Read a scene set's TOML file.

    Raises:
        ValueError: an unknown key, or a value that `SceneConfig` refuses; the message names the file.
    """
    try:
        settings = msgspec.convert(tomllib.loads(path.read_text()), SyntheticSet)
        pairs: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in settings.scene.items()
        }
        return settings, SceneConfig(**pairs)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


@app.command()
def lspet(source: Path, target: Path, split: str = "train", side: Side = 256) -> None:
    """Leeds Sports Pose Extended: SOURCE is the folder with annotations_SPLIT.json and the zip shards."""
    report = Report()
    records = list(read_coco_layout(source / f"annotations_{split}.json", ImageFinder(source), LSPET, report))
    _write(target, records, report, side)


@app.command()
def synthetic(
    recipe: Path,
    target: Path,
    side: Side = 256,
    workers: Annotated[int, typer.Option(help="processes that render; 0 renders in this one", min=0)] = 0,
) -> None:
    """Render the scenes of a TOML file, for example training/recipes/synthetic_train.toml."""
    settings, config = load_synthetic_set(recipe)
    scenes = read_synthetic(config, settings.first_seed, settings.count, workers)
    written = write_cache(target, scenes, settings.count, side)
    _finish(target, written, Report())


@app.command()
def coco(annotations: Path, images: Path, skeleton: str, target: Path, side: Side = 640) -> None:
    """Any COCO-format keypoint file; SKELETON is a published list's name or the path of a TOML file."""
    load_skeleton(skeleton)
    report = Report()
    rules = CocoRules(annotations.stem, skeleton)
    _write(target, list(read_coco_layout(annotations, ImageFinder(images), rules, report)), report, side)


@app.command()
def index(source: Path, target: Path, split: str = "", side: Side = 640) -> None:
    """The index that `python -m training.unikpt --index` wrote; --split keeps the records of one split."""
    records = [record for record in load_index(source) if split in ("", record.split)]
    _write(target, records, Report(), side)


def _write(target: Path, records: list[Record], report: Report, side: int) -> None:
    _finish(target, write_cache(target, read_records(records, report), len(records), side), report)


def _finish(target: Path, written: int, report: Report) -> None:
    problems = [str(problem) for problem in report.problems]
    (target / "problems.txt").write_text("\n".join(problems))
    print(f"{target}: {written} images, {len(problems)} problems")
    for problem in problems[:20]:
        print(f"  {problem}")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    app()
