"""The unified index: the records of all sources that are present, and a table that compares them with the paper."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from engines.skeletons import PLACEHOLDER, fold, load_skeleton
from training.unikpt.catalogue import DATA_SETS, PUBLISHED_TOTAL, DataSet, read_data_set
from training.unikpt.schema import AnnotationFileError, Record, Report


@dataclass
class Tally:
    """Counts of what was read from one data set."""

    title: str
    keypoints: set[str] = field(default_factory=set)
    classes: set[str] = field(default_factory=set)
    images: int = 0
    instances: int = 0

    def add(self, record: Record) -> None:
        self.images += 1
        self.instances += len(record.instances)
        for instance in record.instances:
            self.classes.add(instance.category)
            self.keypoints |= {fold(name) for name in load_skeleton(instance.skeleton).keypoints if name != PLACEHOLDER}


@dataclass
class Index:
    """All records, one tally for each data set that was found, and the missing data sets."""

    records: list[Record] = field(default_factory=list)
    tallies: dict[str, Tally] = field(default_factory=dict)
    missing: list[DataSet] = field(default_factory=list)

    def add(self, slug: str, title: str, records: Iterable[Record]) -> None:
        tally = self.tallies.setdefault(slug, Tally(title))
        for record in records:
            self.records.append(record)
            tally.add(record)


def build_index(root: Path, report: Report, only: frozenset[str] = frozenset()) -> Index:
    """Read every data set that has a folder below `root`; `only` limits it to some slugs."""
    index = Index()
    for data_set in DATA_SETS:
        if only and data_set.slug not in only:
            continue
        folders = sorted({path for name in data_set.folders for path in root.glob(name) if path.is_dir()})
        before = len(index.records)
        for folder in folders:
            index.add(data_set.slug, data_set.title, read_data_set(data_set, folder, report))
        if len(index.records) == before:
            index.tallies.pop(data_set.slug, None)
            index.missing.append(data_set)
    return index


def save_index(path: Path, records: Iterable[Record]) -> int:
    """Write one JSON line per record and return their number."""
    encoder, count = msgspec.json.Encoder(), 0
    with path.open("wb") as opened:
        for record in records:
            opened.write(encoder.encode(record.to_dict()) + b"\n")
            count += 1
    return count


def load_index(path: Path) -> Iterator[Record]:
    """Read an index, line by line.

    Raises:
        AnnotationFileError: a line is not a record. The message names file and line.
    """
    with path.open("rb") as opened:
        for number, line in enumerate(opened, start=1):
            try:
                yield Record.from_dict(msgspec.json.decode(line))
            except (msgspec.DecodeError, KeyError, TypeError, ValueError) as error:
                raise AnnotationFileError(
                    f"{path}, line {number} is no record ({error!r}); build the index again"
                ) from error


def table(index: Index) -> str:
    """Return the table: read here | published by source | published as unified."""
    source_heads = ("keypoints", "classes", "images", "instances")
    heads = ("data set", *source_heads, "published kpts", *source_heads[1:], "unified images", "instances")
    rows: list[tuple[str, ...]] = [heads]
    for data_set in DATA_SETS:
        tally, published = index.tallies.get(data_set.slug), data_set.published
        if tally is None and data_set not in index.missing:
            continue
        read = ("missing", "", "", "") if tally is None else _numbers(tally)
        told = (published.keypoints, *_grouped(published.classes, published.images, published.instances))
        rows.append((data_set.title, *read, *told, *_grouped(published.unified_images, published.unified_instances)))
    for slug, tally in index.tallies.items():
        if slug not in {data_set.slug for data_set in DATA_SETS}:
            rows.append((tally.title, *_numbers(tally), "", "", "", "", "", ""))
    total = Tally("all, equal names merged")
    for record in index.records:
        total.add(record)
    unified = _grouped(PUBLISHED_TOTAL.unified_images, PUBLISHED_TOTAL.unified_instances)
    published_classes = f"{PUBLISHED_TOTAL.classes:,}"
    rows.append((total.title, *_numbers(total), PUBLISHED_TOTAL.keypoints, published_classes, "", "", *unified))
    widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
    lines = []
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells]))
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:-1], "-" * len(lines[0]), lines[-1]])


def _numbers(tally: Tally) -> tuple[str, str, str, str]:
    keypoints, classes, images, instances = _grouped(
        len(tally.keypoints), len(tally.classes), tally.images, tally.instances
    )
    return keypoints, classes, images, instances


def _grouped(*numbers: int) -> tuple[str, ...]:
    return tuple(f"{number:,}" for number in numbers)
