"""One schema for all data sets: a record is an image with its labelled instances and named keypoints.

    UniKPTError (ValueError)
    ├── AnnotationFileError   the whole file is refused; the message says what to change
    └── ImageError            one image is missing or cannot be decoded

Legend: K keypoints of the instance's own skeleton; 3 = (x px, y px, v).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray


class UniKPTError(ValueError):
    """A problem with a data set; the message is one sentence."""


class AnnotationFileError(UniKPTError):
    """The annotation file cannot be used."""


class ImageError(UniKPTError):
    """An image is missing or cannot be decoded. Loaders skip it."""


@dataclass(frozen=True)
class InstanceRecord:
    """One labelled object.

    Attributes:
        category: the prompt for it, for example "person" or "short sleeve top".
        skeleton: argument of `engines.skeletons.load_skeleton`: a published name or the path of a TOML file.
        bbox_xyxy: pixels, inside the image.
        keypoints_K3: float32 in the order of the skeleton; v is 2 seen, 1 labelled but hidden, 0 not labelled.
        area: square pixels; the segment area of the source, or else its box area.
        crowd: True for a region of many objects. Readers drop these; the flag is for indices made by other programs.
        id: id in the source, for messages.
    """

    category: str
    skeleton: str
    bbox_xyxy: tuple[float, float, float, float]
    keypoints_K3: NDArray[np.float32]
    area: float
    crowd: bool
    id: str


@dataclass(frozen=True)
class Record:
    """One image: `image_path` on disk or, if `archive` is given, the name inside that zip or HDF5 file.

    `ignore` contains boxes (x0, y0, x1, y1) in pixels with unlabelled objects: crowds, people without keypoints.
    """

    dataset: str
    split: str
    image_path: Path
    width: int
    height: int
    instances: tuple[InstanceRecord, ...]
    archive: Path | None = None
    ignore: tuple[tuple[float, float, float, float], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for one line of an index file. Coordinates are rounded to 0.01 px."""
        return {
            "dataset": self.dataset,
            "split": self.split,
            "image": str(self.image_path),
            "archive": str(self.archive) if self.archive else None,
            "width": self.width,
            "height": self.height,
            "ignore": [[round(value, 2) for value in box] for box in self.ignore],
            "instances": [
                {
                    "category": instance.category,
                    "skeleton": instance.skeleton,
                    "bbox_xyxy": [round(value, 2) for value in instance.bbox_xyxy],
                    "keypoints": [round(float(value), 2) for value in instance.keypoints_K3.ravel()],
                    "area": round(instance.area, 2),
                    "crowd": instance.crowd,
                    "id": instance.id,
                }
                for instance in self.instances
            ],
        }

    @classmethod
    def from_dict(cls, table: dict[str, Any]) -> Record:
        """Inverse of `to_dict`. Raises KeyError or ValueError if the line is not a record."""
        instances = tuple(
            InstanceRecord(
                entry["category"],
                entry["skeleton"],
                tuple(entry["bbox_xyxy"]),
                np.array(entry["keypoints"], np.float32).reshape(-1, 3),
                entry["area"],
                entry["crowd"],
                entry["id"],
            )
            for entry in table["instances"]
        )
        archive = Path(table["archive"]) if table["archive"] else None
        size = (table["width"], table["height"])
        ignore = tuple(tuple(box) for box in table["ignore"])
        return cls(table["dataset"], table["split"], Path(table["image"]), *size, instances, archive, ignore)


ProblemKind = Literal[
    "annotation file refused",
    "unknown keypoint name",
    "unknown category",
    "duplicated image id",
    "duplicated annotation id",
    "annotation without image",
    "image missing",
    "image unreadable",
    "malformed keypoints",
    "no labelled keypoint",
    "box without area",
    "box outside the image",
    "box clipped to the image",
    "keypoint outside the image",
    "crowd region",
    "over capacity",
    "ignored throughout",
]

SKIPPED_SILENTLY: frozenset[ProblemKind] = frozenset(
    {"crowd region", "no labelled keypoint", "keypoint outside the image"}
)
"""Common in good data sets (COCO labels many people without keypoints). They are counted but not listed."""


@dataclass(frozen=True)
class Problem:
    """A problem: where it is, what it is, and what was done."""

    kind: ProblemKind
    file: str
    id: str
    text: str

    def __str__(self) -> str:
        return f"{self.file}: {self.kind}, id {self.id}: {self.text}"


@dataclass
class Report:
    """All problems that the readers skipped or repaired, in order."""

    problems: list[Problem] = field(default_factory=list)

    def add(self, kind: ProblemKind, file: Path | str, identifier: object, text: str) -> None:
        self.problems.append(Problem(kind, str(file), str(identifier), text))

    @property
    def counts(self) -> Counter[ProblemKind]:
        return Counter(problem.kind for problem in self.problems)
