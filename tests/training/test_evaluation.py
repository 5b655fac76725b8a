"""Metrics on detections whose score is known, the command, and what a network that has learned must reach."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from engines.checkpoint import load_weights, save_weights
from engines.postprocess import pairwise_iou
from pipeline.synthetic import SceneConfig
from training import metrics
from training.data.cache import ImageCache, write_cache
from training.data.sample import Sample
from training.data.synthetic import read_synthetic
from training.evaluate import left_to_show, load_part, main
from training.pictures import TILE_PX, sheet
from training.predict import Found, Predictor
from training.real_world import find_all
from training.recipe import load_recipe
from training.trainer import Trainer

CHAIRS = {"chair": "chair"}


def scenes(count: int, **changes: object) -> list[Sample]:
    """Easy synthetic scenes."""
    settings: dict[str, object] = {"size_hw": (96, 96), "categories": ("chair", "car"), "instances": (1, 1)}
    settings |= {"scale": (0.7, 0.9), "clutter": (0, 2), "occluders": (0, 0), "truncation": 0.0}
    settings |= {"noise_std": (0.0, 2.0), "blur_px": (0.0, 0.3), "smear_px": (0.0, 0.1)}
    return list(read_synthetic(SceneConfig(**(settings | changes)), 0, count))  # type: ignore[arg-type]


def answers(samples: list[Sample], shift_share: float = 0.0, score: float = 0.9) -> list[Found]:
    """The truth itself, every point shifted right by a share of its box's longer side."""
    results = []
    for sample in samples:
        boxes = np.stack([instance.box_xyxy for instance in sample.instances])
        points = np.stack([instance.keypoints_K3[:, :2] for instance in sample.instances])
        points[..., 0] += shift_share * (boxes[:, 2:] - boxes[:, :2]).max(1)[:, None]
        names = tuple(instance.category for instance in sample.instances)
        results.append(Found(names, np.full(len(names), score, np.float32), boxes, points))
    return results


def test_the_truth_scores_one_and_a_shift_scores_less() -> None:
    samples = scenes(6, categories=("chair",))
    assert metrics.average_precision(samples, answers(samples), CHAIRS)["all"] == pytest.approx(1.0)
    shifted = metrics.average_precision(samples, answers(samples, 0.08), CHAIRS)["all"]
    assert 0.0 < shifted < 0.9
    assert metrics.average_precision(samples, answers(samples, 2.0), CHAIRS)["all"] == 0.0


def test_pck_changes_at_its_distance_over_the_longer_side() -> None:
    samples = scenes(4, categories=("chair",))
    assert metrics.correct_keypoints(samples, answers(samples, 0.19))["pck"] == 1.0
    assert metrics.correct_keypoints(samples, answers(samples, 0.21))["pck"] == 0.0
    assert metrics.correct_keypoints(samples, answers(samples, 0.15), share=0.1)["pck"] == 0.0


def test_an_image_without_an_answer_counts_as_wrong() -> None:
    samples = scenes(2, categories=("chair",))
    none = Found((), np.zeros(0, np.float32), np.zeros((0, 4), np.float32), np.zeros((0, 10, 2), np.float32))
    half = [answers(samples)[0], none]
    assert metrics.correct_keypoints(samples, half)["by_image"] == [1.0, 0.0]
    assert metrics.average_precision(samples, [none, none], CHAIRS)["all"] == 0.0


def test_given_boxes_judge_the_overlapping_detection_and_not_the_best_scoring() -> None:
    samples = scenes(1, categories=("chair",))
    (right,) = answers(samples)
    far = Found(
        ("chair", "chair"),
        np.array([0.9, 0.2], np.float32),
        np.concatenate([right.box_N4 + 500, right.box_N4]),
        np.concatenate([right.keypoints_NK2 + 500, right.keypoints_NK2]),
    )
    assert metrics.correct_keypoints(samples, [far])["pck"] == 0.0
    assert metrics.correct_keypoints(samples, [far], given_boxes=True)["pck"] == 1.0


def test_alarms_and_recall_follow_the_threshold() -> None:
    samples = scenes(3, categories=("chair",))
    found = answers(samples, score=0.4)
    for scores in (metrics.alarm_scores(found), metrics.best_scores(samples, found)):
        assert len(scores) == 3
        assert metrics.share_above(scores, 0.3) == 1.0
        assert metrics.share_above(scores, 0.5) == 0.0


def test_an_object_that_is_found_elsewhere_or_as_another_category_is_not_recalled() -> None:
    samples = scenes(1, categories=("chair",))
    (right,) = answers(samples)
    aside = Found(right.category_N, right.score_N, right.box_N4 + 50, right.keypoints_NK2)
    car = Found(("car",), right.score_N, right.box_N4, right.keypoints_NK2)
    assert metrics.best_scores(samples, [aside]) == [0.0]
    assert metrics.best_scores(samples, [car]) == [0.0]


def test_a_sheet_of_pictures_holds_every_sample() -> None:
    samples = scenes(5)
    assert sheet(samples, answers(samples), 3, 0.5).shape == (2 * TILE_PX, 3 * TILE_PX, 3)


