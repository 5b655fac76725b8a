"""Readers for native files that do not have COCO's layout.

None of these readers was tested on a real file, because none was available. They follow the descriptions of the data
sets and the input of public converters. The tests use files that were made from these descriptions.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import msgspec
import numpy as np
import scipy.io
from numpy.typing import NDArray

from engines.skeletons import fold, letters, load_skeleton
from training.unikpt import naming
from training.unikpt.checks import Candidate, checked
from training.unikpt.coco_layout import split_of
from training.unikpt.images import ImageFinder, ImageReference, read_image
from training.unikpt.schema import AnnotationFileError, ImageError, InstanceRecord, Record, Report


def _record(
    dataset: str, split: str, reference: ImageReference, candidates: list[Candidate], file: Path, report: Report
) -> Record | None:
    try:
        height, width = read_image(reference).shape[:2]
    except ImageError as error:
        report.add("image unreadable", file, reference.path.name, str(error))
        return None
    found = [checked(candidate, width, height, file, report) for candidate in candidates]
    instances: tuple[InstanceRecord, ...] = tuple(instance for instance in found if instance is not None)
    return Record(dataset, split, reference.path, width, height, instances, reference.archive) if instances else None


def _labelled(points_K2: NDArray[np.float64]) -> NDArray[np.float32]:
    """Add v: 2 where both coordinates are numbers, else 0."""
    flags_K1 = np.isfinite(points_K2).all(1, keepdims=True) * 2.0
    return np.concatenate([np.nan_to_num(points_K2), flags_K1], axis=1).astype(np.float32)


def parse_points_file(path: Path) -> NDArray[np.float64]:
    """Return the (x, y) pairs of an iBUG .pts file, converted from 1-based to 0-based pixels.

    Raises:
        AnnotationFileError: there are no braces, or a line between them is not a pair of numbers.
    """
    text = path.read_text(encoding="utf-8", errors="replace")
    body = text.partition("{")[2].partition("}")[0]
    try:
        points = [[float(value) for value in line.split()] for line in body.splitlines() if line.strip()]
        return np.array(points, dtype=np.float64).reshape(len(points), 2) - 1.0
    except ValueError as error:
        raise AnnotationFileError(
            f"{path} is not a .pts file ({error}); needed are lines 'x y' between braces"
        ) from error


def read_points_folder(folder: Path, finder: ImageFinder, dataset: str, report: Report) -> Iterator[Record]:
    """300W and AnimalWeb: each image has a .pts file with the same name.

    AnimalWeb's class is the file name up to its last underscore.
    """
    skeleton = "face" if dataset == "300w" else "animal_face"
    slots = len(load_skeleton(skeleton).keypoints)
    for path in sorted(folder.rglob("*.pts")):
        reference = next((one for one in map(finder.find, _image_names(path, folder)) if one is not None), None)
        if reference is None:
            report.add("image missing", path, path.stem, "no image of this name; skipped")
            continue
        try:
            points_K2 = parse_points_file(path)
        except AnnotationFileError as error:
            report.add("annotation file refused", path, path.stem, str(error))
            continue
        if len(points_K2) != slots:
            report.add("malformed keypoints", path, path.stem, f"{len(points_K2)} points, needed are {slots}; skipped")
            continue
        category = "face" if dataset == "300w" else fold(path.stem.rpartition("_")[0] or path.stem)
        candidate = Candidate(category, skeleton, None, _labelled(points_K2), None, path.stem)
        record = _record(dataset, split_of(path.parent), reference, [candidate], path, report)
        if record is not None:
            yield record


def _image_names(points_file: Path, folder: Path) -> list[str]:
    relative = points_file.relative_to(folder)
    return [relative.with_suffix(suffix).as_posix() for suffix in (".jpg", ".png", ".jpeg", ".JPG")]


def read_macaque_table(path: Path, finder: ImageFinder, report: Report) -> Iterator[Record]:
    """MacaquePose `annotations.csv`: columns "image file name", "keypoints", "segmentation".

    Both are JSON: per animal a list of {"name", "position"} (null where not labelled), and per animal polygons.
    """
    csv.field_size_limit(2**31 - 1)
    with path.open(newline="", encoding="utf-8") as opened:
        for row in csv.DictReader(opened):
            name = row.get("image file name", "")
            reference = finder.find(name) if name else None
            if reference is None:
                report.add("image missing", path, name, "not found; skipped")
                continue
            try:
                animals = msgspec.json.decode(row["keypoints"])
                segments = msgspec.json.decode(row.get("segmentation") or "[]")
                candidates = [
                    _macaque(animal, segments[number] if number < len(segments) else [], f"{name}#{number}")
                    for number, animal in enumerate(animals)
                ]
            except (msgspec.DecodeError, KeyError, TypeError, ValueError) as error:
                report.add("malformed keypoints", path, name, f"{error!r}; image skipped")
                continue
            record = _record("macaque", "all", reference, candidates, path, report)
            if record is not None:
                yield record


def _macaque(animal: list[dict[str, Any]], segments: list[dict[str, Any]], number: str) -> Candidate:
    slots = {letters(name): slot for slot, name in enumerate(load_skeleton("person").keypoints)}
    points_K2 = np.full((len(slots), 2), np.nan)
    for point in animal:
        if point["position"] is not None:
            points_K2[slots[letters(point["name"])]] = point["position"]
    outline = [corner for segment in segments for corner in segment["segment"]]
    box = None
    if outline:
        low, high = np.min(outline, axis=0), np.max(outline, axis=0)
        box = (float(low[0]), float(low[1]), float(high[0] - low[0]), float(high[1] - low[1]))
    return Candidate("macaque", "person", box, _labelled(points_K2), None, number)


def read_onehand10k_table(path: Path, finder: ImageFinder, report: Report) -> Iterator[Record]:
    """OneHand10K `label_joint.txt`: lines "image,width,height,hands,x,y,x,y,…"; negative coordinates are unlabelled."""
    slots = len(load_skeleton("hand").keypoints)
    for line in path.read_text(encoding="utf-8").splitlines():
        name, *values = line.split(",")
        reference = finder.find(f"{path.parent.name}/source/{name}")
        if reference is None:
            report.add("image missing", path, name, "not found; skipped")
            continue
        try:
            points_K2 = np.array(values[3 : 3 + 2 * slots], dtype=np.float64).reshape(slots, 2)
        except ValueError:
            report.add("malformed keypoints", path, name, f"{len(values) - 3} numbers, needed are {2 * slots}; skipped")
            continue
        points_K2[(points_K2 < 0).any(1)] = np.nan
        candidate = Candidate("hand", "hand", None, _labelled(points_K2), None, name)
        record = _record("onehand10k", split_of(path.parent), reference, [candidate], path, report)
        if record is not None:
            yield record


def read_keypoint5_table(path: Path, finder: ImageFinder, report: Report) -> Iterator[Record]:
    """Keypoint-5 `<class>/coords.mat`: `coords` [2, K, annotators, images], images counted from 1 in `<class>/images`.

    A keypoint is the mean over the annotators that gave it; NaN everywhere means not labelled.
    """
    category = path.parent.name
    slots = len(load_skeleton(category).keypoints)
    try:
        coordinates = np.asarray(scipy.io.loadmat(str(path))["coords"], dtype=np.float64)
    except (OSError, KeyError, ValueError) as error:
        raise AnnotationFileError(
            f"{path} is not a Keypoint-5 file ({error!r}); needed is the array 'coords'"
        ) from error
    if coordinates.ndim != 4 or coordinates.shape[0] != 2 or coordinates.shape[1] < slots:
        raise AnnotationFileError(
            f"{path}: coords has shape {coordinates.shape}; needed is [2, {slots}, annotators, images]"
        )
    for number in range(coordinates.shape[3]):
        names = [f"{category}/images/{number + 1:08d}{suffix}" for suffix in (".jpg", ".png", ".jpeg")]
        reference = next((one for one in map(finder.find, names) if one is not None), None)
        if reference is None:
            report.add("image missing", path, number + 1, f"{names[0]} not found; skipped")
            continue
        points_2KA = coordinates[:, :slots, :, number]
        given_KA = np.isfinite(points_2KA).all(0)
        total_2K = np.where(given_KA, points_2KA, 0.0).sum(2)
        with np.errstate(invalid="ignore", divide="ignore"):
            points_K2 = (total_2K / given_KA.sum(1)).T
        candidate = Candidate(category, category, None, _labelled(points_K2), None, str(number + 1))
        record = _record("keypoint5", "all", reference, [candidate], path, report)
        if record is not None:
            yield record


def read_deepposekit(
    path: Path, finder: ImageFinder, report: Report, *, dataset: str, category: str
) -> Iterator[Record]:
    """DeepPoseKit's HDF5: `images` [N, H, W, 1 or 3], `annotations` [N, K, 2], `annotated` [N, K]; images are inside.

    The names of the keypoints are in the column "name" of the `skeleton.csv` in the same folder. Points that are not
    marked as annotated are predictions of a network; they are not labelled.
    """
    names_file = path.with_name("skeleton.csv")
    names = _deepposekit_names(names_file)
    try:
        with h5py.File(path) as opened:
            points_NK2, annotated_NK = np.asarray(opened["annotations"], np.float64), np.asarray(opened["annotated"])
            images = len(opened["images"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise AnnotationFileError(
            f"{path} is not a DeepPoseKit file ({error}); needed are 'images', 'annotations' and 'annotated'"
        ) from error
    if points_NK2.shape != (images, len(names), 2) or annotated_NK.shape != points_NK2.shape[:2]:
        raise AnnotationFileError(
            f"{path}: annotations {points_NK2.shape} and annotated {annotated_NK.shape}; needed are "
            f"({images}, {len(names)}, 2) and ({images}, {len(names)}), for its images and the names of skeleton.csv"
        )
    skeleton = load_skeleton(dataset)
    slots, columns = zip(*naming.columns(skeleton, names, len(names), frozenset(), str(names_file)), strict=True)
    points_NK2[~annotated_NK.astype(bool)] = np.nan
    named_NK2 = np.full((images, len(skeleton.keypoints), 2), np.nan)
    named_NK2[:, slots] = points_NK2[:, columns]
    for number, points_K2 in enumerate(named_NK2):
        candidate = Candidate(category, dataset, None, _labelled(points_K2), None, str(number))
        reference = ImageReference(Path("images") / str(number), path)
        record = _record(dataset, "all", reference, [candidate], path, report)
        if record is not None:
            yield record


def _deepposekit_names(path: Path) -> list[str]:
    try:
        with path.open(newline="", encoding="utf-8") as opened:
            return [row["name"] for row in csv.DictReader(opened)]
    except (OSError, KeyError) as error:
        raise AnnotationFileError(
            f"cannot read the keypoints' names from {path} ({error!r}); DeepPoseKit puts it beside its .h5 file"
        ) from error
