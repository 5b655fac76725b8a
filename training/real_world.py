"""Evaluation on photographs of the real world: several people, no people, animals, one example.

Definitions. The size of an object is the longer side of its labelled box, in pixels of the photo. Detections are
matched greedily in the order of their scores. Each is matched to the labelled person with the highest OKS of at least
0.5 that is not matched yet. A detection that is not matched, and has more than half of its box in an ignore region, is
not counted.

Legend: N detections, P labelled people, R ignore regions, K keypoints.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engines.skeletons import load_skeleton
from training import metrics
from training.data.sample import Instance, Sample
from training.data.stream import Examples, SourceConfig, Stream
from training.draws import EXAMPLE_SIDE_PX
from training.predict import Found, Predictor, in_batches
from training.targets import FIXED_SCALE_FLOOR_PX2, IGNORED_SHARE

BATCH = 16
LEAST_OKS = 0.5
LEAST_SCORE = 0.05  # minimum score of detections in the average precision
LARGE_PX = 128.0
SIZES_PX = ((256.0, np.inf), (128.0, 256.0), (64.0, 128.0), (0.0, 64.0))
EXAMPLE_DRAWS = 20
NOTHING = Found((), np.zeros(0, np.float32), np.zeros((0, 4), np.float32), np.zeros((0, 1, 2), np.float32))


class Matched(NamedTuple):
    """Results of one photo: which labelled people were found, and how each detection counts."""

    found_P: NDArray[np.bool_]
    right_N: NDArray[np.bool_]
    wrong_N: NDArray[np.bool_]


def find_all(predictor: Predictor, samples: Sequence[Sample]) -> list[Found]:
    """Detect in every sample."""
    return [found for batch in in_batches(samples, BATCH) for found in predictor.find(batch)]


def match_photo(sample: Sample, found: Found, threshold: float) -> Matched:
    """Match the detections above the threshold to the labelled objects of any category."""
    kept = np.flatnonzero(found.score_N > threshold)
    found_P = np.zeros(len(sample.instances), bool)
    right_N, wrong_N = np.zeros(len(kept), bool), np.zeros(len(kept), bool)
    for place, n in enumerate(kept[np.argsort(-found.score_N[kept], kind="stable")]):
        similarity_P = np.array([similarity(found.keypoints_NK2[n], one) for one in sample.instances])
        similarity_P[found_P] = 0.0
        if len(similarity_P) and similarity_P.max() >= LEAST_OKS:
            found_P[similarity_P.argmax()] = right_N[place] = True
        else:
            wrong_N[place] = not _ignored(found.box_N4[n], sample.ignore_R4)
    return Matched(found_P, right_N, wrong_N)


def similarity(points_K2: NDArray[np.float32], instance: Instance) -> float:
    """Return the OKS of one detection with one labelled object, over the labelled keypoints."""
    sigmas_K = np.array(load_skeleton(instance.skeleton).oks_sigmas)
    labelled_K = instance.keypoints_K3[:, 2] > 0
    squared_K = np.square(points_K2[: len(sigmas_K)] - instance.keypoints_K3[:, :2]).sum(-1)
    area = max(instance.area_px, FIXED_SCALE_FLOOR_PX2)
    return float(np.exp(-squared_K / (2 * area * np.square(2 * sigmas_K)))[labelled_K].mean())


def _ignored(box_4: NDArray[np.float32], ignore_R4: NDArray[np.float32]) -> bool:
    low_R2, high_R2 = np.maximum(box_4[:2], ignore_R4[:, :2]), np.minimum(box_4[2:], ignore_R4[:, 2:])
    inner_R = np.maximum(high_R2 - low_R2, 0).prod(1)
    area = np.maximum(box_4[2:] - box_4[:2], 0).prod()
    return bool((inner_R > IGNORED_SHARE * area).any())


def evaluate_photos(samples: Sequence[Sample], found: Sequence[Found], threshold: float) -> dict[str, Any]:
    """Return recall by size and precision at a threshold, and AP; `by_image` is correct minus wrong detections."""
    matched = [match_photo(sample, result, threshold) for sample, result in zip(samples, found, strict=True)]
    found_P = np.concatenate([one.found_P for one in matched])
    side_P = np.array([max(one.box_xyxy[2:] - one.box_xyxy[:2]) for sample in samples for one in sample.instances])
    right = sum(int(one.right_N.sum()) for one in matched)
    wrong = sum(int(one.wrong_N.sum()) for one in matched)
    scored = [_scored(result) for result in found]
    categories = {one.category: one.skeleton for sample in samples for one in sample.instances}
    large_P = found_P[side_P >= LARGE_PX]
    return {
        "recall": float(found_P.sum() / max(len(found_P), 1)),
        "recall, 128 px and more": float(large_P.sum() / max(len(large_P), 1)),
        **{f"recall, {_range(*size)}": _part(found_P, side_P, *size) for size in SIZES_PX},
        "precision": right / max(right + wrong, 1),
        "ap": metrics.average_precision(samples, scored, categories, most=50)["all"],
        "by_image": [float(one.found_P.sum() - (~one.found_P).sum() - one.wrong_N.sum()) for one in matched],
    }


def _range(low: float, high: float) -> str:
    return f"{low:.0f} px and more" if high == np.inf else f"{low:.0f} to {high:.0f} px"


def _part(found_P: NDArray[np.bool_], side_P: NDArray[np.float64], low: float, high: float) -> str:
    inside_P = (side_P >= low) & (side_P < high)
    return f"{found_P[inside_P].sum()} of {inside_P.sum()}"


def _scored(found: Found) -> Found:
    kept_N = found.score_N >= LEAST_SCORE
    names = tuple(name for name, kept in zip(found.category_N, kept_N, strict=True) if kept)
    return Found(names, found.score_N[kept_N], found.box_N4[kept_N], found.keypoints_NK2[kept_N])


def evaluate_one_example(
    make: Callable[[Mapping[str, Examples]], Predictor],
    people: Sequence[Sample],
    source: SourceConfig,
    data: Path,
    threshold: float,
) -> dict[str, Any]:
    """Return recall and PCK of single people, each prompted with one example drawn by seed from a training cache."""
    stream = Stream([source], data, 0)
    recalls, rights = [], []
    for seed in range(EXAMPLE_DRAWS):
        example = stream.examples("person", 1, EXAMPLE_SIDE_PX, np.random.default_rng(seed))
        found = find_all(make({"person": example}), people)
        recalls.append(metrics.share_above(metrics.best_scores(people, found), threshold))
        rights.append(metrics.correct_keypoints(people, found)["pck"])
    return {
        "draws": EXAMPLE_DRAWS,
        "photos": len(people),
        "recall, mean": float(np.mean(recalls)),
        "recall, worst draw": float(np.min(recalls)),
        "pck@0.2, mean": float(np.mean(rights)),
        "pck@0.2, worst draw": float(np.min(rights)),
    }


def evaluate_animals(
    make: Callable[[Mapping[str, str]], Predictor], samples: Sequence[Sample]
) -> tuple[dict[str, float], list[Found]]:
    """Return PCK@0.2 of the best-scoring animal, each category prompted alone on its photos, and the detections."""
    results, found = dict[str, float](), [NOTHING] * len(samples)
    skeletons = {one.category: one.skeleton for sample in samples for one in sample.instances}
    for name in sorted(skeletons):
        rows = [row for row, sample in enumerate(samples) if any(one.category == name for one in sample.instances)]
        own = [samples[row] for row in rows]
        for row, result in zip(rows, find_all(make({name: skeletons[name]}), own), strict=True):
            found[row] = result
        results[name] = float(metrics.correct_keypoints(own, [found[row] for row in rows])["pck"])
    return results, found
