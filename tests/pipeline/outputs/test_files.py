"""Files that are whole or not there, and videos that keep the source's times."""

import errno
import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from pipeline.errors import ConfigError, OutputError
from pipeline.frames import Frame
from pipeline.outputs.part import guard
from pipeline.outputs.poses import PoseFile
from pipeline.outputs.video import VideoConfig, VideoFile, check_suffix
from tests.clients.python.made import pose, skeleton

pytestmark = pytest.mark.timeout(30)

NO_SKELETONS = skeleton(classes=[])


def frame(index: int, width: int = 64, height: int = 48, pts_s: float | None = None, grey: int = 90) -> Frame:
    return Frame("cam", index, np.full((height, width, 3), grey, np.uint8), pts_s, 1, 1, "file", still=pts_s is None)


def times_and_sizes(path: Path) -> tuple[list[float], set[tuple[int, int]]]:
    with av.open(path) as container:
        pictures = list(container.decode(video=0))
    return [float(picture.time) for picture in pictures], {(picture.width, picture.height) for picture in pictures}


def test_pose_file_appears_at_commit_and_the_old_one_stays_until_then(tmp_path: Path) -> None:
    path = tmp_path / "new" / "poses.jsonl"
    path.parent.mkdir()
    path.write_text("old")
    with PoseFile(path) as file:
        file.write(pose(0))
        file.write(NO_SKELETONS)
    assert path.read_text() == "old"
    assert file.commit() == [path]
    assert path.read_bytes().count(b"\n") == 1
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["poses.jsonl", "poses.skeletons.jsonl"]


def test_kept_files_stand_under_their_own_name_with_part_before_the_suffix(tmp_path: Path) -> None:
    with PoseFile(tmp_path / "p.jsonl") as poses, VideoFile(tmp_path / "v.mp4", VideoConfig()) as video:
        poses.write(pose(0))
        video.write(frame(0, pts_s=0.0), pose(0), NO_SKELETONS)
    assert poses.keep() == [tmp_path / "p.part.jsonl"]
    assert video.keep() == [tmp_path / "v.part.mp4"]
    assert (tmp_path / "p.part.jsonl").read_bytes().count(b"\n") == 1
    assert times_and_sizes(tmp_path / "v.part.mp4")[0] == [0.0]


def test_discarded_files_leave_nothing(tmp_path: Path) -> None:
    with PoseFile(tmp_path / "p.jsonl") as poses, VideoFile(tmp_path / "v.mp4", VideoConfig()) as video:
        video.write(frame(0, pts_s=0.0), pose(0), NO_SKELETONS)
    poses.discard()
    video.discard()
    assert list(tmp_path.iterdir()) == []


def test_file_that_another_writer_has_open_is_refused_and_untouched(tmp_path: Path) -> None:
    with PoseFile(tmp_path / "p.jsonl") as first:
        first.write(pose(0))
        second = PoseFile(tmp_path / "p.jsonl")
        with pytest.raises(OutputError, match="another program"), second:
            pass
        second.discard()
    first.commit()
    assert (tmp_path / "p.jsonl").read_bytes().count(b"\n") == 1


@pytest.mark.parametrize(("number", "words"), [(errno.ENOSPC, "the disk is full"), (errno.EIO, "Input/output error")])
def test_failure_to_write_names_the_cause_that_was_reported(number: int, words: str, tmp_path: Path) -> None:
    def fail() -> None:
        raise OSError(number, os.strerror(number))

    with pytest.raises(OutputError, match=words) as caught:
        guard(tmp_path / "p.part.jsonl", fail)
    assert ("full" in str(caught.value)) == (number == errno.ENOSPC)


def test_video_keeps_varying_frame_times(tmp_path: Path) -> None:
    with VideoFile(tmp_path / "v.mp4", VideoConfig(), rate=lambda: 30.0) as video:
        stated_s = [5.0, 5.04, 5.05, 5.5, 6.0]
        for index, pts_s in enumerate(stated_s):
            video.write(frame(index, pts_s=pts_s), pose(index), NO_SKELETONS)
    assert video.commit() == [tmp_path / "v.mp4"]
    times_s, _ = times_and_sizes(tmp_path / "v.mp4")
    np.testing.assert_allclose(times_s, np.array(stated_s) - 5.0, atol=float(Fraction(1, 10_000)))


def test_video_fits_other_sizes_into_the_first_and_makes_odd_ones_even(tmp_path: Path) -> None:
    with VideoFile(tmp_path / "v.mp4", VideoConfig()) as video:
        for index, (width, height) in enumerate([(65, 49), (200, 20), (1, 1), (8, 300)]):
            video.write(frame(index, width, height), pose(index), NO_SKELETONS)
    video.commit()
    times_s, sizes = times_and_sizes(tmp_path / "v.mp4")
    assert times_s == [0.0, 1.0, 2.0, 3.0]
    assert sizes == {(64, 48)}


@pytest.mark.parametrize(
    ("width", "height", "expected"), [(1, 1, (16, 16)), (4000, 1000, (320, 80)), (1000, 1, (320, 16))]
)
def test_video_of_extreme_sizes_is_written(tmp_path: Path, width: int, height: int, expected: tuple[int, int]) -> None:
    with VideoFile(tmp_path / "v.mp4", VideoConfig(longest_side=320)) as video:
        video.write(frame(0, width, height, pts_s=0.0), pose(0), NO_SKELETONS)
    video.commit()
    assert times_and_sizes(tmp_path / "v.mp4")[1] == {expected}


def test_video_name_with_a_colon_is_a_name_and_no_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with VideoFile(Path("a:b?%d.mp4"), VideoConfig()) as video:
        video.write(frame(0, pts_s=0.0), pose(0), NO_SKELETONS)
    assert video.commit() == [Path("a:b?%d.mp4")]
    assert times_and_sizes(tmp_path / "a:b?%d.mp4")[0] == [0.0]


def test_video_without_a_frame_is_not_left_behind(tmp_path: Path) -> None:
    with VideoFile(tmp_path / "v.mp4", VideoConfig()) as video:
        pass
    assert video.commit() == []
    assert list(tmp_path.iterdir()) == []


def test_outputs_that_cannot_be_written_are_one_sentence(tmp_path: Path) -> None:
    for path in (tmp_path, Path("/dev/null")):
        with pytest.raises(OutputError, match="not a regular file"), PoseFile(path):
            pass
    with pytest.raises(OutputError, match=r"\.mp4, \.mkv, \.mov"):
        check_suffix(tmp_path / "v.txt")


@pytest.mark.parametrize("setting", [{"crf": 52}, {"longest_side": 2}, {"queue": 0}, {"threads": 0}])
def test_video_settings_out_of_range_are_refused(setting: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="video"):
        VideoConfig(**setting)  # type: ignore[arg-type]
