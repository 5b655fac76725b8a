"""Ignore regions, from the annotation file to every loss: objects without labels are no background."""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from engines.skeletons import load_skeleton
from tests.training.test_data import STILL, person_with_a_dot
from tests.training.test_matcher import targets_of
from training.alignment import _focal_entropy, _spatial_entropy, counted_cells
from training.data.augment import AugmentConfig, beside_mirror_images, compose, letterbox
from training.data.build import with_extra_people
from training.data.cache import ImageCache, write_cache
from training.data.sample import Instance, Sample
from training.denoising import DenoisingConfig, make_denoising
from training.matcher import MatchCosts, Prediction
from training.objective import denoising_losses, group_losses, layer_losses
from training.targets import Targets, draw_offer, ignored_boxes
from training.unikpt.coco_layout import CocoRules, read_coco_layout
from training.unikpt.images import ImageFinder
from training.unikpt.index import load_index, save_index
from training.unikpt.schema import Record, Report

PERSON = load_skeleton("person")
REGION = (10.0, 20.0, 30.0, 40.0)


def annotation(number: int, **changes: object) -> dict[str, object]:
    points = [v for k in range(17) for v in (50.0 + k, 30.0, 2)]
    return {"id": number, "image_id": 1, "category_id": 1, "bbox": [45, 20, 30, 30], "keypoints": points} | changes


def read(folder: Path, annotations: list[dict[str, object]]) -> tuple[list[Record], Report]:
    cv2.imwrite(str(folder / "a.png"), np.zeros((60, 80, 3), np.uint8))
    category = {"id": 1, "name": "person", "keypoints": list(PERSON.keypoints)}
    images = [{"id": 1, "file_name": "a.png", "width": 80, "height": 60}]
    table = {"images": images, "annotations": annotations, "categories": [category]}
    (folder / "t.json").write_text(json.dumps(table))
    report = Report()
    return list(read_coco_layout(folder / "t.json", ImageFinder(folder), CocoRules("t", "person"), report)), report


@pytest.mark.parametrize(
    "changes",
    [
        {"iscrowd": 1},
        {"ignore": 1},
        {"keypoints": [0.0] * 51},
        {"keypoints": []},
        {"iscrowd": 1, "keypoints": []},
        {"keypoints": [1.0, 2.0]},
    ],
)
def test_an_object_that_cannot_be_taught_becomes_an_ignore_region(tmp_path: Path, changes: dict[str, object]) -> None:
    records, _ = read(tmp_path, [annotation(1), annotation(2, bbox=[10, 20, 20, 20], **changes)])
    assert [len(record.instances) for record in records] == [1]
    assert records[0].ignore == (REGION,)


@pytest.mark.parametrize("box", [None, [1, 2], ["a", 1, 2, 3], [float("nan"), 1, 2, 3], [5, 5, 0, 9], [200, 200, 9, 9]])
def test_an_ignored_object_without_a_usable_box_is_left_out(tmp_path: Path, box: object) -> None:
    text_box = None if box is not None and str(box).startswith("[nan") else box
    records, _ = read(tmp_path, [annotation(1), annotation(2, bbox=text_box, iscrowd=1)])
    assert records[0].ignore == ()


def test_regions_that_cover_the_whole_image_are_reported(tmp_path: Path) -> None:
    halves = [annotation(2, bbox=[0, 0, 41, 60], iscrowd=1), annotation(3, bbox=[40, 0, 40, 60], ignore=1)]
    records, report = read(tmp_path, [annotation(1), *halves])
    assert report.counts["ignored throughout"] == 1
    assert len(records) == 1
    _, partly = read(tmp_path, [annotation(1), halves[0]])
    assert partly.counts["ignored throughout"] == 0


def test_an_index_keeps_them(tmp_path: Path) -> None:
    records, _ = read(tmp_path, [annotation(1), annotation(2, bbox=[10, 20, 20, 20], iscrowd=1)])
    save_index(tmp_path / "index.jsonl", records)
    assert next(load_index(tmp_path / "index.jsonl")).ignore == (REGION,)


def test_extra_people_are_ignored_and_parts_of_the_labelled_person_are_not(tmp_path: Path) -> None:
    records, _ = read(tmp_path, [annotation(1)])
    pose = [v for k in range(17) for v in (12.0 + k, 30.0, 0.9)]
    usable = {"file_name": "a.png", "kind": "bystander", "bbox": [10, 20, 20, 20], "pose_usable": 1, "keypoints": pose}
    part = {"file_name": "a.png", "kind": "labelled person or a part", "bbox": [45, 20, 9, 9], "pose_usable": 0}
    (ignored,) = with_extra_people(records, {"annotations": [usable, part]}, teach=False)
    assert (len(ignored.instances), ignored.ignore) == (1, (REGION,))
    (taught,) = with_extra_people(records, {"annotations": [usable, part]}, teach=True)
    assert (len(taught.instances), taught.ignore) == (2, ())


