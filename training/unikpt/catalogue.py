"""The thirteen data sets of UniKPT: published figures, file names and readers.

| slug | reads | has met |
|---|---|---|
| coco | `person_keypoints_*.json` (native) | real native files |
| 300w | COCO-style JSON, or .pts files (native) | the JSON; no real .pts |
| onehand10k | COCO-style JSON, or `label_joint.txt` (native) | the JSON; no real `label_joint.txt` |
| humanart | JSON (native) | real native files |
| ap10k | JSON (native) | real native files |
| apt36k | JSON (native) | **no real file** |
| macaque | COCO-style JSON, or `annotations.csv` (native) | the JSON; no real CSV |
| animalkingdom | JSON (native) | real native files |
| animalweb | .pts files (native) | **no real file** |
| fly, locust | COCO-style JSON, or DeepPoseKit's `*.h5` with `skeleton.csv` (native) | the JSON; no real .h5 |
| keypoint5 | `<class>/coords.mat` (native) | **no real file** |
| mp100 | JSON (native layout) | its DeepFashion2 and AFLW parts as COCO-style JSON; no split file |
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from training.unikpt import native
from training.unikpt.coco_layout import CocoRules, read_coco_layout
from training.unikpt.images import HDF5_SUFFIX, ImageFinder
from training.unikpt.schema import AnnotationFileError, Record, Report


@dataclass(frozen=True)
class Published:
    """A row of the table in UniKPT's README: keypoints, classes, images and instances, original and unified."""

    keypoints: str
    classes: int
    images: int
    instances: int
    unified_images: int
    unified_instances: int


TableReader = Callable[[Path, ImageFinder, Report], Iterator[Record]]


@dataclass(frozen=True)
class DataSet:
    """One source.

    Attributes:
        folders: possible names of its folder below the data root; wildcards are allowed.
        files: patterns for the names of annotation files in COCO's layout.
        tables: annotation files of another format, with their reader.
        points: whether .pts files are read.
        no_real_file: True if its readers were never tested on a real file.
    """

    slug: str
    title: str
    published: Published
    rules: CocoRules
    folders: tuple[str, ...]
    files: tuple[str, ...]
    tables: tuple[tuple[str, TableReader], ...] = ()
    points: bool = False
    no_real_file: bool = False


_CUT_OUT = ("test_{slug}*.json", "*{slug}*train*.json", "*{slug}*val*.json", "*{slug}*test*.json")


def _patterns(slug: str, *more: str) -> tuple[str, ...]:
    return (*more, *(pattern.format(slug=slug) for pattern in _CUT_OUT))


def _hdf5(dataset: str, category: str) -> tuple[tuple[str, TableReader], ...]:
    reader = functools.partial(native.read_deepposekit, dataset=dataset, category=category)
    return ((f"*{HDF5_SUFFIX}", reader),)


