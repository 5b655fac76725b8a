"""Files that are whole or not there, and videos that keep the source's times."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from pipeline.errors import ConfigError, OutputError
from pipeline.frames import Frame
from pipeline.outputs.files import PoseFile, VideoConfig, VideoFile
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
    file = PoseFile(path)
    file.open()
    file.write(pose(0))
    file.write(NO_SKELETONS)
    file.close()
    assert path.read_text() == "old"
    assert file.commit() == [path]
    assert path.read_bytes().count(b"\n") == 1
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["poses.jsonl", "poses.skeletons.jsonl"]


def test_discarded_files_leave_nothing(tmp_path: Path) -> None:
    poses, video = PoseFile(tmp_path / "p.jsonl"), VideoFile(tmp_path / "v.mp4", VideoConfig())
    for file in (poses, video):
        file.open()
    video.write(frame(0, pts_s=0.0), pose(0), NO_SKELETONS)
    for file in (poses, video):
        file.close()
        file.discard()
    assert list(tmp_path.iterdir()) == []


def test_video_keeps_varying_frame_times(tmp_path: Path) -> None:
    video = VideoFile(tmp_path / "v.mp4", VideoConfig(), rate=30.0)
    video.open()
    stated_s = [5.0, 5.04, 5.05, 5.5, 6.0]
    for index, pts_s in enumerate(stated_s):
        video.write(frame(index, pts_s=pts_s), pose(index), NO_SKELETONS)
    video.close()
    assert video.commit() == [tmp_path / "v.mp4"]
    times_s, _ = times_and_sizes(tmp_path / "v.mp4")
    np.testing.assert_allclose(times_s, np.array(stated_s) - 5.0, atol=float(Fraction(1, 10_000)))


def test_video_fits_other_sizes_into_the_first_and_makes_odd_ones_even(tmp_path: Path) -> None:
    video = VideoFile(tmp_path / "v.mp4", VideoConfig())
    video.open()
    for index, (width, height) in enumerate([(65, 49), (200, 20), (1, 1), (8, 300)]):
        video.write(frame(index, width, height), pose(index), NO_SKELETONS)
    video.close()
    video.commit()
    times_s, sizes = times_and_sizes(tmp_path / "v.mp4")
    assert times_s == [0.0, 1.0, 2.0, 3.0]
    assert sizes == {(64, 48)}


@pytest.mark.parametrize(
    ("width", "height", "expected"), [(1, 1, (16, 16)), (4000, 1000, (320, 80)), (1000, 1, (320, 16))]
)
def test_video_of_extreme_sizes_is_written(tmp_path: Path, width: int, height: int, expected: tuple[int, int]) -> None:
    video = VideoFile(tmp_path / "v.mp4", VideoConfig(longest_side=320))
    video.open()
    video.write(frame(0, width, height, pts_s=0.0), pose(0), NO_SKELETONS)
    video.close()
    video.commit()
    assert times_and_sizes(tmp_path / "v.mp4")[1] == {expected}


def test_video_without_a_frame_is_not_left_behind(tmp_path: Path) -> None:
    video = VideoFile(tmp_path / "v.mp4", VideoConfig())
    video.open()
    video.close()
    assert video.commit() == []
    assert list(tmp_path.iterdir()) == []


def test_outputs_that_cannot_be_written_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="not a regular file"):
        PoseFile(tmp_path).open()
    with pytest.raises(OutputError, match="not a regular file"):
        PoseFile(Path("/dev/null")).open()
    with pytest.raises(OutputError, match=r"\.mp4, \.mkv, \.mov"):
        VideoFile(tmp_path / "v.txt", VideoConfig())


@pytest.mark.parametrize("setting", [{"crf": 52}, {"longest_side": 2}, {"queue": 0}, {"threads": 0}])
def test_video_settings_out_of_range_are_refused(setting: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="video"):
        VideoConfig(**setting)  # type: ignore[arg-type]
