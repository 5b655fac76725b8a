"""Accuracy of found keypoints: COCO's average precision and PCK.

Legend: K keypoints, N detections.
"""

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from numpy.typing import NDArray

from engines.skeletons import load_skeleton
from training.data.sample import Instance, Sample
from training.predict import Found

PCK_SHARE = 0.2


def average_precision(
    samples: Sequence[Sample], found: Sequence[Found], categories: Mapping[str, str], most: int = 20
) -> dict[str, float]:
    """Return the COCO keypoint AP (OKS 0.50 to 0.95) of each category with its own sigmas, and the mean as "all".

    Ignore regions count as crowds. At most `most` detections per image are used.
    """
    results: dict[str, float] = {}
    for name, skeleton in categories.items():
        sigmas = np.array(load_skeleton(skeleton).oks_sigmas)
        truth, answers = _coco_tables(samples, found, name, len(sigmas))
        if all(annotation["iscrowd"] for annotation in truth["annotations"]):
            continue
        results[name] = _evaluate(truth, answers, sigmas, most)
    return {"all": float(np.mean(list(results.values()))) if results else 0.0, **results}


def _evaluate(truth: dict[str, Any], answers: list[dict[str, Any]], sigmas: NDArray[np.float64], most: int) -> float:
    if not answers:
        return 0.0
    with contextlib.redirect_stdout(io.StringIO()):
        ground = COCO(truth)
        evaluation = COCOeval_faster(ground, ground.loadRes(answers), "keypoints", kpt_oks_sigmas=sigmas)
        evaluation.params.maxDets = [most]
        evaluation.run()
    return float(evaluation.stats[0])


def _coco_tables(
    samples: Sequence[Sample], found: Sequence[Found], name: str, slots: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    annotations: list[dict[str, Any]] = []
    answers: list[dict[str, Any]] = []
    for image_id, (sample, result) in enumerate(zip(samples, found, strict=True), 1):
        for instance in sample.instances:
            if instance.category == name:
                annotations.append({"id": len(annotations) + 1, "image_id": image_id, **_truth(instance)})
        for box in sample.ignore_R4:
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, **_crowd(box, slots)})
        for n, category in enumerate(result.category_N):
            if category == name:
                points_K3 = np.concatenate([result.keypoints_NK2[n, :slots], np.ones((slots, 1), np.float32)], 1)
                row = {"keypoints": points_K3.reshape(-1).tolist(), "score": float(result.score_N[n])}
                answers.append({"image_id": image_id, "category_id": 1, **row})
    names = [str(k) for k in range(slots)]
    images = [
        {"id": i, "width": s.image_HW3.shape[1], "height": s.image_HW3.shape[0]} for i, s in enumerate(samples, 1)
    ]
    only_category = {"id": 1, "name": name, "keypoints": names, "skeleton": []}
    return {"images": images, "annotations": annotations, "categories": [only_category]}, answers


def _truth(instance: Instance) -> dict[str, Any]:
    x0, y0, x1, y1 = (float(value) for value in instance.box_xyxy)
    return {
        "category_id": 1,
        "iscrowd": 0,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": instance.area_px,
        "num_keypoints": int((instance.keypoints_K3[:, 2] > 0).sum()),
        "keypoints": [float(value) for value in instance.keypoints_K3.reshape(-1)],
    }


def _crowd(box_4: NDArray[np.float32], slots: int) -> dict[str, Any]:
    x0, y0, x1, y1 = (float(value) for value in box_4)
    region = {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0)}
    return {"category_id": 1, "iscrowd": 1, "num_keypoints": 0, "keypoints": [0.0] * 3 * slots, **region}


def correct_keypoints(
    samples: Sequence[Sample], found: Sequence[Found], share: float = PCK_SHARE, given_boxes: bool = False
) -> dict[str, Any]:
    """Return PCK by the MP-100 convention: within `share` of the longer side of the annotated box, labelled points
    only.

    Args:
        given_boxes: use the detection with the largest overlap with the annotated box, for comparison with methods that
            are given the box. Otherwise use the best-scoring detection of the category in the image.
    Returns:
        "pck", and per keypoint name "by_keypoint", and per sample "by_image".
    """
    right: dict[str, list[bool]] = {}
    by_image: list[float] = []
    for sample, result in zip(samples, found, strict=True):
        image_right: list[bool] = []
        for instance in sample.instances:
            names = load_skeleton(instance.skeleton).keypoints
            near_K = _near(instance, result, share, given_boxes)
            for name, near, v in zip(names, near_K, instance.keypoints_K3[:, 2], strict=True):
                if v > 0:
                    right.setdefault(name, []).append(bool(near))
                    image_right.append(bool(near))
        by_image.append(float(np.mean(image_right)) if image_right else float("nan"))
    every = [value for values in right.values() for value in values]
    return {
        "pck": float(np.mean(every)) if every else 0.0,
        "by_keypoint": {name: float(np.mean(values)) for name, values in right.items()},
        "by_image": by_image,
    }


def _near(instance: Instance, result: Found, share: float, given_boxes: bool) -> NDArray[np.bool_]:
    rows = [n for n, category in enumerate(result.category_N) if category == instance.category]
    slots = len(instance.keypoints_K3)
    if not rows:
        return np.zeros(slots, bool)
    row = max(rows, key=lambda n: _overlap(result.box_N4[n], instance.box_xyxy)) if given_boxes else rows[0]
    longer = float(max(instance.box_xyxy[2:] - instance.box_xyxy[:2]))
    distance_K = np.linalg.norm(result.keypoints_NK2[row, :slots] - instance.keypoints_K3[:, :2], axis=1)
    return np.asarray(distance_K <= share * longer)


def _overlap(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    inner = np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0).prod()
    union = (a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - inner
    return float(inner / max(union, 1e-9))


def alarm_scores(found: Sequence[Found]) -> NDArray[np.float32]:
    """Return the best score of each image; 0 without detections. All prompts of `found` are absent from the images."""
    return np.array([result.score_N.max(initial=0.0) for result in found], np.float32)


def best_scores(samples: Sequence[Sample], found: Sequence[Found], overlap: float = 0.5) -> NDArray[np.float32]:
    """Return for each object the best score of its category with an IoU of at least `overlap`; 0 if none."""
    return np.array(
        [
            max(
                (
                    score
                    for category, score, box in zip(result.category_N, result.score_N, result.box_N4, strict=True)
                    if category == instance.category and _overlap(box, instance.box_xyxy) >= overlap
                ),
                default=0.0,
            )
            for sample, result in zip(samples, found, strict=True)
            for instance in sample.instances
        ],
        np.float32,
    )


def share_above(scores: NDArray[np.float32], threshold: float) -> float:
    """Return the fraction of scores above the threshold: recall for `best_scores`, false alarms for `alarm_scores`."""
    return float((scores > threshold).mean()) if len(scores) else 0.0
