"""Pose lines as tables, and as the files that analysts' tools open.

    csv, parquet   a long table: one row per track, frame and keypoint
    coco           COCO's keypoint layout, with track ids and scores
    sleap          a .slp file of predictions
    dlc            DeepLabCut's multi-animal table, .h5 or .csv

Positions are the smoothed ones, in pixels of the source. X-Pose gives no confidence per keypoint. If a format needs one
(SLEAP, DeepLabCut), it gets the score of the object, or 0 if the keypoint was not measured.

The libraries come with the extra `export`.
"""

from __future__ import annotations

import importlib
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from pipeline.errors import OutputError
from pipeline.outputs.part import PartFile, guard
from xpose_client.messages import PoseMessage, SkeletonClass, SkeletonMessage, TrackMessage

_BATCH = 2000  # messages that are converted at a time, to limit the memory for long files


@dataclass(frozen=True)
class Row:
    """One track in one frame, with the names of its keypoints."""

    message: PoseMessage
    track: TrackMessage
    skeleton: SkeletonClass

    @property
    def confidences(self) -> list[float]:
        """The object's score for each measured keypoint, else 0."""
        return [self.track.score if measured else 0.0 for measured in self.track.keypoints_measured]


@dataclass(frozen=True)
class PoseLines:
    """A file of pose lines with the skeleton lines beside it.

    Attributes:
        path: the file that `--poses` wrote; `<stem>.skeletons.jsonl` is beside it.
        source: read only this source; None for all.
        class_name: read only this class; None for all.
    """

    path: Path
    source: str | None = None
    class_name: str | None = None

    def messages(self) -> Iterator[PoseMessage]:
        """Yield the messages in their order.

        Raises:
            OutputError: the file cannot be read, a line is not a pose message, or no line is from `source`.
        """
        sources: set[str] = set()
        for message in _decoded(self.path, PoseMessage):
            sources.add(message.source)
            if self.source in (None, message.source):
                yield message
        if self.source is not None and self.source not in sources:
            known = ", ".join(sorted(sources)) or "none"
            raise OutputError(f"--source {self.source}: {self.path} has no such source; its sources are {known}")

    def rows(self) -> Iterator[Row]:
        """Yield the tracks of all messages.

        Raises:
            OutputError: as for `messages`, or a skeleton is missing.
        """
        names = {
            (line.session, line.source, line.prompt_id, skeleton.name): skeleton
            for line in _decoded(self.path.with_name(f"{self.path.stem}.skeletons.jsonl"), SkeletonMessage)
            for skeleton in line.classes
        }
        for message in self.messages():
            for track in message.tracks:
                if self.class_name not in (None, track.class_name):
                    continue
                key = (message.session, message.source, message.prompt_id, track.class_name)
                if key not in names:
                    raise OutputError(f"{self.path}: no skeleton line names the keypoints of {track.class_name!r}")
                yield Row(message, track, names[key])


def convert(lines: PoseLines, kind: str, path: Path) -> None:
    """Write `lines` to `path`.

    Args:
        kind: one of `FORMATS`.
    Raises:
        OutputError: the lines cannot be read, the format cannot hold them, the file cannot be written, or a library of
            the extra `export` is missing.
    """
    if kind not in FORMATS:
        raise OutputError(f"--to {kind}: give one of {', '.join(FORMATS)}")
    if lines.path.resolve() == path.resolve():
        raise OutputError(f"--out {path}: this is the file that is read; choose another name")
    next(_decoded(lines.path, PoseMessage), None)  # refuse another kind of file before anything is written
    file = PartFile(path)
    file.create()
    file.close()  # HDF5 wants the lock for itself
    try:
        guard(file.part, lambda: FORMATS[kind][1](lines, file.part))
    except BaseException:
        file.discard()
        raise
    file.commit()


