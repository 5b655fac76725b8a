"""Any keypoint file in COCO's layout with a skeleton: how a user trains on their own animal.

What is wrong with a file is reported with the file and the id, counted, and skipped; the rest is used.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from engines.skeletons import MAX_KEYPOINTS, Skeleton, fold
from training.data.sample import Instance, ReaderReport, Sample, clip_instance, instance_from_box_xywh


def read_coco_keypoints(
    annotations: Path, images: Path, skeleton: Skeleton, skeleton_name: str, report: ReaderReport
) -> Iterator[Sample]:
    """Yield one sample per readable image that keeps at least one usable instance.

    Args:
        images: the folder that `file_name` is relative to.
        skeleton: its names select the file's keypoints; order in the file does not matter.
        skeleton_name: how `load_skeleton` finds it again.
    Raises:
        ValueError: no JSON, no COCO layout, or no keypoint name in common; says which file.
    """
    try:
        content = json.loads(annotations.read_text())
        categories = {entry["id"]: entry for entry in content["categories"]}
        entries, labels = content["images"], content["annotations"]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{annotations} is not a COCO keypoint file ({error!r}); it needs images, annotations, categories"
        ) from error
    columns = {id_: _columns(entry, skeleton, annotations, report) for id_, entry in categories.items()}
    by_image: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for label in _without_duplicates(labels, annotations, "annotation", report):
        by_image[label.get("image_id")].append(label)
    for entry in _without_duplicates(entries, annotations, "image", report):
        pixels = _read(images / entry["file_name"])
        if pixels is None:
            report.problem(
                str(annotations), entry["id"], f"{entry['file_name']} is missing or cannot be decoded; skipped"
            )
            continue
        found = [
            _instance(label, categories, columns, skeleton, skeleton_name, pixels.shape[:2], annotations, report)
            for label in by_image[entry["id"]]
        ]
        kept = tuple(instance for instance in found if instance is not None)
        if kept:
            report.images += 1
            report.instances += len(kept)
            yield Sample(pixels, kept, annotations.stem, str(entry["id"]))


def _columns(category: dict[str, Any], skeleton: Skeleton, file: Path, report: ReaderReport) -> list[tuple[int, int]]:
    """Pairs (slot of the skeleton, column of the file) of equal names."""
    own = {fold(name): slot for slot, name in enumerate(skeleton.keypoints)}
    names = category.get("keypoints", [])
    pairs = [(own[fold(name)], column) for column, name in enumerate(names) if fold(name) in own]
    unknown = [name for name in names if fold(name) not in own]
    if unknown:
        report.problem(
            str(file), category["id"], f"keypoint names {unknown[:5]} are not in the list {skeleton.name!r}; ignored"
        )
    if not pairs:
        raise ValueError(
            f"{file}: category {category.get('name')!r} shares no keypoint name with {skeleton.name!r} "
            f"({', '.join(skeleton.keypoints[:5])}, …); give the skeleton whose names the file uses"
        )
    if len(names) > MAX_KEYPOINTS:
        report.problem(
            str(file),
            category["id"],
            f"{len(names)} keypoints, the network has {MAX_KEYPOINTS} slots; the skeleton's are used",
        )
    return pairs


def _without_duplicates(
    entries: list[dict[str, Any]], file: Path, kind: str, report: ReaderReport
) -> Iterator[dict[str, Any]]:
    counts = Counter(entry["id"] for entry in entries)
    seen = set()
    for entry in entries:
        if counts[entry["id"]] > 1 and entry["id"] in seen:
            report.problem(str(file), entry["id"], f"{kind} id occurs {counts[entry['id']]} times; the first is used")
            continue
        seen.add(entry["id"])
        yield entry


def _instance(
    label: dict[str, Any],
    categories: dict[Any, dict[str, Any]],
    columns: dict[Any, list[tuple[int, int]]],
    skeleton: Skeleton,
    skeleton_name: str,
    size_hw: tuple[int, ...],
    file: Path,
    report: ReaderReport,
) -> Instance | None:
    reason = _refusal(label, categories)
    if reason:
        report.problem(str(file), label["id"], f"{reason}; skipped")
        return None
    category = categories[label["category_id"]]
    source_K3 = np.array(label["keypoints"], np.float32).reshape(-1, 3)
    keypoints_K3 = np.zeros((len(skeleton.keypoints), 3), np.float32)
    for slot, column in columns[label["category_id"]]:
        keypoints_K3[slot] = source_K3[column]
    box = label["bbox"]
    area = float(label.get("area") or box[2] * box[3])
    name = str(category["name"]).lower().replace("_", " ")
    instance = clip_instance(
        instance_from_box_xywh(name, skeleton_name, box, keypoints_K3, area), size_hw[1], size_hw[0]
    )
    if instance is None:
        report.problem(
            str(file), label["id"], f"box {box} lies mostly outside its image, or no point inside is labelled; skipped"
        )
    return instance


def _refusal(label: dict[str, Any], categories: dict[Any, dict[str, Any]]) -> str:
    category = categories.get(label.get("category_id"))
    if category is None:
        return f"category {label.get('category_id')} is not in the file"
    if label.get("iscrowd"):
        return "a crowd region"
    keypoints, box = label.get("keypoints"), label.get("bbox")
    if not keypoints or len(keypoints) != 3 * len(category["keypoints"]):
        return (
            f"{len(keypoints or [])} keypoint numbers, needed are x y v for each of {len(category['keypoints'])} names"
        )
    if not np.isfinite(keypoints).all() or not any(keypoints[2::3]):
        return "no labelled keypoint, or numbers that are not finite"
    if not box or len(box) != 4 or not np.isfinite(box).all() or box[2] <= 0 or box[3] <= 0:
        return f"box {box} has no area"
    return ""


def _read(path: Path) -> NDArray[np.uint8] | None:
    bgr = cv2.imread(str(path), cv2.IMREAD_COLOR)
    return None if bgr is None else np.ascontiguousarray(bgr[:, :, ::-1])