def with_region(sample: Sample, box: tuple[float, ...] = REGION) -> Sample:
    """The sample with its region painted white."""
    image = np.zeros_like(sample.image_HW3)
    x0, y0, x1, y1 = (int(value) for value in box)
    image[y0:y1, x0:x1] = 255
    return replace(sample, image_HW3=image, ignore_R4=np.array([box], np.float32))


def test_a_cache_keeps_and_scales_them(tmp_path: Path) -> None:
    write_cache(tmp_path / "c", [with_region(person_with_a_dot())], 1, 40)
    np.testing.assert_allclose(ImageCache(tmp_path / "c")[0].ignore_R4, [np.array(REGION) / 2])


@pytest.mark.parametrize("seed", range(6))
def test_regions_stay_on_what_they_cover_through_every_warp(seed: int) -> None:
    config = AugmentConfig(colour_probability=0.0, occlusion_probability=0.0, blur_probability=0.0)
    sample = with_region(replace(person_with_a_dot(), instances=()))
    found = compose([sample] * 4, (2, 2), 120, 160, config, np.random.default_rng(seed))
    inside = np.zeros((120, 160), bool)
    for x0, y0, x1, y1 in found.ignore_R4.round().astype(int):
        inside[y0:y1, x0:x1] = True
    white = found.image_HW3.min(2) > 200
    assert white.any()
    assert inside[white].mean() > 0.9
    boxed = letterbox(sample, 120, 160)
    np.testing.assert_allclose(boxed.ignore_R4, [np.array(REGION) * 2])


def test_mirror_images_carry_their_regions() -> None:
    row = beside_mirror_images(with_region(person_with_a_dot(), (42.0, 20.0, 52.0, 30.0)), np.random.default_rng(0))
    assert len(row.ignore_R4) >= 2
    for x0, y0, x1, y1 in row.ignore_R4.round().astype(int):
        assert row.image_HW3[y0:y1, x0:x1].min() > 200


def test_what_is_cut_off_or_too_small_becomes_a_region() -> None:
    strengths = {field: getattr(STILL, field) for field in STILL.__struct_fields__}
    small = AugmentConfig(**(strengths | {"least_px": 200.0}))
    found = compose([person_with_a_dot()], (1, 1), 60, 80, small, np.random.default_rng(0))
    assert not found.instances
    np.testing.assert_allclose(found.ignore_R4, [[40, 10, 75, 50]], atol=0.01)
    close = AugmentConfig(**(strengths | {"scale_range": (3.0, 3.0), "shift": 0.0}))
    cut = compose([person_with_a_dot()], (1, 1), 60, 80, close, np.random.default_rng(0))
    assert not cut.instances  # the labelled wrist is outside
    assert len(cut.ignore_R4) == 1


def ignoring(targets: Targets, *boxes: tuple[float, float, float, float]) -> Targets:
    return targets._replace(ignore_BR4=torch.tensor([boxes], dtype=torch.float32))


def test_a_box_is_ignored_from_half_of_it_inside_one_region() -> None:
    targets = ignoring(targets_of([[0.5, 0.5, 0.1, 0.1]], [0]), (0.2, 0.5, 0.4, 1.0), (0.9, 0.5, 0.0, 0.0))
    boxes = torch.tensor([[[0.2, 0.5, 0.2, 0.2], [0.39, 0.5, 0.2, 0.2], [0.41, 0.5, 0.2, 0.2], [0.9, 0.5, 0.1, 0.1]]])
    assert ignored_boxes(boxes, targets).tolist() == [[True, True, False, False]]


def two_predictions(with_points: bool) -> tuple[Prediction, Tensor]:
    """One on the target, one elsewhere that is as sure; and their logits."""
    logits = torch.full((1, 2, 2), 3.0, requires_grad=True)
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.2], [0.1, 0.1, 0.1, 0.1]]])
    points = boxes[:, :, None, :2].expand(1, 2, 2, 2) if with_points else None
    return Prediction(logits, boxes, points, torch.zeros(1, 2, dtype=torch.int64) if with_points else None), logits


