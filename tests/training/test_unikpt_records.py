"""From an index to training samples: what cannot be decoded is passed over, never raised."""

from pathlib import Path

import cv2
import numpy as np

from training.data.records import read_records
from training.unikpt.schema import InstanceRecord, Record, Report


def _record(path: Path, width: int = 30, height: int = 20) -> Record:
    keypoints_K3 = np.tile(np.array([5.0, 6.0, 2.0], np.float32), (17, 1))
    instance = InstanceRecord("person", "person", (1.0, 2.0, 11.0, 12.0), keypoints_K3, 80.0, False, "1")
    return Record("own", "train", path, width, height, (instance,))


def test_corrupt_missing_and_resized_images_are_passed_over(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "good.png"), np.full((20, 30, 3), (10, 20, 30), np.uint8))
    (tmp_path / "corrupt.png").write_bytes(b"\x89PNG no image")
    report = Report()
    records = [
        _record(tmp_path / "corrupt.png"),
        _record(tmp_path / "gone.png"),
        _record(tmp_path / "good.png", width=31),
        _record(tmp_path / "good.png"),
    ]
    samples = list(read_records(records, report))
    assert len(samples) == 1
    assert samples[0].image_HW3[0, 0].tolist() == [30, 20, 10], "RGB, where OpenCV writes BGR"
    assert samples[0].instances[0].box_xyxy.tolist() == [1.0, 2.0, 11.0, 12.0]
    assert samples[0].instances[0].area_px == 80.0
    assert [problem.id for problem in report.problems] == ["corrupt.png", "gone.png", "good.png"]