def _write_table(lines: PoseLines, path: Path) -> None:
    """Write the long table, in the format that the suffix says: .parquet, else CSV."""
    arrow = _library("pyarrow")
    csv, parquet = _library("pyarrow.csv"), _library("pyarrow.parquet")
    text, whole, number, flag = arrow.string(), arrow.int64(), arrow.float64(), arrow.bool_()
    schema = arrow.schema(
        [("source", text), ("session", whole), ("frame", whole), ("file", text), ("pts_s", number)]
        + [("capture_unix_ns", whole), ("track", whole), ("class", text), ("score", number), ("track_measured", flag)]
        + [(name, number) for name in ("box_left", "box_top", "box_right", "box_bottom")]
        + [("keypoint", text), ("x", number), ("y", number), ("raw_x", number), ("raw_y", number)]
        + [("velocity_x", number), ("velocity_y", number)]
        + [("covariance_xx", number), ("covariance_xy", number), ("covariance_yy", number), ("measured", flag)]
    )
    make = parquet.ParquetWriter if path.suffix.lower() == ".parquet" else csv.CSVWriter
    rows = lines.rows()
    with make(str(path), schema) as writer:
        while batch := [values for row in islice(rows, _BATCH) for values in _table_rows(row)]:
            columns = zip(*batch, strict=True)
            writer.write_table(
                arrow.table([arrow.array(column, field.type) for column, field in zip(columns, schema, strict=True)],
                            schema=schema)
            )  # fmt: skip


def _table_rows(row: Row) -> Iterator[tuple[Any, ...]]:
    message, track = row.message, row.track
    head = (
        message.source, message.session, message.frame, message.file, message.pts_s, message.capture_unix_ns,
        track.id, track.class_name, track.score, track.measured, *track.box_xyxy,
    )  # fmt: skip
    points = zip(
        row.skeleton.keypoints,
        track.keypoints,
        track.keypoints_raw,
        track.keypoints_velocity,
        track.keypoints_covariance,
        track.keypoints_measured,
        strict=True,
    )
    for name, smoothed, raw, velocity, covariance, measured in points:
        yield (*head, name, *smoothed, *raw, *velocity, *covariance, measured)


def _write_coco(lines: PoseLines, path: Path) -> None:
    """Write COCO's keypoint layout; v is 2 for a measured keypoint, 1 for a coasting one, 0 for an unknown one."""
    images: dict[tuple[int, str, int], dict[str, Any]] = {}
    for message in lines.messages():
        images[_frame_key(message)] = {
            "id": len(images) + 1,
            "file_name": message.file or f"{message.source}/{message.frame:06d}.jpg",
            "width": message.width,
            "height": message.height,
            "source": message.source,
            "frame": message.frame,
            "pts_s": message.pts_s,
        }
    categories: dict[tuple[str, tuple[str, ...]], dict[str, Any]] = {}
    annotations: list[dict[str, Any]] = []
    for row in lines.rows():
        category = categories.setdefault(
            (row.skeleton.name, tuple(row.skeleton.keypoints)),
            {
                "id": len(categories) + 1,
                "name": row.skeleton.name,
                "keypoints": row.skeleton.keypoints,
                "skeleton": [[a + 1, b + 1] for a, b in row.skeleton.edges],
            },
        )
        left, top, right, bottom = row.track.box_xyxy
        flags = [
            0 if x is None else 2 if measured else 1
            for (x, _), measured in zip(row.track.keypoints, row.track.keypoints_measured, strict=True)
        ]
        points = [
            number
            for (x, y), flag in zip(row.track.keypoints, flags, strict=True)
            for number in (x if x is not None else 0.0, y if y is not None else 0.0, flag)
        ]
        annotations.append(
            {
                "id": len(annotations) + 1,
                "image_id": images[_frame_key(row.message)]["id"],
                "category_id": category["id"],
                "track_id": row.track.id,
                "score": row.track.score,
                "bbox": [left, top, round(right - left, 3), round(bottom - top, 3)],
                "area": round((right - left) * (bottom - top), 3),
                "iscrowd": 0,
                "num_keypoints": sum(flag > 0 for flag in flags),
                "keypoints": points,
            }
        )
    tables = {"images": [*images.values()], "annotations": annotations, "categories": [*categories.values()]}
    path.write_text(json.dumps(tables), encoding="utf-8")