def test_the_command_writes_every_metric_of_every_modality(tmp_path: Path) -> None:
    people, mixed = {"categories": ("person",)}, {"categories": ("person", "chair"), "instances": (1, 2)}
    for name, changes in (
        ("lspet_train", people),
        ("lspet_val", people),
        ("synthetic_train", mixed),
        ("synthetic_test", mixed),
        ("coco_dev", {"categories": ("person",), "instances": (1, 3)}),
        ("no_people_dev", {"instances": (0, 0)}),
        ("livestock_dev", {"categories": ("chair",)}),
    ):
        write_cache(tmp_path / name, scenes(3, **changes), 3, 96)
    model, clip = load_weights("nano", "random")
    save_weights(tmp_path / "w.safetensors", model, clip, {"person": "person", "chair": "chair"})
    main(tmp_path / "w.safetensors", tmp_path, tmp_path / "out", "nano", "64x80", 0.33, 2, 0)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    real = results["photographs"]
    assert {"recall", "precision", "ap", "recall, 0 to 64 px"} <= set(real["people"])
    assert 0.0 <= real["nobody"]["alarms"] <= 1.0
    assert set(real["animals, pck@0.2"]) == {"cache", "chair"}
    assert real["one example"]["photos"] == 3
    for modality in ("text", "visual", "mean"):
        found = results[modality]
        assert {"pck@0.2", "ap", "pck@0.2 given boxes"} <= set(found["people"])
        assert {"ap", "pck@0.2 given boxes"} <= set(found["scenes"])
        assert set(found["people in rows"]) == {"pck@0.2 given boxes"}
        recalls = {"recall of people", "recall of people in rows", "recall of scenes"}
        assert set(found["above"]["0.33"]) == recalls | {"false alarms"}
        assert found["above"]["0.15"]["recall of people"] >= found["above"]["0.5"]["recall of people"]
    assert len(list((tmp_path / "out" / "pictures").glob("*.jpg"))) == 18


def test_images_left_out_of_training_are_a_part_of_a_cache(tmp_path: Path) -> None:
    samples = scenes(5)
    write_cache(tmp_path / "five", samples, 5, 96)
    assert [sample.image_id for sample in load_part(tmp_path, "five:3", 0)] == [s.image_id for s in samples[3:]]
    assert len(load_part(tmp_path, "five", 2)) == 2
    for wrong, reason in (("five:5", "holds 5 images"), ("five:last", "name:first")):
        with pytest.raises(ValueError, match=reason):
            load_part(tmp_path, wrong, 0)


def test_what_is_evaluated_is_not_shown_as_an_example() -> None:
    limits = {source.cache: source.limit for source in left_to_show("lspet_train:8600", "synthetic_test")}
    assert limits == {"lspet_train": 8600, "synthetic_train": 0}


def test_a_size_that_is_none_is_refused(tmp_path: Path) -> None:
    save_weights(tmp_path / "w.safetensors", *load_weights("nano", "random"), {"person": "person"})
    with pytest.raises(SystemExit, match="HEIGHTxWIDTH"):
        main(tmp_path / "w.safetensors", tmp_path, tmp_path / "out", "nano", "256")


def test_weights_without_categories_are_refused(tmp_path: Path) -> None:
    model, clip = load_weights("nano", "random")
    save_weights(tmp_path / "w.safetensors", model, clip)
    with pytest.raises(SystemExit, match="does not name the categories"):
        main(tmp_path / "w.safetensors", tmp_path, tmp_path / "out", "nano", "64x64", 0.3, 1, 0)


OVERFIT = """
model = "nano"
model_overrides = { embed_dim = 16, depths = [1, 1, 1], num_heads = [1, 2, 2], window = 6, hidden_dim = 64, \
heads = 2, encoder_layers = 1, decoder_layers = 3, box_layers = 1, queries = 12, groups = 2, feedforward = 128, \
text_feedforward = 64, text_heads = 2, fusion_dim = 64, fusion_heads = 1, drop_path = 0.0 }
examples = 0
spread_steps = 60
warmup_steps = 20
clip_norm = 1.0
ema_decay = 0.95
precision = "fp32"
snapshot_steps = 0
weight_decay = 0.0
denoising = { queries = 0 }
weights = { dense = 4.0, alignment = 0.0 }
[[sources]]
cache = "eight"
weight = 1.0
[sources.augment]
flip_probability = 0.0
rotation_degrees = 0.0
scale_range = [1.0, 1.0]
shift = 0.0
layout_weights = [1.0, 0.0, 0.0, 0.0]
colour_probability = 0.0
grey_probability = 0.0
blur_probability = 0.0
occlusion_probability = 0.0
[[phases]]
steps = 80
size_hw = [96, 96]
batch = 8
lr = 2e-3
lr_end = 2e-3
decoder_share = 0.0
[[phases]]
steps = 330
size_hw = [96, 96]
batch = 8
lr = 2e-3
lr_end = 5e-5
"""


@pytest.fixture
def _one_thread() -> Iterator[None]:
    """Small products are slower on two threads, and their order of summation would differ from machine to machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_one_thread")
def test_eight_images_are_learned_by_heart(tmp_path: Path) -> None:
    write_cache(tmp_path / "eight", scenes(8), 8, 96)
    (tmp_path / "overfit.toml").write_text(OVERFIT)
    trainer = Trainer(load_recipe(tmp_path / "overfit.toml"), tmp_path, tmp_path / "run")
    trainer.run()
    learned, categories = trainer.averaged(), trainer.stream.vocabulary
    cache = ImageCache(tmp_path / "eight")
    samples = [cache[i] for i in range(8)]
    found = find_all(Predictor(learned.model, learned.clip_model, categories, "text", None, (96, 96), 0.9), samples)
    assert metrics.average_precision(samples, found, categories)["all"] > 0.95
    assert all((np.triu(pairwise_iou(result.box_N4), 1) <= 0.9).all() for result in found)
