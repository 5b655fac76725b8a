"""Build image caches: python -m training.data.build lspet|synthetic|coco|index … ; see `--help` of each."""

import logging
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import typer

from engines.skeletons import load_skeleton
from pipeline.synthetic import SceneConfig
from training.data.cache import write_cache
from training.data.records import read_records
from training.data.synthetic import read_synthetic
from training.unikpt.catalogue import LSPET
from training.unikpt.checks import Candidate, checked, ignore_regions
from training.unikpt.coco_layout import CocoRules, load_json, read_coco_layout, split_of
from training.unikpt.images import ImageFinder
from training.unikpt.index import load_index
from training.unikpt.schema import InstanceRecord, Record, Report

EXTRA_PEOPLE = "extra_people.json"
EXTRA_KINDS = ("bystander", "unclear")
LEAST_KEYPOINT_SCORE = 0.35  # minimum score of a machine-made keypoint that becomes a label
BODY_SHARE = 0.53  # fraction of a box that a person covers: the median of COCO's segments

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Build an image cache for training or evaluation.")
Side = Annotated[int, typer.Option(help="longer side in the cache, pixels; larger images are scaled down")]


class SyntheticSet(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A set of scenes, one per seed, starting with `first_seed`; `scene` contains fields of `SceneConfig`."""

    first_seed: int
    count: int
    scene: dict[str, Any] = {}


def load_synthetic_set(path: Path) -> tuple[SyntheticSet, SceneConfig]:
    """Read the TOML file of a set of scenes.

    Raises:
        ValueError: a key is unknown, or `SceneConfig` refuses a value. The message names the file.
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
def lspet(
    source: Path,
    target: Path,
    split: str = "train",
    side: Side = 256,
    teach_extra: Annotated[bool, typer.Option(help="label extra people whose machine-made pose is usable")] = False,
) -> None:
    """Leeds Sports Pose Extended: SOURCE is the folder with annotations_SPLIT.json and the zip shards.

    Unlabelled people become ignore regions if the folder has extra_people.json.
    """
    report = Report()
    records = list(read_coco_layout(source / f"annotations_{split}.json", ImageFinder(source), LSPET, report))
    if (source / EXTRA_PEOPLE).exists():
        records = with_extra_people(records, load_json(source / EXTRA_PEOPLE), teach_extra)
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
    """Any COCO-format keypoint file; SKELETON is the name of a published list or the path of a TOML file."""
    load_skeleton(skeleton)
    report = Report()
    rules = CocoRules(annotations.stem, skeleton)
    _write(target, list(read_coco_layout(annotations, ImageFinder(images), rules, report)), report, side)


@app.command()
def negatives(annotations: Path, images: Path, target: Path, side: Side = 640) -> None:
    """Photographs that do not show some category: only `images` of the COCO file ANNOTATIONS is read.

    A recipe names the absent categories (`absent` of its source).
    """
    report, finder, records = Report(), ImageFinder(images), list[Record]()
    for entry in load_json(annotations)["images"]:
        found = finder.find(entry["file_name"], entry.get("shard"))
        if found is None:
            report.add("image missing", annotations, entry.get("id"), f"{entry['file_name']!r} is not there")
            continue
        size = (int(entry["width"]), int(entry["height"]))
        records.append(Record(annotations.stem, split_of(annotations), found.path, *size, (), found.archive))
    _write(target, records, report, side)


@app.command()
def index(source: Path, target: Path, split: str = "", side: Side = 640) -> None:
    """The index that `python -m training.unikpt --index` wrote; --split selects the records of one split."""
    records = [record for record in load_index(source) if split in ("", record.split)]
    _write(target, records, Report(), side)


def with_extra_people(records: list[Record], table: dict[str, Any], teach: bool) -> list[Record]:
    """Add ignore regions from a file of boxes in COCO's layout, by file name.

    Boxes of the kind "labelled person or a part" are skipped, because they are on the labelled person.

    Args:
        teach: label the people whose pose is marked as usable, instead of ignoring them.
    """
    extra: dict[str, list[dict[str, Any]]] = {}
    for annotation in table["annotations"]:
        if annotation.get("kind") in EXTRA_KINDS:
            extra.setdefault(annotation["file_name"], []).append(annotation)
    added = []
    for record in records:
        taught, ignored = [], []
        for annotation in extra.get(record.image_path.name, []):
            person = _extra_person(annotation, record) if teach and annotation.get("pose_usable") else None
            if person is None:
                ignored.append(annotation["bbox"])
            else:
                taught.append(person)
        ignore = record.ignore + ignore_regions(ignored, record.width, record.height)
        added.append(replace(record, instances=(*record.instances, *taught), ignore=ignore))
    return added


def _extra_person(annotation: dict[str, Any], record: Record) -> InstanceRecord | None:
    keypoints_K3 = np.array(annotation["keypoints"], np.float32).reshape(-1, 3)
    keypoints_K3[:, 2] = np.where(keypoints_K3[:, 2] >= LEAST_KEYPOINT_SCORE, 2.0, 0.0)
    x, y, wide, tall = annotation["bbox"]
    candidate = Candidate("person", "person", (x, y, wide, tall), keypoints_K3, BODY_SHARE * wide * tall, "extra")
    return checked(candidate, record.width, record.height, record.image_path, Report())


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
