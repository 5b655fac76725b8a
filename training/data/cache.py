"""Decoded images in one memory-mapped file, with a label file, so that loading is a copy and needs no decoding.

A cache is a folder: images.npy (uint8 [N, side, side, 3], each image in its top-left corner), labels.json.
It is written under a temporary name and renamed at the end, so every existing cache is complete.
"""

import json
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.lib.format import open_memmap

from training.data.sample import Instance, Sample


def write_cache(folder: Path, samples: Iterable[Sample], count: int, side: int) -> int:
    """Write at most `count` samples and return their number. Images with a longer side above `side` are scaled down."""
    if folder.exists():
        raise FileExistsError(f"cache {folder} exists already; remove the folder to build it again")
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    images_N = open_memmap(partial / "images.npy", "w+", np.uint8, (count, side, side, 3))
    labels: list[dict[str, Any]] = []
    for index, sample in enumerate(samples):
        if index >= count:
            break
        fitted = _fit(sample, side)
        height, width = fitted.image_HW3.shape[:2]
        images_N[index, :height, :width] = fitted.image_HW3
        labels.append(_to_json(fitted))
    images_N.flush()
    (partial / "labels.json").write_text(json.dumps(labels))
    partial.rename(folder)
    return len(labels)


class ImageCache:
    """Random access to a cache folder written by `write_cache`."""

    def __init__(self, folder: Path) -> None:
        labels = folder / "labels.json"
        if not labels.exists():
            raise FileNotFoundError(f"no image cache in {folder}; build it with: python -m training.data.build")
        self._labels: list[dict[str, Any]] = json.loads(labels.read_text())
        self._images_N = np.load(folder / "images.npy", mmap_mode="r")

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> Sample:
        label = self._labels[index]
        height, width = label["size"]
        image = np.array(self._images_N[index, :height, :width])
        ignore_R4 = np.array(label.get("ignore", []), np.float32).reshape(-1, 4)
        instances = tuple(_instance(entry) for entry in label["instances"])
        return Sample(image, instances, str(label["dataset"]), str(label["id"]), ignore_R4)

    def summary(self, index: int) -> list[tuple[str, str, int, float]]:
        """Return category, skeleton, number of labelled keypoints and longer side in pixels of each instance.

        This does not read the image.
        """
        return [
            (category, skeleton, sum(v > 0 for v in keypoints[2::3]), max(box[2] - box[0], box[3] - box[1]))
            for category, skeleton, box, keypoints, _ in self._labels[index]["instances"]
        ]


def _fit(sample: Sample, side: int) -> Sample:
    height, width = sample.image_HW3.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return sample
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    image = np.asarray(cv2.resize(sample.image_HW3, size, interpolation=cv2.INTER_AREA), np.uint8)
    instances = tuple(_scale(instance, scale) for instance in sample.instances)
    return replace(sample, image_HW3=image, instances=instances, ignore_R4=sample.ignore_R4 * np.float32(scale))


def _scale(instance: Instance, scale: float) -> Instance:
    factors_3 = np.array([scale, scale, 1], np.float32)
    return Instance(
        instance.category,
        instance.skeleton,
        instance.box_xyxy * np.float32(scale),
        instance.keypoints_K3 * factors_3,
        instance.area_px * scale * scale,
    )


def _to_json(sample: Sample) -> dict[str, Any]:
    return {
        "size": list(sample.image_HW3.shape[:2]),
        "dataset": sample.dataset,
        "id": sample.image_id,
        "ignore": [[round(float(value), 2) for value in box] for box in sample.ignore_R4],
        "instances": [
            [
                instance.category,
                instance.skeleton,
                [round(float(value), 3) for value in instance.box_xyxy],
                [round(float(value), 2) for value in instance.keypoints_K3.reshape(-1)],
                round(instance.area_px, 2),
            ]
            for instance in sample.instances
        ],
    }


def _instance(entry: list[Any]) -> Instance:
    category, skeleton, box, keypoints, area = entry
    return Instance(
        str(category),
        str(skeleton),
        np.array(box, np.float32),
        np.array(keypoints, np.float32).reshape(-1, 3),
        float(area),
    )
