"""Bad annotations are reported with file and id, counted, and skipped or refused; the rest is read."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from engines.skeletons import load_skeleton
from training.unikpt.checks import Capacity
from training.unikpt.coco_layout import CocoRules, read_coco_layout
from training.unikpt.images import ImageFinder, ImageReference, read_image
from training.unikpt.schema import AnnotationFileError, ImageError, ProblemKind, Record, Report

PERSON = load_skeleton("person").keypoints
WIDTH, HEIGHT = 64, 48


def _annotation(number: Any = 1, image: Any = 1, **changes: Any) -> dict[str, Any]:
    keypoints = [value for slot in range(17) for value in (10.0 + slot, 20.0, 2)]
    entry = {
        "id": number,
        "image_id": image,
        "category_id": 1,
        "bbox": [5, 5, 30, 30],
        "keypoints": keypoints,
        "iscrowd": 0,
    }
    return {**entry, **changes}


def _image(number: int = 1, name: str = "a.png", **changes: Any) -> dict[str, Any]:
    return {"id": number, "file_name": name, "width": WIDTH, "height": HEIGHT, **changes}


def _read(
    folder: Path,
    annotations: list[dict[str, Any]],
    images: list[dict[str, Any]] | None = None,
    names: list[str] | None = None,
    rules: CocoRules | None = None,
) -> tuple[list[Record], Report]:
    for name in ("a.png", "b.png"):
        cv2.imwrite(str(folder / name), np.full((HEIGHT, WIDTH, 3), 90, np.uint8))
    category = {"id": 1, "name": "person", "keypoints": list(PERSON) if names is None else names}
    path = folder / "bad.json"
    path.write_text(json.dumps({"images": images or [_image()], "annotations": annotations, "categories": [category]}))
    report = Report()
    used = rules or CocoRules("own", "person")
    return list(read_coco_layout(path, ImageFinder(folder), used, report)), report


def _only(report: Report, kind: ProblemKind, identifier: str) -> None:
    assert [(problem.kind, problem.id) for problem in report.problems] == [(kind, identifier)]
    assert report.problems[0].file.endswith("bad.json")


def test_good_file_has_no_problems(tmp_path: Path) -> None:
    records, report = _read(tmp_path, [_annotation()])
    assert len(records[0].instances) == 1
    assert not report.problems


CASES: list[tuple[ProblemKind, dict[str, Any]]] = [
    ("box without area", {"bbox": [5, 5, 0, 30]}),
    ("box without area", {"bbox": [5, 5, -3, 30]}),
    ("box outside the image", {"bbox": [500, 5, 30, 30]}),
    ("no labelled keypoint", {"keypoints": [0, 0, 0] * 17}),
    ("no labelled keypoint", {"keypoints": []}),
    ("malformed keypoints", {"keypoints": [1.0, 2.0]}),
    ("malformed keypoints", {"keypoints": ["x", 2.0, 2] * 17}),
    ("crowd region", {"iscrowd": 1}),
]


@pytest.mark.parametrize(("kind", "changes"), CASES)
def test_a_bad_instance_is_skipped_and_its_neighbour_is_read(
    kind: ProblemKind, changes: dict[str, Any], tmp_path: Path
) -> None:
    records, report = _read(tmp_path, [_annotation(7, **changes), _annotation(8)])
    assert [instance.id for record in records for instance in record.instances] == ["8"]
    _only(report, kind, "7")


def test_a_box_partly_outside_is_clipped(tmp_path: Path) -> None:
    records, report = _read(tmp_path, [_annotation(7, bbox=[-10, -10, 40, 40])])
    assert records[0].instances[0].bbox_xyxy == (0.0, 0.0, 30.0, 30.0)
    _only(report, "box clipped to the image", "7")


def test_a_keypoint_outside_the_image_loses_its_label(tmp_path: Path) -> None:
    keypoints = _annotation()["keypoints"]
    keypoints[0:3] = [900.0, 20.0, 2]
    records, report = _read(tmp_path, [_annotation(7, keypoints=keypoints)])
    np.testing.assert_array_equal(records[0].instances[0].keypoints_K3[0], [0.0, 0.0, 0.0])
    assert (records[0].instances[0].keypoints_K3[1:, 2] == 2).all()
    _only(report, "keypoint outside the image", "7")


def test_no_box_is_made_from_the_points(tmp_path: Path) -> None:
    records, _ = _read(tmp_path, [_annotation(7, bbox=None)])
    x0, y0, x1, y1 = records[0].instances[0].bbox_xyxy
    assert x0 < 10.0 < 26.0 < x1
    assert y0 < 20.0 < y1


def test_a_missing_image_is_skipped(tmp_path: Path) -> None:
    records, report = _read(tmp_path, [_annotation(), _annotation(2, 2)], [_image(), _image(2, "gone.png")])
    assert len(records) == 1
    _only(report, "image missing", "2")
    assert "gone.png" in report.problems[0].text


def test_an_image_that_cannot_be_told_apart_is_skipped(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        cv2.imwrite(str(tmp_path / name / "same.png"), np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    records, report = _read(tmp_path, [_annotation()], [_image(name="same.png")])
    assert not records
    _only(report, "image missing", "1")
    records, report = _read(tmp_path, [_annotation()], [_image(name="E:\\their\\disk\\two\\same.png")])
    assert records[0].image_path.parent.name == "two"


def test_the_second_annotation_of_one_id_is_skipped(tmp_path: Path) -> None:
    records, report = _read(tmp_path, [_annotation(7), _annotation(7, bbox=[1, 1, 9, 9])])
    assert [instance.bbox_xyxy for instance in records[0].instances] == [(5.0, 5.0, 35.0, 35.0)]
    _only(report, "duplicated annotation id", "7")


def test_two_files_under_one_image_id_are_both_skipped(tmp_path: Path) -> None:
    records, report = _read(tmp_path, [_annotation()], [_image(1, "a.png"), _image(1, "b.png")])
    assert not records
    assert report.counts == {"duplicated image id": 2}


def test_an_annotation_without_image_is_skipped(tmp_path: Path) -> None:
    records, report = _read(tmp_path, [_annotation(), _annotation(2, 99)])
    assert len(records) == 1
    _only(report, "annotation without image", "2")


def test_an_unknown_keypoint_name_refuses_the_file_and_says_what_to_do(tmp_path: Path) -> None:
    names = ["nos", *PERSON[1:]]
    with pytest.raises(AnnotationFileError, match=r"bad\.json.*'nos'.*person.*nearest: nose.*rename") as caught:
        _read(tmp_path, [_annotation()], names=names)
    assert "\n" not in str(caught.value)


def test_an_unknown_category_is_skipped_and_the_others_are_read(tmp_path: Path) -> None:
    records, report = _read(tmp_path, [_annotation(), _annotation(2, category_id=5)])
    assert [instance.id for instance in records[0].instances] == ["1"]
    _only(report, "unknown category", "5")


def test_unnamed_keypoints_of_another_count_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AnnotationFileError, match=r"3 keypoints without names.*has 17"):
        _read(tmp_path, [_annotation(keypoints=[5, 5, 2] * 3)], names=[])


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"images": []}', b"\xff\xfe"])
def test_a_file_that_is_no_annotation_file_is_refused_by_name(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    with pytest.raises(AnnotationFileError, match=r"broken\.json"):
        list(read_coco_layout(path, ImageFinder(tmp_path), CocoRules("own", "person"), Report()))


def test_over_capacity_keeps_the_largest(tmp_path: Path) -> None:
    annotations = [_annotation(number, bbox=[1, 1, 4 + number, 10]) for number in range(1, 6)]
    rules = CocoRules("own", "person", capacity=Capacity(instances=2))
    records, report = _read(tmp_path, annotations, rules=rules)
    assert [instance.id for instance in records[0].instances] == ["4", "5"]
    assert report.counts == {"over capacity": 1}


def test_a_category_that_fills_more_area_stays_when_categories_are_over_capacity(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    categories = [{"id": 1, "name": "person", "keypoints": []}, {"id": 2, "name": "macaque", "keypoints": []}]
    annotations = [_annotation(1, bbox=[1, 1, 5, 5]), _annotation(2, category_id=2, bbox=[1, 1, 30, 30])]
    path = tmp_path / "two.json"
    path.write_text(json.dumps({"images": [_image()], "annotations": annotations, "categories": categories}))
    report, rules = Report(), CocoRules("own", capacity=Capacity(categories=1))
    records = list(read_coco_layout(path, ImageFinder(tmp_path), rules, report))
    assert [instance.category for instance in records[0].instances] == ["macaque"]
    assert report.counts == {"over capacity": 1}


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n\x00\x00"])
def test_a_corrupt_image_is_an_error_of_its_own_that_names_it(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "corrupt.png"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"corrupt\.png"):
        read_image(ImageReference(path))


def test_a_corrupt_image_without_stated_size_does_not_stop_the_reader(tmp_path: Path) -> None:
    (tmp_path / "corrupt.png").write_bytes(b"no image")
    images = [_image(), {"id": 2, "file_name": "corrupt.png"}]
    records, report = _read(tmp_path, [_annotation(), _annotation(2, 2)], images)
    assert len(records) == 1
    _only(report, "image unreadable", "2")
