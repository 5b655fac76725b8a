"""Leeds Sports Pose Extended: zipped person crops with COCO-style labels of 14 joints.

Source of the data: Johnson and Everingham, CVPR 2011.

Its 12 limb joints are the same-named joints of the published 17-keypoint person; "neck" and "head top" have no
counterpart there, and nose, eyes and ears are not labelled here (v = 0: nothing is learned for them).
"""

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from engines.skeletons import load_skeleton
from training.data.sample import Instance, ReaderReport, Sample, instance_from_box_xywh


def read_lspet(folder: Path, split: str, report: ReaderReport) -> Iterator[Sample]:
    """Yield the samples of "train" or "val" with the person's 17 keypoints.

    Raises:
        FileNotFoundError: the annotation file or a shard is missing.
    """
    path = folder / f"annotations_{split}.json"
    labels = json.loads(path.read_text())
    names = labels["categories"][0]["keypoints"]
    person = load_skeleton("person").keypoints
    columns = [(person.index(name), names.index(name)) for name in names if name in person]
    annotations = {entry["image_id"]: entry for entry in labels["annotations"]}
    shards: dict[str, zipfile.ZipFile] = {}
    for image in labels["images"]:
        shard = image["shard"]
        if shard not in shards:
            shards[shard] = zipfile.ZipFile(folder / shard)
        pixels = _decode(shards[shard], image["file_name"])
        if pixels is None:
            report.problem(shard, image["id"], f"{image['file_name']} is missing or cannot be decoded; skipped")
            continue
        instance = _instance(annotations[image["id"]], columns, len(person))
        report.images += 1
        report.instances += 1
        yield Sample(pixels, (instance,), "lspet", str(image["id"]))
    for archive in shards.values():
        archive.close()


def _decode(archive: zipfile.ZipFile, name: str) -> NDArray[np.uint8] | None:
    member = next((entry for entry in (name, f"images/{name}") if entry in archive.NameToInfo), None)
    if member is None:
        return None
    bgr = cv2.imdecode(np.frombuffer(archive.read(member), np.uint8), cv2.IMREAD_COLOR)
    return None if bgr is None else np.ascontiguousarray(bgr[:, :, ::-1])


def _instance(annotation: dict[str, object], columns: list[tuple[int, int]], count: int) -> Instance:
    source_K3 = np.array(annotation["keypoints"], np.float32).reshape(-1, 3)
    keypoints_K3 = np.zeros((count, 3), np.float32)
    for target, source in columns:
        keypoints_K3[target] = source_K3[source]
    return instance_from_box_xywh("person", "person", annotation["bbox"], keypoints_K3, float(annotation["area"]))  # type: ignore[arg-type]
