"""Native formats that no real file was at hand for: read from files written after their descriptions."""

import csv
import json
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
import scipy.io

from engines.skeletons import load_skeleton
from training.unikpt.catalogue import DATA_SETS, UNIKPT, read_data_set
from training.unikpt.coco_layout import read_coco_layout
from training.unikpt.images import ImageFinder, read_image
from training.unikpt.native import parse_points_file
from training.unikpt.schema import AnnotationFileError, Record, Report

BY_SLUG = {data_set.slug: data_set for data_set in DATA_SETS}


def _picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((100, 120, 3), 60, np.uint8))


def _points(path: Path, count: int, broken: bool = False) -> None:
    lines = "\n".join(f"{11 + number}.000 21.500" for number in range(count))
    path.write_text(f"version: 1\nn_points:  {count}\n{{\n{lines}{' x' if broken else ''}\n}}\n")


def _read(slug: str, folder: Path) -> tuple[list[Record], Report]:
    report = Report()
    return list(read_data_set(BY_SLUG[slug], folder, report)), report


def test_points_files_count_pixels_from_one(tmp_path: Path) -> None:
    _points(tmp_path / "a.pts", 3)
    np.testing.assert_allclose(parse_points_file(tmp_path / "a.pts"), [[10, 20.5], [11, 20.5], [12, 20.5]])


def test_300w_points(tmp_path: Path) -> None:
    _picture(tmp_path / "helen" / "trainset" / "1.png")
    _points(tmp_path / "helen" / "trainset" / "1.pts", 68)
    records, report = _read("300w", tmp_path)
    assert not report.problems
    assert records[0].instances[0].category == "face"
    assert len(records[0].instances[0].keypoints_K3) == 68
    assert records[0].split == "train"


def test_animalweb_class_is_in_the_file_name(tmp_path: Path) -> None:
    _picture(tmp_path / "arctic_fox_12.jpg")
    _points(tmp_path / "arctic_fox_12.pts", 9)
    records, _ = _read("animalweb", tmp_path)
    assert records[0].instances[0].category == "arctic fox"
    assert records[0].instances[0].skeleton == "animal_face"


def test_one_broken_points_file_does_not_stop_the_others(tmp_path: Path) -> None:
    for name, count, broken in (("cat_1", 9, True), ("cat_2", 8, False), ("cat_3", 9, False)):
        _picture(tmp_path / f"{name}.jpg")
        _points(tmp_path / f"{name}.pts", count, broken)
    _points(tmp_path / "cat_4.pts", 9)
    records, report = _read("animalweb", tmp_path)
    assert [record.image_path.name for record in records] == ["cat_3.jpg"]
    assert report.counts == {"annotation file refused": 1, "malformed keypoints": 1, "image missing": 1}


