"""Pictures for a visual check: boxes, skeletons and keypoint numbers on the image of a record."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from engines.skeletons import load_skeleton
from training.unikpt.images import read_image
from training.unikpt.schema import ImageError, Record

_SEEN, _HIDDEN, _BOX, _EDGE = (40, 220, 60), (235, 60, 60), (250, 220, 40), (90, 170, 250)
_MIN_SIDE_PX = 480  # small pictures are enlarged so that numbers can be read


def draw_record(record: Record) -> NDArray[np.uint8]:
    """Return an RGB picture of a record: seen keypoints green, hidden ones red, each with its number in the list.

    Raises:
        ImageError: the image cannot be read.
    """
    image = read_image(record)
    zoom = max(1.0, _MIN_SIDE_PX / max(1, min(image.shape[:2])))
    canvas = cv2.resize(image, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_LINEAR)
    thick = max(1, round(min(canvas.shape[:2]) / 300))
    for instance in record.instances:
        x0, y0, x1, y1 = (round(value * zoom) for value in instance.bbox_xyxy)
        cv2.rectangle(canvas, (x0, y0), (x1, y1), _BOX, thick)
        cv2.putText(
            canvas, instance.category, (x0, max(12, y0 - 4)), cv2.FONT_HERSHEY_SIMPLEX, 0.5 * thick, _BOX, thick
        )
        points = [(round(float(x) * zoom), round(float(y) * zoom)) for x, y, _ in instance.keypoints_K3]
        flags = instance.keypoints_K3[:, 2]
        for a, b in load_skeleton(instance.skeleton).edges:
            if flags[a] > 0 and flags[b] > 0:
                cv2.line(canvas, points[a], points[b], _EDGE, thick, cv2.LINE_AA)
        for number, (point, flag) in enumerate(zip(points, flags, strict=True)):
            if flag > 0:
                cv2.circle(canvas, point, 2 * thick, _SEEN if flag > 1 else _HIDDEN, -1, cv2.LINE_AA)
                beside = (point[0] + 3, point[1] - 3)
                cv2.putText(
                    canvas, str(number), beside, cv2.FONT_HERSHEY_SIMPLEX, 0.32 * thick, (255, 255, 255), 1, cv2.LINE_AA
                )
    return np.asarray(canvas, dtype=np.uint8)


def write_overlays(records: Iterable[Record], folder: Path, per_data_set: int) -> list[Path]:
    """Write `<data set>_<number>.png` for the first images of each data set. Unreadable images are skipped."""
    folder.mkdir(parents=True, exist_ok=True)
    written: dict[str, list[Path]] = defaultdict(list)
    for record in records:
        if len(written[record.dataset]) >= per_data_set:
            continue
        try:
            picture = draw_record(record)
        except ImageError:
            continue
        path = folder / f"{record.dataset}_{len(written[record.dataset])}.png"
        if not cv2.imwrite(str(path), picture[:, :, ::-1]):
            raise OSError(f"cannot write {path}")
        written[record.dataset].append(path)
    return [path for paths in written.values() for path in paths]
