"""Build image caches: python -m training.data.build lspet|synthetic|coco … ; see `--help` of each."""

import logging
import tomllib
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from engines.skeletons import load_skeleton
from pipeline.synthetic import SceneConfig
from training.data.cache import write_cache
from training.data.coco import read_coco_keypoints
from training.data.lspet import read_lspet
from training.data.sample import ReaderReport
from training.data.synthetic import read_synthetic

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
    report = ReaderReport()
    _finish(target, write_cache(target, read_lspet(source, split, report), 9500, side), report)


@app.command()
def synthetic(recipe: Path, target: Path, side: Side = 256) -> None:
    """Render the scenes of a TOML file, for example training/recipes/synthetic_train.toml."""
    settings, config = load_synthetic_set(recipe)
    written = write_cache(target, read_synthetic(config, settings.first_seed, settings.count), settings.count, side)
    _finish(target, written, ReaderReport(images=written))


@app.command()
def coco(annotations: Path, images: Path, skeleton: str, target: Path, side: Side = 640) -> None:
    """Any COCO-format keypoint file; SKELETON is a published list's name or the path of a TOML file."""
    report = ReaderReport()
    samples = list(read_coco_keypoints(annotations, images, load_skeleton(skeleton), skeleton, report))
    _finish(target, write_cache(target, samples, len(samples), side), report)


def _finish(target: Path, written: int, report: ReaderReport) -> None:
    (target / "problems.txt").write_text("\n".join(report.problems))
    print(f"{target}: {written} images, {report.instances} instances, {len(report.problems)} problems")
    for problem in report.problems[:20]:
        print(f"  {problem}")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    app()