def test_macaque_table(tmp_path: Path) -> None:
    _picture(tmp_path / "images" / "m.jpg")
    animal = [{"name": name, "position": None if name == "nose" else [20.0, 30.0]} for name in
              (text.replace(" ", "_") for text in load_skeleton("person").keypoints)]  # fmt: skip
    with (tmp_path / "annotations.csv").open("w", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(["image file name", "keypoints", "segmentation"])
        outline = [[{"segment": [[10, 10], [50, 10], [50, 60]]}]]
        writer.writerow(["m.jpg", json.dumps([animal]), json.dumps(outline)])
        writer.writerow(["m.jpg", "no json", "[]"])
        writer.writerow(["gone.jpg", json.dumps([animal]), "[]"])
    records, report = _read("macaque", tmp_path)
    assert len(records) == 1
    instance = records[0].instances[0]
    assert instance.bbox_xyxy == (10.0, 10.0, 50.0, 60.0)
    np.testing.assert_array_equal(instance.keypoints_K3[:2], [[0, 0, 0], [20, 30, 2]])
    assert report.counts == {"malformed keypoints": 1, "image missing": 1}


def test_onehand10k_table(tmp_path: Path) -> None:
    _picture(tmp_path / "Train" / "source" / "0.jpg")
    values = ["-1,-1"] + ["30,40"] * 20
    (tmp_path / "Train" / "label_joint.txt").write_text(f"0.jpg,120,100,1,{','.join(values)}\n1.jpg,1,1,1,3\n")
    records, report = _read("onehand10k", tmp_path)
    np.testing.assert_array_equal(records[0].instances[0].keypoints_K3[:2], [[0, 0, 0], [30, 40, 2]])
    assert report.counts == {"image missing": 1}


def test_keypoint5_takes_the_mean_of_its_annotators(tmp_path: Path) -> None:
    _picture(tmp_path / "chair" / "images" / "00000001.jpg")
    coordinates = np.full((2, 10, 3, 2), np.nan)
    coordinates[:, 1:, 0, 0] = np.array([[10.0], [20.0]])
    coordinates[:, 1:, 1, 0] = np.array([[14.0], [30.0]])
    scipy.io.savemat(str(tmp_path / "chair" / "coords.mat"), {"coords": coordinates})
    records, report = _read("keypoint5", tmp_path)
    np.testing.assert_array_equal(records[0].instances[0].keypoints_K3[:2], [[0, 0, 0], [12, 25, 2]])
    assert report.counts == {"image missing": 1}


def test_keypoint5_refuses_another_shape(tmp_path: Path) -> None:
    (tmp_path / "chair").mkdir()
    scipy.io.savemat(str(tmp_path / "chair" / "coords.mat"), {"coords": np.zeros((2, 3))})
    records, report = _read("keypoint5", tmp_path)
    assert not records
    assert report.counts == {"annotation file refused": 1}


def test_apt36k_finds_images_under_the_annotators_own_paths(tmp_path: Path) -> None:
    _picture(tmp_path / "deer" / "clip1" / "1.png")
    _picture(tmp_path / "deer" / "clip2" / "1.png")
    names = [name.replace(" ", "_") for name in load_skeleton("animal_in_AP10K").keypoints]
    content = {
        "images": [
            {"id": 1, "file_name": "D:\\AP-36k\\deer\\clip2\\1.png", "width": 120, "height": 100, "video_id": 3}
        ],
        "annotations": [
            {
                "id": 4,
                "image_id": 1,
                "category_id": 2,
                "bbox": [1, 1, 50, 50],
                "keypoints": [9, 9, 2] * 17,
                "track_id": 1,
            }
        ],
        "categories": [{"id": 2, "name": "deer", "keypoints": names}],
    }
    (tmp_path / "apt36k_annotations.json").write_text(json.dumps(content))
    records, report = _read("apt36k", tmp_path)
    assert not report.problems
    assert records[0].image_path.parent.name == "clip2"
    assert records[0].instances[0].category == "deer"


MP100 = [
    ("short_sleeved_shirt", 25, "short_sleeved_shirt", "short sleeve top"),
    ("antelope_body", 17, "animal_in_AP10K", "antelope body"),
    ("alpaca_face", 9, "animal_face", "alpaca face"),
    ("human_hand", 21, "hand", "human hand"),
    ("human_body", 17, "person", "human body"),
    ("car", 14, "car", "car"),
    ("swivelchair", 13, "swivelchair", "swivelchair"),
    ("wren_body", 15, "bird", "wren body"),
]


@pytest.mark.parametrize(("category", "slots", "skeleton", "text"), MP100)
def test_mp100_and_the_published_file_find_the_list_by_category(
    category: str, slots: int, skeleton: str, text: str, tmp_path: Path
) -> None:
    _picture(tmp_path / "1.jpg")
    content = {
        "images": [{"id": 1, "file_name": "1.jpg", "height": 100, "width": 120}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 7, "bbox": [1, 1, 50, 50], "keypoints": [9, 9, 2] * slots}
        ],
        "categories": [{"id": 7, "name": category}],
    }
    path = tmp_path / "mp100_split1_train.json"
    path.write_text(json.dumps(content))
    for records in (_read("mp100", tmp_path)[0], list(read_coco_layout(path, ImageFinder(tmp_path), UNIKPT, Report()))):
        instance = records[0].instances[0]
        assert load_skeleton(instance.skeleton).name == skeleton
        assert instance.category == text