@pytest.mark.parametrize("losses_of", [layer_losses, group_losses])
def test_an_unmatched_answer_in_a_region_is_not_taught_to_be_background(losses_of: object) -> None:
    targets = targets_of([[0.5, 0.5, 0.2, 0.2]], [0])
    name = "score" if losses_of is group_losses else "label"
    for region, taught in (((0.9, 0.9, 0.1, 0.1), True), ((0.1, 0.1, 0.2, 0.2), False)):
        answers, logits = two_predictions(with_points=True)
        losses = losses_of(answers, ignoring(targets, region), None, MatchCosts(), 1.0)  # type: ignore[operator]
        losses[name].backward()
        assert logits.grad is not None
        assert bool(logits.grad[0, 1].any()) == taught
        assert logits.grad[0, 0].any()


def test_a_region_over_the_target_leaves_its_own_answer_taught() -> None:
    answers, logits = two_predictions(with_points=True)
    targets = ignoring(targets_of([[0.5, 0.5, 0.2, 0.2]], [0]), (0.5, 0.5, 1.0, 1.0))
    layer_losses(answers, targets, None, MatchCosts(), 1.0)["label"].backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert logits.grad[0, 0].any()
    assert not logits.grad[0, 1].any()


def test_denoising_negatives_in_a_region_are_left_out_and_positives_are_not() -> None:
    targets = ignoring(targets_of([[0.5, 0.5, 0.2, 0.2]], [0]), (0.5, 0.5, 1.0, 1.0))
    generator = torch.Generator().manual_seed(0)
    noisy = make_denoising(nn.Embedding(3, 4), targets, torch.tensor([0, 1]), DenoisingConfig(queries=6), generator)
    assert noisy is not None
    logits = torch.zeros(1, 6, 2, requires_grad=True)
    losses = denoising_losses(Prediction(logits, noisy.reference_BP4), noisy, targets, None, 1.0)
    losses["label"].backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert logits.grad[0, ::2].any()
    assert not logits.grad[0, 1::2].any()


def test_cells_in_a_region_count_only_inside_a_labelled_object() -> None:
    targets = ignoring(targets_of([[0.25, 0.25, 0.3, 0.3]], [0]), (0.25, 0.5, 0.5, 1.0))
    expected = [[True, True], [False, True]]
    assert counted_cells(targets, (2, 2)).reshape(2, 2).tolist() == expected


def test_dense_losses_ignore_cells_that_do_not_count() -> None:
    counted, used = torch.tensor([[True, True, False]]), torch.ones(1, 1, dtype=torch.bool)
    heat = torch.tensor([[[1.0, 0.0, 0.0]]])
    calm, loud = torch.tensor([[[4.0, -4.0, -4.0]]]), torch.tensor([[[4.0, -4.0, 9.0]]])
    for loss in (_spatial_entropy, _focal_entropy):
        torch.testing.assert_close(loss(calm, heat, used, counted), loss(loud, heat, used, counted))
        assert loss(loud, heat, used, torch.ones_like(counted)) > 1.0 + loss(calm, heat, used, torch.ones_like(counted))


def sample_with(**changes: object) -> Sample:
    image = np.zeros((8, 8, 3), np.uint8)
    points = np.array([[4, 4, 2]] * 17, np.float32)
    person = Instance("person", "person", np.array([1, 1, 7, 7], np.float32), points, 20.0)
    return replace(Sample(image, (person,), "t", "1"), **changes)  # type: ignore[arg-type]


def test_a_category_that_may_be_there_without_a_label_is_no_negative() -> None:
    vocabulary = {"person": "person", "dog": "animal", "cow": "animal", "horse": "animal"}
    samples = [sample_with(unlabelled=("dog", "cow")), sample_with(instances=(), absent=("person",))]
    for seed in range(20):
        offer = draw_offer(samples, vocabulary, 4, 0.3, np.random.default_rng(seed))
        valid = {name: offer.object_valid_BC[:, row].tolist() for row, name in enumerate(offer.names)}
        assert not valid["dog"][0]
        assert not valid["cow"][0]
        assert valid["person"][1]
        assert offer.object_valid_BC.any(1).all()


def test_a_sample_that_offers_nothing_else_is_asked_for_something() -> None:
    everything = ("person", "dog")
    offer = draw_offer(
        [sample_with(instances=(), unlabelled=everything)], dict.fromkeys(everything, "person"), 4, 0.5,
        np.random.default_rng(0),
    )  # fmt: skip
    assert offer.object_valid_BC.any()
