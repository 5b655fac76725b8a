"""Thresholds, suppression and pixels, on small cases that can be worked out by hand."""

import numpy as np
import pytest
from numpy.typing import NDArray

from engines.backends import RawPoses
from engines.detections import Detections
from engines.postprocess import detections_of, greedy_nms, pairwise_iou
from engines.prompts import PromptClass
from engines.skeletons import Skeleton, load_skeleton

MUG = PromptClass("mug", Skeleton("mug", ("rim", "handle")))
PEN = PromptClass("pen", Skeleton("pen", ("tip", "none", "end")))


def raw(scores: list[float], boxes: list[list[float]], classes: list[int] | None = None) -> RawPoses:
    """Groups with a score each for their own class, and a better one for the other class."""
    class_G = np.array(classes or [0] * len(scores), dtype=np.int64)
    logit_G = np.log(np.array(scores) / (1 - np.array(scores)))
    logits_GC = np.full((len(scores), 3), -np.inf, dtype=np.float32)
    logits_GC[:, :2] = 9.0
    logits_GC[np.arange(len(scores)), class_G] = logit_G
    keypoints_GK2 = np.linspace(0, 1, len(scores) * 8, dtype=np.float32).reshape(-1, 4, 2)
    return RawPoses(logits_GC, class_G, np.array(boxes, dtype=np.float32).reshape(-1, 4), keypoints_GK2)


def detect(poses: RawPoses, threshold: float = 0.1, nms_iou: float = 0.9) -> Detections:
    return detections_of(poses, (100, 200), (MUG, PEN), 7, threshold, nms_iou)


def apart(count: int) -> list[list[float]]:
    return [[0.1 + 0.2 * index, 0.5, 0.1, 0.2] for index in range(count)]


def test_results_are_in_pixels_best_first_with_class_and_score() -> None:
    found = detect(raw([0.3, 0.8], apart(2), [1, 0]))
    np.testing.assert_allclose(found.scores_N, [0.8, 0.3], rtol=1e-5)
    assert found.class_N.tolist() == [0, 1]
    np.testing.assert_allclose(found.boxes_N4, [[50, 40, 70, 60], [10, 40, 30, 60]], atol=1e-4)
    assert found.prompt_id == 7
    assert found.prompts == (MUG, PEN)


def test_keypoints_follow_their_box_and_end_with_their_class() -> None:
    poses = raw([0.3, 0.8], apart(2), [1, 0])
    found = detect(poses)
    assert found.keypoints_NK2.shape == (2, 3, 2)
    pixels = poses.keypoints_GK2 * [200, 100]
    np.testing.assert_allclose(found.keypoints_NK2[0, :2], pixels[1, :2], atol=1e-4)
    assert np.isnan(found.keypoints_NK2[0, 2]).all()
    np.testing.assert_allclose(found.keypoints_NK2[1, [0, 2]], pixels[0, [0, 2]], atol=1e-4)
    assert np.isnan(found.keypoints_NK2[1, 1]).all()  # "none" keeps a slot, but is no keypoint


def test_the_threshold_is_strict() -> None:
    poses = raw([0.5], apart(1))
    assert len(detect(poses, threshold=0.5).scores_N) == 0
    assert len(detect(poses, threshold=0.4999).scores_N) == 1


def test_nothing_found_is_an_empty_result_of_the_right_shapes() -> None:
    found = detect(raw([0.01, 0.02], apart(2)))
    assert (found.boxes_N4.shape, found.scores_N.shape, found.class_N.shape) == ((0, 4), (0,), (0,))
    assert found.keypoints_NK2.shape == (0, 3, 2)
    assert detect(raw([], [])).boxes_N4.shape == (0, 4)


def test_classes_that_are_not_asked_for_never_score() -> None:
    poses = raw([0.5], apart(1))
    poses.logits_GC[:] = -np.inf
    assert len(detect(poses, threshold=0.0).scores_N) == 0


def test_suppression_is_greedy_over_all_classes_and_keeps_what_overlaps_just_enough() -> None:
    boxes = [[0.5, 0.5, 0.4, 0.4], [0.5, 0.5, 0.4, 0.38], [0.5, 0.5, 0.4, 0.2]]
    found = detect(raw([0.9, 0.8, 0.7], boxes, [0, 1, 0]))
    np.testing.assert_allclose(found.scores_N, [0.9, 0.7], rtol=1e-5)
    assert len(detect(raw([0.9, 0.8, 0.7], boxes, [0, 1, 0]), nms_iou=0.4).scores_N) == 1
    assert len(detect(raw([0.9, 0.8, 0.7], boxes, [0, 1, 0]), nms_iou=1.0).scores_N) == 3


def test_a_suppressed_box_suppresses_nothing() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 16], [0, 6, 10, 16]], dtype=np.float32)
    assert greedy_nms(boxes, 0.5).tolist() == [0, 2]


def test_iou_of_known_boxes() -> None:
    boxes: NDArray[np.float32] = np.array([[0, 0, 2, 2], [1, 1, 3, 3], [5, 5, 5, 5], [5, 5, 4, 4]], dtype=np.float32)
    iou = pairwise_iou(boxes)
    assert iou[0, 1] == pytest.approx(1 / 7)
    assert iou[0, 0] == 1
    assert (iou[2:] == 0).all()


def test_a_published_list_drops_its_placeholders() -> None:
    car = PromptClass("car", load_skeleton("car"))
    poses = RawPoses(
        np.full((1, 1), 3.0, dtype=np.float32),
        np.zeros(1, dtype=np.int64),
        np.array([[0.5, 0.5, 0.2, 0.2]], dtype=np.float32),
        np.full((1, 14, 2), 0.5, dtype=np.float32),
    )
    found = detections_of(poses, (10, 10), (car,), 1, 0.1, 0.9)
    assert np.flatnonzero(np.isnan(found.keypoints_NK2[0, :, 0])).tolist() == [8, 13]
