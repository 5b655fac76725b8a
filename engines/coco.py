"""COCO keypoint files as people have them: one object of one image.

Many tools write this layout, each a little differently. Ids may be 1, 1.0 or "1". File names may have folders, back
slashes, another case, or be addresses. A null stands for a missing entry. The file may begin with a byte order mark.
Only the entries that belong to the wanted object are checked: entries of other images may lack anything.

Source of the layout: https://cocodataset.org/#format-data, "Keypoint Detection".
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import msgspec

from engines.errors import PromptError

Table = dict[str, Any]
Entry = TypeVar("Entry", bound=msgspec.Struct)


class CocoImage(msgspec.Struct):
    """An image of an annotation file."""

    id: int | float | str
    file_name: str


class CocoCategory(msgspec.Struct):
    """A class with its keypoint names; `skeleton` holds edges counted from 1."""

    id: int | float | str
    name: str
    keypoints: list[str] = []
    skeleton: list[tuple[int, int]] = []


class CocoAnnotation(msgspec.Struct):
    """One object: `bbox` is x, y, width, height; `keypoints` is x, y, v for each name, v = 0 where not marked."""

    image_id: int | float | str
    category_id: int | float | str
    bbox: tuple[float, float, float, float]
    keypoints: list[float] = []
    id: int | float | str = 0


class CocoObject(msgspec.Struct):
    """One annotation with its image and its category."""

    image: CocoImage
    annotation: CocoAnnotation
    category: CocoCategory

    def encode(self) -> bytes:
        """Return an annotation file, as JSON, that holds this object alone."""
        tables = {"images": [self.image], "annotations": [self.annotation], "categories": [self.category]}
        return msgspec.json.format(msgspec.json.encode(tables), indent=1)


class _Tables(msgspec.Struct):
    images: list[Table]
    annotations: list[Table]
    categories: list[Table]


def find_object(data: bytes, image: Path, annotation_id: str | None = None) -> CocoObject:
    """Return the one object that an annotation file marks in an image.

    A file with a single image needs no matching file name. Crowd regions do not count, and objects without a marked
    keypoint count only where there is no other.

    Args:
        data: content of the file.
        image: the image's path or name.
        annotation_id: chooses one of several objects.
    Raises:
        PromptError: the data is not JSON or not of this layout; the image, its category or the object is not in it;
            or there are several.
    """
    try:
        tables = msgspec.json.decode(data.removeprefix(b"\xef\xbb\xbf"), type=_Tables)
    except msgspec.ValidationError as error:
        raise PromptError(f"is not of COCO's keypoint layout: {_named(error)}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise PromptError(f"is not JSON: {error}") from error
    return _only(tables, image, annotation_id)


def _only(tables: _Tables, image: Path, annotation_id: str | None) -> CocoObject:
    images = tables.images if len(tables.images) == 1 else _best_named(tables.images, image)
    if len(images) != 1:
        raise PromptError(f"has {len(images)} images called {image.name!r}, needed is one")
    in_image = [entry for entry in tables.annotations if _id(entry.get("image_id")) == _id(images[0].get("id"))]
    single = [entry for entry in in_image if not entry.get("iscrowd")]
    marked = [entry for entry in single if _is_marked(entry)]
    wanted = marked or single
    if annotation_id is not None:
        wanted = [entry for entry in in_image if _id(entry.get("id")) == _id(annotation_id)]
    if len(wanted) != 1:
        ids = ", ".join(_id(entry.get("id")) for entry in wanted)
        raise PromptError(
            f"has {len(wanted)} annotations of {image.name!r}, needed is one"
            + (f": pick one of the ids {ids} with `python -m engines.annotate from-coco`" if wanted else "")
        )
    annotation = _checked(wanted[0], CocoAnnotation, f"annotation {_id(wanted[0].get('id'))}")
    categories = [entry for entry in tables.categories if _id(entry.get("id")) == _id(annotation.category_id)]
    if len(categories) != 1:
        raise PromptError(
            f"annotation {_id(annotation.id)} is of category {_id(annotation.category_id)}, "
            f"which is listed {len(categories)} times; needed is once"
        )
    category = _checked(categories[0], CocoCategory, f"category {_id(annotation.category_id)}")
    return CocoObject(_checked(images[0], CocoImage, f"image {_id(images[0].get('id'))}"), annotation, category)


def _best_named(images: Sequence[Table], image: Path) -> list[Table]:
    """Return the images whose file name is that of `image`; of several, those with most folders in common.

    The case of letters counts only between names that are otherwise equal.
    """
    wanted = _parts(str(image))
    scored = [(_common_end(_parts(str(entry.get("file_name", ""))), wanted), entry) for entry in images]
    best = max((score for score, _ in scored), default=(0, 0))
    return [entry for score, entry in scored if score == best and score[0] > 0]


def _parts(name: str) -> list[str]:
    """Split a path of any system, or an address, into its parts."""
    if "://" in name:
        name = unquote(urlsplit(name).path)
    return [part for part in re.split(r"[\\/]", name) if part]


def _common_end(name: Sequence[str], wanted: Sequence[str]) -> tuple[int, int]:
    """Count the parts, from the end, that are equal but for their case, and those that are equal."""
    alike = exact = 0
    for ours, theirs in zip(reversed(name), reversed(wanted), strict=False):
        if ours.casefold() != theirs.casefold():
            break
        alike += 1
        exact += ours == theirs
    return alike, exact


def _is_marked(annotation: Table) -> bool:
    keypoints = annotation.get("keypoints")
    return isinstance(keypoints, list) and any(isinstance(flag, int | float) and flag > 0 for flag in keypoints[2::3])


def _id(value: object) -> str:
    """Return an id as text: 1, 1.0 and "1" are the same id."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


def _checked(entry: Table, kind: type[Entry], label: str) -> Entry:
    """Convert one entry; null counts as absent."""
    try:
        return msgspec.convert({key: value for key, value in entry.items() if value is not None}, kind)
    except msgspec.ValidationError as error:
        raise PromptError(f"{label} is not of COCO's keypoint layout: {_named(error)}") from error


def _named(error: msgspec.ValidationError) -> str:
    return str(error).replace("$.", "key ")
