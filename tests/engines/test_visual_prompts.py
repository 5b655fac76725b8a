"""Example images: reading them, cutting them out, refusing them, and knowing whether a network can use them."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from torch import nn

from engines.errors import PromptError
from engines.skeletons import load_skeleton
from engines.visual_prompts import CROP_MARGIN, Example, crop_example, load_example, visual_weights_trained
from tests.support import SHARED


def coco(**changes: Any) -> dict[str, Any]:
    annotation = {"id": 5, "image_id": 1, "category_id": 2, "bbox": [10, 10, 40, 30], "keypoints": [12, 12, 2, 0, 0, 0]}
    return {
        "images": [{"id": 1, "file_name": "some/folder/mug.png", "width": 64}],
        "annotations": [{**annotation, **changes}],
        "categories": [{"id": 2, "name": "mug", "keypoints": ["rim", "handle"], "skeleton": [[1, 2]]}],
        "info": {"ignored": True},
    }


def write(folder: Path, content: dict[str, Any]) -> tuple[Path, Path]:
    image, annotation = folder / "mug.png", folder / "mug.json"
    cv2.imwrite(str(image), np.full((48, 64, 3), (10, 20, 30), dtype=np.uint8))  # blue, green, red
    annotation.write_text(json.dumps(content), encoding="utf-8")
    return image, annotation


def test_an_example_is_read_with_its_names_and_edges(tmp_path: Path) -> None:
    example = load_example(*write(tmp_path, coco()))
    assert example.name == "mug"
    assert example.skeleton.keypoints == ("rim", "handle")
    assert example.skeleton.edges == ((0, 1),)
    assert example.box_xyxy == (10, 10, 50, 40)
    assert example.rgb_HW3[0, 0].tolist() == [30, 20, 10]
    np.testing.assert_array_equal(example.keypoints_K3, [[12, 12, 2], [0, 0, 0]])


@pytest.mark.parametrize("between", [" ", "_", ""])
def test_published_names_bring_the_published_list_however_they_are_spelled(tmp_path: Path, between: str) -> None:
    content = coco(keypoints=[20, 20, 2] * 17)
    names = [name.replace(" ", between) for name in load_skeleton("person").keypoints]
    content["categories"] = [{"id": 2, "name": "person", "keypoints": names}]
    assert load_example(*write(tmp_path, content)).skeleton is load_skeleton("person")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"keypoints": [12, 12, 0, 0, 0, 0]}, "no visible keypoint"),
        ({"keypoints": [12, 12, 2]}, "needed are x y v for each of the 2 names"),
        ({"bbox": [10, 10, 0, 30]}, "box with an area"),
        ({"bbox": [100, 10, 5, 5]}, "lies outside"),
        ({"bbox": [10, 10, 5]}, "annotation 5 .*key bbox"),
        ({"category_id": 7}, "category 7, which is listed 0 times"),
        ({"image_id": 3}, "has 0 annotations"),
        ({"keypoints": "none"}, "annotation 5 .*key keypoints"),
        ({"keypoints": []}, "has 0 numbers"),
    ],
)
def test_bad_annotations_are_clear_errors_that_name_the_file(
    tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    image, annotation = write(tmp_path, coco(**changes))
    with pytest.raises(PromptError, match=says) as raised:
        load_example(image, annotation)
    assert "mug.json" in str(raised.value)


def test_several_annotations_or_unknown_names_are_refused(tmp_path: Path) -> None:
    content = coco()
    content["annotations"] *= 2
    with pytest.raises(PromptError, match="has 2 annotations"):
        load_example(*write(tmp_path, content))
    content = coco()
    content["images"] = [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}]
    with pytest.raises(PromptError, match=r"0 images called 'mug\.png'"):
        load_example(*write(tmp_path, content))


def test_files_are_read_as_many_tools_write_them(tmp_path: Path) -> None:
    """Ids of any kind, names with folders of any system, nulls, and entries of other images that lack everything."""

    def reads(**changes: Any) -> None:
        content = coco() | changes
        content["images"] = [*changes.get("images", [{"id": 1, "file_name": "mug.png"}]), {"id": 2}]
        assert load_example(*write(tmp_path, content)).box_xyxy == (10, 10, 50, 40)

    (annotation,) = coco()["annotations"]
    (category,) = coco()["categories"]
    for name in (r"C:\\photos\\mug.png", "http://host/a%20b/mug.png?size=3", "MUG.PNG", "./mug.png"):
        reads(images=[{"id": 1, "file_name": name}])
    for image_id in (1.0, "1"):
        reads(images=[{"id": image_id, "file_name": "mug.png"}], annotations=[annotation | {"category_id": 2.0}])
    for other in ({"image_id": 2}, {"image_id": 2, "keypoints": None}, {"image_id": 1, "iscrowd": 1}, {"image_id": 1}):
        reads(annotations=[other, annotation])
    reads(categories=[category | {"skeleton": None}, {"id": 3}])


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    image, annotation = write(tmp_path, coco())
    annotation.write_bytes(b"\xef\xbb\xbf" + annotation.read_bytes())
    assert load_example(image, annotation).name == "mug"


def test_of_two_images_of_one_name_the_folder_decides(tmp_path: Path) -> None:
    content = coco()
    content["images"] = [{"id": 3, "file_name": "b/mug.png"}, {"id": 1, "file_name": f"{tmp_path.name}\\mug.png"}]
    assert load_example(*write(tmp_path, content)).box_xyxy == (10, 10, 50, 40)


def test_a_skeleton_that_counts_from_0_is_refused_with_the_numbers_of_the_file(tmp_path: Path) -> None:
    content = coco()
    content["categories"][0]["skeleton"] = [[0, 1]]
    with pytest.raises(PromptError, match=r"edge \[0, 1\].* counts its 2 keypoints from 1"):
        load_example(*write(tmp_path, content))


@pytest.mark.parametrize("path", sorted((SHARED / "field" / "coco").glob("*.json")), ids=lambda path: path.stem)
def test_annotation_files_from_the_field_are_read(path: Path) -> None:
    image = path.with_name("a.jpg")
    if path.stem == "0-based_skeleton":
        with pytest.raises(PromptError, match=r"edge \[0, 1\]"):
            load_example(image, path)
    else:
        assert load_example(image, path).box_xyxy == (90, 80, 290, 480)


def test_unreadable_files_are_clear_errors(tmp_path: Path) -> None:
    image, annotation = write(tmp_path, coco())
    with pytest.raises(PromptError, match=r"absent\.json"):
        load_example(image, tmp_path / "absent.json")
    with pytest.raises(PromptError, match=r"absent\.png"):
        load_example(tmp_path / "absent.png", annotation)
    for content in (b"", b"no image"):
        image.write_bytes(content)
        with pytest.raises(PromptError, match=r"mug\.png is not an image"):
            load_example(image, annotation)
    annotation.write_text("{", encoding="utf-8")
    with pytest.raises(PromptError, match="not JSON"):
        load_example(image, annotation)
    annotation.write_text('{"images": []}', encoding="utf-8")
    with pytest.raises(PromptError, match="layout"):
        load_example(image, annotation)


def spot(x: float, y: float, height: int, width: int, radius: float) -> np.ndarray:
    """A black picture with a soft white spot whose centre is at (x, y), in pixels from the corner."""
    rows, columns = np.mgrid[:height, :width] + 0.5
    weight = np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * radius**2))
    return np.repeat((255 * weight).astype(np.uint8)[..., None], 3, axis=2)


@pytest.mark.parametrize(
    "box", [(300, 200, 420, 320), (250, 150, 290, 560), (0, 0, 640, 480), (-50.5, 10.25, 300, 700)]
)
def test_keypoints_stay_on_what_they_mark(box: tuple[float, float, float, float]) -> None:
    x, y = (max(box[0], 0) + min(box[2], 640)) / 2 + 9.3, (max(box[1], 0) + min(box[3], 480)) / 2 - 7.6
    side = CROP_MARGIN * max(box[2] - box[0], box[3] - box[1])
    image = spot(x, y, 480, 640, radius=0.03 * side)
    pixels, points, visible = crop_example(image, box, np.array([[x, y, 2], [0, 0, 0]], dtype=np.float32))
    assert pixels.shape == (3, 224, 224)
    assert visible.tolist() == [True, False]
    bright = np.clip(pixels[1] - 0.5, 0, None)  # leaves out black, and what lies outside of the image
    rows, columns = np.mgrid[:224, :224] + 0.5
    centre = np.array([(bright * columns).sum(), (bright * rows).sum()]) / bright.sum() / 224
    np.testing.assert_allclose(points[0], centre, atol=0.2 / 224)


def test_outside_of_the_image_is_clips_mean_colour() -> None:
    image = np.full((50, 50, 3), 255, dtype=np.uint8)
    pixels, _, _ = crop_example(image, (0, 0, 50, 5), np.zeros((1, 3), dtype=np.float32))
    assert pixels[:, 0].max() == 0
    assert pixels[:, 112, 112].min() > 1


@settings(max_examples=40, deadline=None)
@given(
    size=some.tuples(some.integers(1, 60), some.integers(1, 60)),
    start=some.tuples(some.floats(-20, 50), some.floats(-20, 50)),
    extent=some.tuples(some.floats(0.5, 5000), some.floats(0.5, 5000)),
)
def test_any_box_that_touches_the_image_can_be_cut_out(
    size: tuple[int, int], start: tuple[float, float], extent: tuple[float, float]
) -> None:
    image = np.zeros((*size, 3), dtype=np.uint8)
    box = (start[0], start[1], start[0] + extent[0], start[1] + extent[1])
    keypoints = np.array([[start[0], start[1], 2]], dtype=np.float32)
    try:
        Example("x", load_skeleton("table"), image, box, np.repeat(keypoints, 8, axis=0))
    except PromptError:
        return  # outside of the image: refused, as another test claims
    pixels, _, _ = crop_example(image, box, keypoints)
    assert pixels.shape == (3, 224, 224)
    assert np.isfinite(pixels).all()


class VisualPart(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.pos_proj = nn.Linear(256, 768)
        self.padding = nn.Embedding(1, 768)


def test_fresh_visual_weights_are_told_from_trained_ones() -> None:
    model = VisualPart()
    report = visual_weights_trained(model)
    assert (report.pos_proj_trained, report.padding_trained) == (False, False)
    assert "as initialised" in str(report)
    halved = VisualPart().half()
    assert not visual_weights_trained(halved).pos_proj_trained
    with torch.no_grad():
        model.pos_proj.weight[0, 0] = 0.07  # one entry that no initialisation gives
    assert visual_weights_trained(model).pos_proj_trained
    model = VisualPart()
    with torch.no_grad():
        model.pos_proj.weight *= 0.9  # within the bounds, but no longer uniform up to them
        model.padding.weight.fill_(0.1)
    report = visual_weights_trained(model)
    assert (report.pos_proj_trained, report.padding_trained) == (True, True)
    assert "is trained" in str(report)


@pytest.mark.parametrize(
    ("marked", "side", "says"),
    [
        (4, 32.0, ""),
        (3, 32.0, "it marks 3 of 17 keypoints; mark 4 or more"),
        (17, 31.0, "its object is 31 px large; give one of 32 px or more"),
    ],
)
def test_an_example_that_can_hardly_work_says_why(marked: int, side: float, says: str) -> None:
    points = np.zeros((17, 3), np.float32)
    points[:marked] = (12, 12, 2)
    image = np.zeros((64, 64, 3), np.uint8)
    example = Example("person", load_skeleton("person"), image, (10.0, 10.0, 10.0 + side, 20.0), points)
    assert example.shortcoming() == says
