"""Samples, caches, augmentation and batches."""

from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest

from engines.skeletons import load_skeleton
from pipeline.synthetic import CATEGORIES, SceneConfig
from tests.support import need_shared
from training.data.augment import AugmentConfig, beside_mirror_images, compose, letterbox
from training.data.build import load_synthetic_set
from training.data.cache import ImageCache, write_cache
from training.data.records import read_records
from training.data.sample import Instance, Sample, clip_instance
from training.data.stream import SourceConfig, Stream
from training.data.synthetic import read_synthetic
from training.targets import draw_offer
from training.unikpt.catalogue import LSPET
from training.unikpt.coco_layout import read_coco_layout
from training.unikpt.images import ImageFinder
from training.unikpt.schema import Report

STILL = AugmentConfig(
    flip_probability=0.0,
    rotation_degrees=0.0,
    scale_range=(1.0, 1.0),
    shift=0.0,
    layout_weights=(1.0, 0.0, 0.0, 0.0),
    colour_probability=0.0,
    grey_probability=0.0,
    blur_probability=0.0,
    occlusion_probability=0.0,
)


def person_with_a_dot(name: str = "left wrist") -> Sample:
    """A black image whose only bright dot lies under one labelled keypoint."""
    image = np.zeros((60, 80, 3), np.uint8)
    cv2.circle(image, (60, 20), 2, (255, 255, 255), -1)
    keypoints_K3 = np.zeros((17, 3), np.float32)
    keypoints_K3[load_skeleton("person").keypoints.index(name)] = (60.5, 20.5, 2)
    instance = Instance("person", "person", np.array([40, 10, 75, 50], np.float32), keypoints_K3, 900.0)
    return Sample(image, (instance,), "test", "1")


@pytest.mark.parametrize("seed", range(8))
def test_the_labelled_point_stays_on_the_dot_through_every_warp(seed: int) -> None:
    config = AugmentConfig(colour_probability=0.0, occlusion_probability=0.0, blur_probability=0.0)
    found = compose([person_with_a_dot()], (1, 1), 96, 96, config, np.random.default_rng(seed))
    if not found.instances:
        return
    labelled_K3 = found.instances[0].keypoints_K3
    (x, y), v = labelled_K3[labelled_K3[:, 2] > 0][0, :2], labelled_K3[:, 2].sum()
    bright = np.argwhere(found.image_HW3.min(2) > 180).mean(0)[::-1]
    assert v == 2
    np.testing.assert_allclose((x, y), bright + 0.5, atol=1.0)


def test_a_mirrored_left_wrist_is_a_right_wrist() -> None:
    mirrored = compose(
        [person_with_a_dot()],
        (1, 1),
        60,
        80,
        AugmentConfig(
            **{field: getattr(STILL, field) for field in STILL.__struct_fields__} | {"flip_probability": 1.0}
        ),
        np.random.default_rng(0),
    )
    names = load_skeleton("person").keypoints
    keypoints_K3 = mirrored.instances[0].keypoints_K3
    assert [names[k] for k in np.flatnonzero(keypoints_K3[:, 2])] == ["right wrist"]
    np.testing.assert_allclose(keypoints_K3[names.index("right wrist"), :2], (80 - 60.5, 20.5), atol=1e-4)
    np.testing.assert_allclose(mirrored.instances[0].box_xyxy, (5, 10, 40, 50), atol=1e-4)


@pytest.mark.parametrize("seed", range(8))
def test_mirror_images_stand_side_by_side_with_their_labels_on_the_dots(seed: int) -> None:
    source = person_with_a_dot()
    strip = beside_mirror_images(source, np.random.default_rng(seed))
    names = load_skeleton("person").keypoints
    labelled = [int(np.flatnonzero(found.keypoints_K3[:, 2])[0]) for found in strip.instances]
    assert len(labelled) in (2, 3)
    sides = [names[number] for number in labelled]
    assert all({a, b} == {"left wrist", "right wrist"} for a, b in pairwise(sides))  # every other one is mirrored
    dots, _, _, centres = cv2.connectedComponentsWithStats(
        (strip.image_HW3.min(2) > 180).astype(np.uint8), connectivity=8
    )
    assert dots - 1 == len(labelled)
    points_N2 = np.array([found.keypoints_K3[k, :2] for found, k in zip(strip.instances, labelled, strict=True)])
    np.testing.assert_allclose(points_N2, centres[1:][np.argsort(centres[1:, 0])] + 0.5, atol=0.6)
    for found in strip.instances:  # 35 px wide before, cut by a tenth at most on either side
        assert 28 <= found.box_xyxy[2] - found.box_xyxy[0] <= 35
        assert found.box_xyxy[0] >= 0
        assert found.box_xyxy[2] <= strip.image_HW3.shape[1]