def _write_sleap(lines: PoseLines, path: Path) -> None:
    """Write predicted instances, a video per source and a track per identity."""
    sleap: Any = _library("sleap_io")
    numpy: Any = _library("numpy")
    videos: dict[str, Any] = {}
    skeletons: dict[tuple[str, tuple[str, ...]], Any] = {}
    tracks: dict[tuple[str, int, int], Any] = {}
    frames: dict[tuple[int, str, int], Any] = {}
    for row in lines.rows():
        message, track, names = row.message, row.track, row.skeleton.keypoints
        video = videos.setdefault(message.source, sleap.Video(filename=message.source, open_backend=False))
        skeleton = skeletons.setdefault(
            (row.skeleton.name, tuple(names)), sleap.Skeleton(names, row.skeleton.edges, name=row.skeleton.name)
        )
        key = (message.source, message.session, track.id)
        identity = tracks.setdefault(key, sleap.Track(f"{row.skeleton.name} {track.id}"))
        instance = sleap.PredictedInstance.from_numpy(
            numpy.array(track.keypoints, dtype=float),
            skeleton=skeleton,
            point_scores=numpy.array(row.confidences),
            score=track.score,
            track=identity,
        )
        frame = frames.setdefault(_frame_key(message), sleap.LabeledFrame(video=video, frame_idx=message.frame))
        frame.instances.append(instance)
    labels = sleap.Labels(
        labeled_frames=[*frames.values()],
        videos=[*videos.values()],
        skeletons=[*skeletons.values()],
        tracks=[*tracks.values()],
    )
    labels.save(str(path), embed=False)


def _write_dlc(lines: PoseLines, path: Path) -> None:
    """Write DeepLabCut's multi-animal table: a row per frame, columns by individual, body part and x, y, likelihood."""
    pandas: Any = _library("pandas")
    rows = list(lines.rows())
    lists = {(row.skeleton.name, tuple(row.skeleton.keypoints)) for row in rows}
    sources = {row.message.source for row in rows}
    if len(lists) > 1:
        found = ", ".join(sorted({name for name, _ in lists}))
        raise OutputError(f"--to dlc: a file holds one class with one list of keypoints, found {found}; give --class")
    if len(sources) > 1:
        raise OutputError(f"--to dlc: a file holds one source, found {', '.join(sorted(sources))}; give --source")
    if not rows:
        raise OutputError(f"{lines.path}: has no track that could be written; choose another --source or --class")
    names = rows[0].skeleton.keypoints
    individuals = {track: f"{rows[0].skeleton.name}{track}" for track in sorted({row.track.id for row in rows})}
    columns = pandas.MultiIndex.from_product(
        [["xpose-stream"], individuals.values(), names, ["x", "y", "likelihood"]],
        names=["scorer", "individuals", "bodyparts", "coords"],
    )
    values = {
        (row.message.frame, row.track.id): [
            number for point, score in zip(row.track.keypoints, row.confidences, strict=True)
            for number in (*point, score)
        ]
        for row in rows
    }  # fmt: skip
    frames = sorted({message.frame for message in lines.messages()})
    absent = [None] * (3 * len(names))
    table = pandas.DataFrame(
        [[number for track in individuals for number in values.get((frame, track), absent)] for frame in frames],
        index=frames,
        columns=columns,
        dtype=float,
    )
    if path.suffix.lower() == ".csv":
        table.to_csv(path)
    else:
        _library("tables")
        table.to_hdf(path, key="df_with_missing", mode="w", format="fixed")


FORMATS: dict[str, tuple[str, Callable[[PoseLines, Path], None]]] = {
    "csv": (".csv", _write_table),
    "parquet": (".parquet", _write_table),
    "coco": (".json", _write_coco),
    "sleap": (".slp", _write_sleap),
    "dlc": (".h5", _write_dlc),
}
"""The suffix and the writer of each format."""


def _frame_key(message: PoseMessage) -> tuple[int, str, int]:
    return message.session, message.source, message.frame


def _decoded(path: Path, kind: type[PoseMessage | SkeletonMessage]) -> Iterator[Any]:
    """Yield the lines of a file that `--poses` wrote.

    Raises:
        OutputError: the file cannot be read, or a line is not of this kind.
    """
    decoder = msgspec.json.Decoder(kind)
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    yield decoder.decode(line)
                except (msgspec.DecodeError, UnicodeDecodeError) as error:
                    if number == 1:
                        raise OutputError(
                            f"{path}: is not a file that --poses wrote, its first line is not a {kind.__name__}; give "
                            "the .jsonl file of a run"
                        ) from error
                    raise OutputError(f"{path}, line {number}: is not a {kind.__name__} ({error})") from error
    except OSError as error:
        hint = "give" if kind is PoseMessage else "it belongs beside the poses, as"
        raise OutputError(f"{path}: cannot be read ({error.strerror}); {hint} a file that --poses wrote") from error


def _library(name: str) -> Any:
    logging.getLogger("numexpr").setLevel(logging.WARNING)  # it reports its threads at import
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise OutputError(
            f"{name.partition('.')[0]} is not installed; install the extra: pip install 'xpose-stream[export]'"
        ) from error