def test_a_category_of_unknown_keypoints_is_refused_with_the_way_out(tmp_path: Path) -> None:
    _picture(tmp_path / "1.jpg")
    content = {
        "images": [{"id": 1, "file_name": "1.jpg", "height": 100, "width": 120}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 7, "bbox": [1, 1, 50, 50], "keypoints": [9, 9, 2] * 5}],
        "categories": [{"id": 7, "name": "spaceship"}],
    }
    path = tmp_path / "unikpt_training_annotations.json"
    path.write_text(json.dumps(content))
    with pytest.raises(AnnotationFileError, match=r"spaceship.*5 keypoints.*--skeleton"):
        list(read_coco_layout(path, ImageFinder(tmp_path), UNIKPT, Report()))


# DeepPoseKit-Data's own datasets/fly/skeleton.csv, column "name"
FLY_NAMES = [
    *("head", "eyeL", "eyeR", "neck", "thorax", "abdomen"),
    *(f"{leg}R{number}" for leg in ("foreleg", "midleg", "hindleg") for number in (1, 2, 3, 4)),
    *(f"{leg}L{number}" for leg in ("foreleg", "midleg", "hindleg") for number in (1, 2, 3, 4)),
    *("wingL", "wingR"),
]


def _deepposekit(folder: Path, keypoints: int = 32) -> None:
    """Two grey images; the second one's points were never confirmed but for two."""
    (folder / "skeleton.csv").write_text("name,parent,swap\n" + "".join(f"{name},,\n" for name in FLY_NAMES))
    points_NK2 = np.stack([np.arange(2 * keypoints).reshape(keypoints, 2) + 5.0] * 2)
    annotated_NK = np.ones((2, keypoints), bool)
    annotated_NK[1, 2:] = False
    with h5py.File(folder / "annotation_data_release.h5", "w") as opened:
        opened["images"] = np.stack([np.full((96, 80, 1), 40 * (number + 1), np.uint8) for number in range(2)])
        opened["annotations"], opened["annotated"] = points_NK2, annotated_NK
        opened["skeleton"] = np.zeros((keypoints, 2), np.int32)


def test_deepposekit_keypoints_arrive_under_their_published_names_and_guesses_are_not_labelled(tmp_path: Path) -> None:
    _deepposekit(tmp_path)
    records, report = _read("fly", tmp_path)
    assert not report.problems
    first, second = (record.instances[0] for record in records)
    slots = load_skeleton("fly").keypoints
    column = FLY_NAMES.index("forelegL4")
    tip = first.keypoints_K3[slots.index("foreleg left tip")]
    np.testing.assert_allclose(tip, [2 * column + 5, 2 * column + 6, 2])
    assert (first.keypoints_K3[:, 2] == 2).all()
    assert {slots[slot] for slot in np.flatnonzero(second.keypoints_K3[:, 2])} == {"head", "eye left"}
    assert (records[1].width, records[1].height) == (80, 96)
    assert (read_image(Record.from_dict(records[1].to_dict())) == 80).all()


@pytest.mark.parametrize("broken", ["names", "shape", "content"])
def test_a_deepposekit_file_that_cannot_be_understood_is_refused(tmp_path: Path, broken: str) -> None:
    _deepposekit(tmp_path, 31 if broken == "shape" else 32)
    if broken == "names":
        (tmp_path / "skeleton.csv").unlink()
    if broken == "content":
        (tmp_path / "annotation_data_release.h5").write_bytes(b"no HDF5")
    records, report = _read("fly", tmp_path)
    assert not records
    assert [problem.kind for problem in report.problems] == ["annotation file refused"]