def test_an_image_without_objects_is_not_mirrored() -> None:
    empty = Sample(np.zeros((20, 30, 3), np.uint8), (), "test", "2")
    assert beside_mirror_images(empty, np.random.default_rng(0)) is empty


def test_letterboxing_keeps_the_aspect_ratio() -> None:
    found = letterbox(person_with_a_dot(), 160, 160)
    box = found.instances[0].box_xyxy
    np.testing.assert_allclose(box, np.array([40, 10, 75, 50]) * 2 + np.array([0, 20, 0, 20]), atol=1e-3)


def test_a_point_outside_the_canvas_loses_its_label_and_an_object_outside_is_dropped() -> None:
    instance = person_with_a_dot().instances[0]
    cut = clip_instance(instance, 59, 60)
    assert cut is None
    kept = clip_instance(instance, 70, 60)
    assert kept is not None
    assert kept.box_xyxy[2] == 70


def test_a_cache_returns_what_was_written(tmp_path: Path) -> None:
    sample = person_with_a_dot()
    assert write_cache(tmp_path / "c", [sample], 4, 64) == 1
    found = ImageCache(tmp_path / "c")[0]
    assert found.image_HW3.shape == (48, 64, 3)
    np.testing.assert_allclose(found.instances[0].box_xyxy, sample.instances[0].box_xyxy * 0.8, atol=1e-2)
    with pytest.raises(FileExistsError, match="exists already"):
        write_cache(tmp_path / "c", [sample], 4, 64)
    with pytest.raises(FileNotFoundError, match="no image cache"):
        ImageCache(tmp_path / "absent")


def test_scenes_are_the_same_whoever_renders_them() -> None:
    scenes = SceneConfig(size_hw=(48, 48), categories=("chair",), instances=(1, 1))
    alone, shared = (list(read_synthetic(scenes, 7, 20, workers)) for workers in (0, 2))
    assert [sample.image_id for sample in shared] == [str(seed) for seed in range(7, 27)]
    for a, b in zip(alone, shared, strict=True):
        np.testing.assert_array_equal(a.image_HW3, b.image_HW3)
        np.testing.assert_array_equal(a.instances[0].keypoints_K3, b.instances[0].keypoints_K3)


def test_batches_are_a_function_of_seed_rank_and_step(tmp_path: Path) -> None:
    scenes = SceneConfig(size_hw=(48, 48), categories=("chair",), instances=(1, 1))
    write_cache(tmp_path / "c", read_synthetic(scenes, 0, 4), 4, 48)
    stream = Stream([SourceConfig("c", 1.0)], tmp_path, seed=3)
    first, again, other = (
        stream.canvases(2, 32, 32, stream.generator(rank, step, 0)) for rank, step in ((0, 5), (0, 5), (1, 5))
    )
    np.testing.assert_array_equal(first[0].image_HW3, again[0].image_HW3)
    assert any((a.image_HW3 != b.image_HW3).any() for a, b in zip(first, other, strict=True))
    with pytest.raises(ValueError, match="no sources"):
        Stream([], tmp_path, seed=0)


@pytest.mark.parametrize(("absent_share", "fewest", "most"), [(0.0, 0, 0), (0.2, 55, 105), (1.0, 400, 400)])
def test_images_are_prompted_for_what_they_hold_or_for_absent_classes_only(
    absent_share: float, fewest: int, most: int
) -> None:
    """400 images of a person, 12 classes to offer; the bounds are three standard deviations of the share."""
    offer = draw_offer([person_with_a_dot()] * 400, CATEGORIES, 12, absent_share, np.random.default_rng(0))
    own = offer.object_valid_BC[:, offer.names.index("person")]
    assert fewest <= int((~own).sum()) <= most
    assert offer.object_valid_BC.any(1).all()
    assert set(offer.object_valid_BC.sum(1).tolist()) >= set(range(1, 12))


def test_a_scene_file_with_an_unknown_key_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "scenes.toml"
    path.write_text("first_seed = 0\ncount = 1\n[scene]\ncluter = [0, 1]\n")
    with pytest.raises(ValueError, match="cluter"):
        load_synthetic_set(path)


def test_lsp_people_carry_the_twelve_shared_joints_under_their_names() -> None:
    folder = need_shared("data/lspet")
    report = Report()
    records = read_coco_layout(folder / "annotations_val.json", ImageFinder(folder), LSPET, report)
    sample = next(iter(read_records(records, report)))
    names = load_skeleton("person").keypoints
    labelled = {names[k] for k in np.flatnonzero(sample.instances[0].keypoints_K3[:, 2])}
    assert sample.image_id.endswith("im00010.jpg")
    assert labelled == {n for n in names if n.split()[-1] in {"shoulder", "elbow", "wrist", "hip", "knee", "ankle"}}
    np.testing.assert_allclose(sample.instances[0].keypoints_K3[names.index("right ankle"), :2], (27.1, 92.7))
