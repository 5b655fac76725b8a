"""Reader for annotation files in COCO's layout: `images`, `annotations`, `categories`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from engines.skeletons import load_skeleton
from training.unikpt import naming
from training.unikpt.checks import Candidate, Capacity, checked, cover_all, ignore_regions, within_capacity
from training.unikpt.images import ImageFinder, read_image
from training.unikpt.schema import AnnotationFileError, ImageError, InstanceRecord, ProblemKind, Record, Report

Entry = dict[str, Any]


@dataclass(frozen=True)
class CocoRules:
    """How one data set differs from COCO.

    Attributes:
        dataset: slug of the data set in its records.
        skeleton: keypoint list of every category; "" finds it by the category's name and number of keypoints.
        category: prompt of every instance; "" uses the name of the category.
        category_field: field of an annotation that contains its class, if categories are coarser (Animal Kingdom).
            ignored_names: keypoints that are dropped knowingly, folded.
    """

    dataset: str
    skeleton: str = ""
    category: str = ""
    category_field: str = ""
    ignored_names: frozenset[str] = frozenset()
    capacity: Capacity = field(default_factory=Capacity)


def load_json(path: Path) -> Any:
    """Read the file; raise AnnotationFileError if it cannot be read or is not JSON."""
    try:
        return msgspec.json.decode(path.read_bytes())
    except OSError as error:
        raise AnnotationFileError(f"cannot read {path}: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise AnnotationFileError(f"{path} is not JSON: {error}") from error


def split_of(path: Path) -> str:
    """ "train", "val" or "test" where the file's name says so, else "all"."""
    found = re.search(r"(train|val|test)", path.stem.lower())
    return found.group(1) if found else "all"


def read_coco_layout(path: Path, finder: ImageFinder, rules: CocoRules, report: Report) -> Iterator[Record]:
    """Yield one record per image with at least one valid instance.

    Raises:
        AnnotationFileError: the file is not JSON, does not have COCO's layout, or has no known category.
    """
    table = load_json(path)
    missing = [key for key in ("images", "annotations") if not isinstance(table, dict) or key not in table]
    if missing:
        raise AnnotationFileError(f"{path} has no list {missing[0]!r}; a COCO keypoint file is needed")
    reader = _Reader(path, finder, rules, report, {entry["id"]: entry for entry in table.get("categories", [])})
    instances = reader.annotations_by_image(table["annotations"])
    images = reader.usable_images(table["images"])
    for image_id in instances.keys() - images.keys() - reader.refused_images:
        for annotation in instances[image_id]:
            report.add(
                "annotation without image", path, annotation.get("id"), f"image {image_id} is not listed; skipped"
            )
    for image_id, image in images.items():
        record = reader.record(image, instances.get(image_id, []))
        if record is not None:
            yield record
    if reader.understood == 0 and reader.refusals:
        raise AnnotationFileError(f"{path}: {'; '.join(sorted(set(reader.refusals.values()))[:3])}")
    for (category_id, _), reason in reader.refusals.items():
        kind: ProblemKind = "unknown keypoint name" if category_id in reader.categories else "unknown category"
        report.add(kind, path, category_id, f"{reason}; its instances are skipped")