DATA_SETS: tuple[DataSet, ...] = (
    DataSet(
        "coco", "COCO", Published("17", 1, 58_945, 156_165, 58_945, 156_165),
        CocoRules("coco", "person", "person"), ("coco",),
        ("person_keypoints_*.json", "test_coco.json", "test_coco_open.json"),
    ),
    DataSet(
        "300w", "300W-Face", Published("68", 1, 3_837, 4_437, 3_837, 4_437),
        CocoRules("300w", "face", "face"), ("300w",), _patterns("300w"), points=True,
    ),
    DataSet(
        "onehand10k", "OneHand10K", Published("21", 1, 11_703, 11_289, 2_000, 2_000),
        CocoRules("onehand10k", "hand", "hand"),
        ("onehand10k", "OneHand10K"), _patterns("onehand10k"),
        (("label_joint.txt", native.read_onehand10k_table),),
    ),
    DataSet(
        "humanart", "Human-Art", Published("17", 1, 50_000, 123_131, 50_000, 123_131),
        CocoRules("humanart", "person", "person"), ("humanart", "HumanArt"),
        ("training_humanart.json", "validation_humanart.json", "test_humanart.json", "test_humanart_open.json"),
    ),
    DataSet(
        "ap10k", "AP-10K", Published("17", 54, 10_015, 13_028, 10_015, 13_028),
        CocoRules("ap10k", "animal_in_AP10K"), ("ap10k", "ap-10k"), _patterns("ap10k", "ap10k-*.json"),
    ),
    DataSet(
        "apt36k", "APT-36K", Published("17", 30, 36_000, 53_006, 36_000, 53_006),
        CocoRules("apt36k", "animal_in_AP10K"), ("apt36k", "apt-36k", "AP-36k*"),
        _patterns("apt36k", "apt36k_annotations.json"), no_real_file=True,
    ),
    DataSet(
        "macaque", "MacaquePose", Published("17", 1, 13_083, 16_393, 2_000, 2_320),
        CocoRules("macaque", "person", "macaque"), ("macaque", "macaquepose*"), _patterns("macaque"),
        (("annotations.csv", native.read_macaque_table),),
    ),
    DataSet(
        "animalkingdom", "Animal Kingdom", Published("23", 850, 33_099, 33_099, 33_099, 33_099),
        CocoRules("animalkingdom", "animal_in_AnimalKindom", category_field="animal"),
        ("animalkingdom", "ak", "animal_kingdom"), _patterns("animalkingdom", "train.json", "test.json"),
    ),
    DataSet(
        "animalweb", "AnimalWeb", Published("9", 332, 22_451, 21_921, 22_451, 21_921),
        CocoRules("animalweb", "animal_face"), ("animalweb", "animal_web"), (), points=True, no_real_file=True,
    ),
    DataSet(
        "fly", "Vinegar Fly", Published("31", 1, 1_500, 1_500, 1_500, 1_500),
        CocoRules("fly", "fly", "vinegar fly"), ("fly", "vinegar_fly"), _patterns("fly"), _hdf5("fly", "vinegar fly"),
    ),
    DataSet(
        "locust", "Desert Locust", Published("34", 1, 700, 700, 700, 700),
        CocoRules("locust", "locust", "desert locust"), ("locust", "desert_locust"), _patterns("locust"),
        _hdf5("locust", "desert locust"),
    ),
    DataSet(
        "keypoint5", "Keypoint-5", Published("55 (31)", 5, 8_649, 8_649, 2_000, 2_000),
        CocoRules("keypoint5"), ("keypoint5", "keypoint-5"), (),
        (("coords.mat", native.read_keypoint5_table),), no_real_file=True,
    ),
    DataSet(
        "mp100", "MP-100", Published("561 (293)", 100, 16_943, 18_000, 16_943, 18_000),
        CocoRules("mp100"), ("mp100", "mp100_*"), ("mp100_*.json", "deepfas*.json", "test_aflw*.json"),
    ),
)  # fmt: skip

PUBLISHED_TOTAL = Published("338", 1_237, 0, 0, 226_547, 418_487)
"""UniKPT's README gives no totals of the sources."""

LSPET = CocoRules("lspet", "person", "person", ignored_names=frozenset({"neck", "head top"}))
"""Leeds Sports Pose Extended: 12 of its 14 joints are in the person list; its neck and head top are not."""

UNIKPT = CocoRules("unikpt")
"""The published file names no data set, so the keypoint list follows from category and count; **no real file met**."""


def read_data_set(data_set: DataSet, folder: Path, report: Report) -> Iterator[Record]:
    """Yield all records of a data set below `folder`. A file that cannot be used is reported and skipped."""
    finder = ImageFinder(folder)
    for path in sorted({path for pattern in data_set.files for path in folder.rglob(pattern)}):
        yield from refusing(read_coco_layout(path, finder, data_set.rules, report), path, report)
    for name, reader in data_set.tables:
        for path in sorted(folder.rglob(name)):
            yield from refusing(reader(path, finder, report), path, report)
    if data_set.points:
        yield from native.read_points_folder(folder, finder, data_set.slug, report)


def refusing(records: Iterator[Record], path: Path, report: Report) -> Iterator[Record]:
    """Yield the records; an error that concerns the whole file becomes an entry of the report."""
    try:
        yield from records
    except AnnotationFileError as error:
        report.add("annotation file refused", path, "-", str(error))
