"""Conversions of pose lines, read again by libraries that are not ours."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest

from pipeline.errors import OutputError
from pipeline.outputs.convert import FORMATS, PoseLines, convert
from xpose_client.messages import PoseMessage, SkeletonClass, SkeletonMessage, TrackMessage, to_json_line

POINTS = ["nose", "tail"]


def track(number: int, frame: int, *, class_name: str = "mouse", measured: bool = True) -> TrackMessage:
    """Return a track whose second keypoint is unknown in frame 1."""
    tail = (None, None) if frame == 1 else (20.0 + frame, 30.0)
    point = (10.5 + frame, float(number))
    return TrackMessage(
        id=number,
        class_name=class_name,
        score=0.75,
        box_xyxy=(1.0, 2.0, 31.0, 42.0),
        keypoints_raw=[point, tail],
        keypoints=[point, tail],
        keypoints_predicted=[point, tail],
        keypoints_velocity=[(1.0, 0.0), (None, None)],
        keypoints_covariance=[(1.0, 0.0, 2.0), (None, None, None)],
        keypoints_measured=[measured, measured and frame != 1],
        measured=measured,
    )


def lines(folder: Path, frames: list[list[TrackMessage]], sources: tuple[str, ...] = ("cam",)) -> PoseLines:
    """Write the messages of each source; class "mouse" has edges, "cup" has other keypoints."""
    poses, skeletons = folder / "poses.jsonl", folder / "poses.skeletons.jsonl"
    written, listed = b"", b""
    for source in sources:
        classes = [SkeletonClass("mouse", POINTS, [(0, 1)]), SkeletonClass("cup", ["rim", "handle"], [])]
        listed += to_json_line(SkeletonMessage(2, 7, source, 1, 0, classes))
        for index, tracks in enumerate(frames):
            written += to_json_line(
                PoseMessage(
                    schema=2, session=7, seq=index, source=source, frame=index, file=None, pts_s=index / 10,
                    source_pts_s=None, host="h", capture_clock="file", capture_unix_ns=index, capture_monotonic_ns=0,
                    capture_uncertainty_s=None, lag_s=None, publish_unix_ns=0, width=64, height=48, prompt_id=1,
                    tracks=tracks,
                )
            )  # fmt: skip
    poses.write_bytes(written)
    skeletons.write_bytes(listed)
    return PoseLines(poses)


@pytest.fixture
def two_mice(tmp_path: Path) -> PoseLines:
    return lines(tmp_path, [[track(1, 0), track(2, 0)], [track(1, 1)], [], [track(2, 3, measured=False)]])


def test_the_long_table_has_a_row_per_track_frame_and_keypoint(two_mice: PoseLines, tmp_path: Path) -> None:
    convert(two_mice, "csv", tmp_path / "out.csv")
    convert(two_mice, "parquet", tmp_path / "out.parquet")
    table = pd.read_csv(tmp_path / "out.csv")
    assert len(table) == 8
    assert table["keypoint"].tolist() == POINTS * 4
    row = table[(table["frame"] == 1) & (table["keypoint"] == "tail")].iloc[0]
    assert math.isnan(row["x"])
    assert not row["measured"]
    first = table.iloc[0]
    assert (first["source"], first["track"], first["class"], first["pts_s"]) == ("cam", 1, "mouse", 0.0)
    assert (first["x"], first["y"], first["velocity_x"], first["covariance_yy"]) == (10.5, 1.0, 1.0, 2.0)
    pd.testing.assert_frame_equal(
        pyarrow.parquet.read_table(tmp_path / "out.parquet").to_pandas(), table, check_dtype=False
    )


def test_a_file_longer_than_a_batch_loses_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.outputs.convert._BATCH", 3)
    convert(lines(tmp_path, [[track(1, frame)] for frame in range(10)]), "csv", tmp_path / "out.csv")
    assert pd.read_csv(tmp_path / "out.csv")["frame"].tolist() == [frame for frame in range(10) for _ in POINTS]


def test_coco_tools_read_the_annotations(two_mice: PoseLines, tmp_path: Path) -> None:
    from faster_coco_eval import COCO

    convert(two_mice, "coco", tmp_path / "out.json")
    coco = COCO(json.loads((tmp_path / "out.json").read_text()))
    assert sorted(coco.imgs) == [1, 2, 3, 4]
    assert coco.cats[1]["skeleton"] == [[1, 2]]
    annotations = coco.loadAnns(coco.getAnnIds(imgIds=[2]))
    assert annotations[0]["keypoints"] == [11.5, 1.0, 2, 0.0, 0.0, 0]
    assert annotations[0]["bbox"] == [1.0, 2.0, 30.0, 40.0]
    (coasting,) = coco.loadAnns(coco.getAnnIds(imgIds=[4]))
    assert coasting["keypoints"][2::3] == [1, 1]
    assert coasting["track_id"] == 2


def test_sleap_reads_the_instances_with_their_tracks(two_mice: PoseLines, tmp_path: Path) -> None:
    import sleap_io

    convert(two_mice, "sleap", tmp_path / "out.slp")
    labels = sleap_io.load_slp(str(tmp_path / "out.slp"), open_videos=False)
    assert [node.name for node in labels.skeletons[0].nodes] == POINTS
    assert [track.name for track in labels.tracks] == ["mouse 1", "mouse 2"]
    by_frame = {frame.frame_idx: frame.instances for frame in labels.labeled_frames}
    assert {index: len(instances) for index, instances in by_frame.items()} == {0: 2, 1: 1, 3: 1}
    np.testing.assert_allclose(by_frame[1][0].numpy(), [[11.5, 1.0], [np.nan, np.nan]])
    assert by_frame[1][0].score == pytest.approx(0.75)


@pytest.mark.parametrize("suffix", [".h5", ".csv"])
def test_deeplabcut_tables_have_a_row_per_frame_and_columns_per_individual(
    two_mice: PoseLines, tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"out{suffix}"
    convert(two_mice, "dlc", path)
    table = pd.read_hdf(path) if suffix == ".h5" else pd.read_csv(path, header=[0, 1, 2, 3], index_col=0)
    assert list(table.index) == [0, 1, 2, 3]
    assert table.columns.names == ["scorer", "individuals", "bodyparts", "coords"]
    assert table["xpose-stream", "mouse1", "nose", "x"].tolist()[:2] == [10.5, 11.5]
    assert table["xpose-stream", "mouse2", "tail", "likelihood"].tolist()[0] == 0.75
    assert table["xpose-stream", "mouse2", "tail", "likelihood"].tolist()[3] == 0.0
    assert table["xpose-stream", "mouse1", "nose"].iloc[2].isna().all()


def test_deeplabcut_takes_one_class_and_one_source(tmp_path: Path) -> None:
    mixed = lines(tmp_path, [[track(1, 0), track(2, 0, class_name="cup")]], ("left", "right"))
    with pytest.raises(OutputError, match="found cup, mouse; give --class"):
        convert(mixed, "dlc", tmp_path / "out.h5")
    with pytest.raises(OutputError, match="found left, right; give --source"):
        convert(PoseLines(mixed.path, class_name="cup"), "dlc", tmp_path / "out.h5")
    with pytest.raises(OutputError, match="no track"):
        convert(PoseLines(mixed.path, class_name="dog"), "dlc", tmp_path / "out.h5")
    convert(PoseLines(mixed.path, source="left", class_name="cup"), "dlc", tmp_path / "out.h5")
    assert list(pd.read_hdf(tmp_path / "out.h5").columns.levels[2]) == ["handle", "rim"]


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind != "dlc"])
def test_a_file_without_tracks_is_converted(tmp_path: Path, kind: str) -> None:
    convert(lines(tmp_path, [[], []]), kind, tmp_path / f"out{FORMATS[kind][0]}")
    assert (tmp_path / f"out{FORMATS[kind][0]}").stat().st_size > 0


def test_bad_input_is_a_sentence(two_mice: PoseLines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OutputError, match="give one of csv"):
        convert(two_mice, "xls", tmp_path / "out.xls")
    with pytest.raises(OutputError, match="the file that is read"):
        convert(two_mice, "csv", two_mice.path)
    with pytest.raises(OutputError, match=r"absent\.jsonl: cannot be read"):
        convert(PoseLines(tmp_path / "absent.jsonl"), "coco", tmp_path / "out.json")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(OutputError, match=r"pip install 'xpose-stream\[export\]'"):
        convert(two_mice, "csv", tmp_path / "out.csv")
    before = sorted(tmp_path.iterdir())
    two_mice.path.write_bytes(two_mice.path.read_bytes() + b"{}\n")
    with pytest.raises(OutputError, match="line 5: is not a PoseMessage"):
        convert(two_mice, "coco", tmp_path / "out.json")
    assert sorted(tmp_path.iterdir()) == before, "a partial file was left behind"


@pytest.mark.parametrize("content", [b"\xff\xd8\xff\xe0\0\x10JFIF\n\n", b"a,b,c\n1,2,3\n", b"[]\n", b"{}\n", b"\n{}"])
@pytest.mark.parametrize("kind", FORMATS)
def test_file_that_holds_no_poses_is_named_in_one_sentence(tmp_path: Path, content: bytes, kind: str) -> None:
    path = tmp_path / "s.jpg"
    path.write_bytes(content)
    with pytest.raises(OutputError, match=r"^.*s\.jpg: is not a file that --poses wrote, its first line is not a P.*$"):
        convert(PoseLines(path), kind, tmp_path / "out")
    assert [path] == list(tmp_path.iterdir())


def test_absent_skeletons_are_missed_beside_the_poses(two_mice: PoseLines, tmp_path: Path) -> None:
    (tmp_path / "poses.skeletons.jsonl").unlink()
    with pytest.raises(OutputError, match=r"poses\.skeletons\.jsonl: cannot be read .*; it belongs beside the poses"):
        convert(two_mice, "csv", tmp_path / "out.csv")


def test_source_that_the_file_does_not_have_is_refused_with_those_that_it_has(tmp_path: Path) -> None:
    file = lines(tmp_path, [[track(1, 0)]], ("left", "right"))
    with pytest.raises(OutputError, match=r"--source nope: .* has no such source; its sources are left, right"):
        convert(PoseLines(file.path, "nope"), "csv", tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()
