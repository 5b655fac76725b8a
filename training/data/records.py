"""Turns records of `training.unikpt` into training samples by decoding their images."""

import logging
from collections.abc import Iterable, Iterator

import numpy as np

from training.data.sample import Instance, Sample
from training.unikpt.images import read_image
from training.unikpt.schema import ImageError, Record, Report

log = logging.getLogger(__name__)


def read_records(records: Iterable[Record], report: Report) -> Iterator[Sample]:
    """Yield one sample per record whose image can be decoded. The others are reported and skipped."""
    for record in records:
        try:
            image_HW3 = read_image(record)
        except ImageError as error:
            log.warning("skipped: %s", error)
            report.add("image unreadable", record.archive or record.image_path, record.image_path.name, str(error))
            continue
        if image_HW3.shape[:2] != (record.height, record.width):
            size = f"{image_HW3.shape[1]} x {image_HW3.shape[0]}"
            text = f"is {size}, annotated as {record.width} x {record.height}; skipped"
            report.add("image unreadable", record.archive or record.image_path, record.image_path.name, text)
            continue
        instances = tuple(
            Instance(
                instance.category,
                instance.skeleton,
                np.array(instance.bbox_xyxy, np.float32),
                instance.keypoints_K3,
                instance.area,
            )
            for instance in record.instances
        )
        ignore_R4 = np.array(record.ignore, np.float32).reshape(-1, 4)
        yield Sample(image_HW3, instances, record.dataset, record.image_path.as_posix(), ignore_R4)