class _Reader:
    """The state while one file is read, with the facts about its categories."""

    def __init__(
        self, path: Path, finder: ImageFinder, rules: CocoRules, report: Report, categories: dict[Any, Entry]
    ) -> None:
        self._path, self._finder, self._rules, self._report, self.categories = path, finder, rules, report, categories
        self._columns: dict[tuple[Any, int], tuple[str, list[tuple[int, int]]] | None] = {}
        self._tells_hidden: set[Any] = set()
        self.refusals: dict[tuple[Any, int], str] = {}
        self.refused_images: set[Any] = set()
        self.understood = 0

    def annotations_by_image(self, annotations: list[Entry]) -> dict[Any, list[Entry]]:
        """Group annotations by image. The second of two annotations with one id is skipped.

        Also notes which categories use v = 2. Where none does (300W, OneHand10K, Animal Kingdom, AFLW), v = 1 only
        means "labelled", and such points count as seen.
        """
        grouped: dict[Any, list[Entry]] = {}
        seen: set[Any] = set()
        for annotation in annotations:
            number = annotation.get("id")
            if number is not None and number in seen:
                self._report.add("duplicated annotation id", self._path, number, "the second one is skipped")
                continue
            seen.add(number)
            category = annotation.get("category_id")
            if category not in self._tells_hidden and 2 in (annotation.get("keypoints") or ())[2::3]:
                self._tells_hidden.add(category)
            grouped.setdefault(annotation.get("image_id"), []).append(annotation)
        return grouped

    def usable_images(self, images: list[Entry]) -> dict[Any, Entry]:
        """Return the images by id. Two files with one id are both skipped, because the annotations are ambiguous."""
        names = Counter((image["id"], image["file_name"]) for image in images)
        files_of_id = Counter(number for number, _ in names)
        usable: dict[Any, Entry] = {}
        for image in images:
            if files_of_id[image["id"]] > 1:
                text = f"{files_of_id[image['id']]} files share it, {image['file_name']!r} among them; all skipped"
                self._report.add("duplicated image id", self._path, image["id"], text)
                self.refused_images.add(image["id"])
            else:
                usable[image["id"]] = image
        return usable

    def record(self, image: Entry, annotations: list[Entry]) -> Record | None:
        if not annotations:
            return None
        reference = self._finder.find(image["file_name"], image.get("shard"))
        if reference is None:
            text = f"{image['file_name']!r} is not there, or is there twice; {len(annotations)} instances skipped"
            self._report.add("image missing", self._path, image["id"], text)
            return None
        try:
            width, height = image.get("width"), image.get("height")
            if not width or not height:
                height, width = read_image(reference).shape[:2]
        except ImageError as error:
            self._report.add("image unreadable", self._path, image["id"], str(error))
            return None
        size = (int(width), int(height))
        found = [self._instance(annotation, *size) for annotation in annotations]
        kept = [instance for instance in found if instance is not None]
        instances = within_capacity(kept, self._rules.capacity, self._path, str(image["id"]), self._report)
        taken = {id(instance) for instance in instances}
        pairs = zip(annotations, found, strict=True)
        left_out = [annotation.get("bbox") for annotation, one in pairs if id(one) not in taken]
        ignore = ignore_regions(left_out, *size)
        if cover_all(ignore, *size):
            text = "its ignore regions cover all of it, so nothing in it counts as background"
            self._report.add("ignored throughout", self._path, image["id"], text)
        if not instances:
            return None
        self.understood += 1
        where = (reference.path, *size, instances, reference.archive, ignore)
        return Record(self._rules.dataset, split_of(self._path), *where)

    def _instance(self, annotation: Entry, width: int, height: int) -> InstanceRecord | None:
        number = str(annotation.get("id", "?"))
        if annotation.get("iscrowd") or annotation.get("ignore"):
            self._report.add("crowd region", self._path, number, "its box becomes an ignore region")
            return None
        flat = annotation.get("keypoints")
        if not flat:
            self._report.add("no labelled keypoint", self._path, number, "its box becomes an ignore region")
            return None
        if len(flat) % 3 or not all(isinstance(value, int | float) for value in flat):
            text = f"{len(flat)} values, needed are x, y, v numbers for each keypoint; instance skipped"
            self._report.add("malformed keypoints", self._path, number, text)
            return None
        source_N3 = np.array(flat, np.float32).reshape(-1, 3)
        if annotation.get("category_id") not in self._tells_hidden:
            source_N3[source_N3[:, 2] > 0, 2] = 2.0
        understood = self._understand(annotation.get("category_id"), len(source_N3))
        if understood is None:
            return None
        skeleton, pairs = understood
        box = annotation.get("bbox")
        candidate = Candidate(
            category=self._category_text(annotation),
            skeleton=skeleton,
            box_xywh=(float(box[0]), float(box[1]), float(box[2]), float(box[3])) if box and len(box) == 4 else None,
            keypoints_K3=self._reordered(source_N3, skeleton, pairs),
            area=annotation.get("area"),
            id=number,
        )
        return checked(candidate, width, height, self._path, self._report)

    def _reordered(
        self, source_N3: NDArray[np.float32], skeleton: str, pairs: list[tuple[int, int]]
    ) -> NDArray[np.float32]:
        keypoints_K3 = np.zeros((len(load_skeleton(skeleton).keypoints), 3), np.float32)
        for slot, column in pairs:
            keypoints_K3[slot] = source_N3[column]
        return keypoints_K3

    def _category_text(self, annotation: Entry) -> str:
        if self._rules.category:
            return self._rules.category
        if self._rules.category_field:
            return naming.category_text(str(annotation[self._rules.category_field]))
        return naming.category_text(str(self.categories[annotation["category_id"]]["name"]))

    def _understand(self, category_id: Any, slots: int) -> tuple[str, list[tuple[int, int]]] | None:
        """Return keypoint list and columns of a category; or None, with the reason in `refusals`."""
        key = (category_id, slots)
        if key not in self._columns:
            try:
                self._columns[key] = self._resolve(category_id, slots)
            except AnnotationFileError as error:
                self._columns[key] = None
                self.refusals[key] = str(error)
        return self._columns[key]

    def _resolve(self, category_id: Any, slots: int) -> tuple[str, list[tuple[int, int]]]:
        category = self.categories.get(category_id)
        fixed = self._rules.skeleton and (self._rules.category or self._rules.category_field)
        if category is None and fixed:
            category = {}  # Animal Kingdom's own files use group numbers that they do not list
        if category is None:
            raise AnnotationFileError(f"category {category_id!r} is used but not listed in `categories`")
        name = str(category.get("name", ""))
        skeleton = self._rules.skeleton or naming.skeleton_for_category(name, slots)
        if skeleton is None:
            raise AnnotationFileError(
                f"no keypoint list is known for category {name!r} with {slots} keypoints; "
                "read the file on its own with a skeleton TOML (--coco FILE --skeleton TOML)"
            )
        where = f"category {name!r}"
        names = [str(one) for one in category.get("keypoints") or []]
        return skeleton, naming.columns(load_skeleton(skeleton), names, slots, self._rules.ignored_names, where)
