"""Bonn PoseTrack: identities of noisy, incomplete poses for our tracker, a simpler one and the best possible result."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

from benchmarks.tracking.data import Floats, MadeDetections, PoseSequence, bonn_sequences, made_detections
from benchmarks.tracking.scores import Comparison, Integers, Scores, score
from trackers import Detections, Tracker, TrackerConfig

_SIGMA = 0.07
FrameResult = tuple[Integers, Floats]  # ids_R and keypoints_RK2
Runner = Callable[[PoseSequence, Sequence[MadeDetections], int], list[FrameResult]]


def extent_area(keypoints_NK2: Floats) -> Floats:
    """Width times height of the present keypoints, at least 1 px²."""
    size_N2 = np.nanmax(keypoints_NK2, axis=1) - np.nanmin(keypoints_NK2, axis=1)
    return np.asarray(np.maximum(size_N2[:, 0] * size_N2[:, 1], 1.0))


def oks(truth_GK2: Floats, result_RK2: Floats, area_G: Floats) -> Floats:
    """COCO's OKS of all pairs over the keypoints both have, all sigmas 0.07."""
    squared = np.square(truth_GK2[:, None] - result_RK2).sum(axis=3)
    both = ~np.isnan(squared)
    similar = np.exp(-np.where(both, squared, 0.0) / (8.0 * area_G[:, None, None] * _SIGMA**2)) * both
    return np.asarray(similar.sum(axis=2) / np.maximum(both.sum(axis=2), 1))


def run_ours(config: TrackerConfig, coasting: bool) -> Runner:
    """Smoothed poses of measured tracks; with `coasting` also the predicted poses of coasting ones."""

    def run(sequence: PoseSequence, frames: Sequence[MadeDetections], step: int) -> list[FrameResult]:
        tracker, results = Tracker(config), []
        for index in range(0, len(frames), step):
            keypoints = frames[index].keypoints_NK2
            boxes = np.full((len(keypoints), 4), np.nan)
            tracks = tracker.update(Detections.of(boxes, keypoints=keypoints), index / sequence.fps)
            poses = np.where(tracks.measured_T[:, None, None], tracks.keypoints_TK2, tracks.keypoints_predicted_TK2)
            shown = tracks.measured_T | coasting
            results.append((tracks.ids_T[shown], poses[shown]))
        return results

    return run


def run_truth(sequence: PoseSequence, frames: Sequence[MadeDetections], step: int) -> list[FrameResult]:
    """The best possible result: the same detections without the false alarms, with their true ids."""
    results = []
    for index in range(0, len(frames), step):
        true = frames[index].source_N >= 0
        ids = sequence.ids[index][frames[index].source_N[true]]
        results.append((ids, frames[index].keypoints_NK2[true]))
    return results


def run_hungarian(sequence: PoseSequence, frames: Sequence[MadeDetections], step: int) -> list[FrameResult]:
    """Hungarian OKS of at least 0.3 against the last seen pose moved at constant velocity, 30 frames of memory."""
    ids: list[int] = []
    poses: list[Floats] = []
    speeds: list[Floats] = []
    seen: list[int] = []
    results: list[FrameResult] = []
    next_id = 1
    for index in range(0, len(frames), step):
        found = frames[index].keypoints_NK2
        alive = [i for i in range(len(ids)) if index - seen[i] <= 30]
        ids, poses = [ids[i] for i in alive], [poses[i] for i in alive]
        speeds, seen = [speeds[i] for i in alive], [seen[i] for i in alive]
        assigned = np.full(len(found), -1)
        if ids and len(found):
            predicted = np.stack([p + v * (index - s) for p, v, s in zip(poses, speeds, seen, strict=True)])
            similarity = oks(predicted, found, extent_area(predicted))
            rows, columns = linear_sum_assignment(np.where(similarity >= 0.3, similarity, 0.0), maximize=True)
            for row, column in zip(rows, columns, strict=True):
                if similarity[row, column] >= 0.3:
                    moved = np.nanmean(found[column] - poses[row], axis=0) / (index - seen[row])
                    speeds[row], poses[row], seen[row] = moved, found[column], index
                    assigned[column] = ids[row]
        for column in np.nonzero(assigned < 0)[0]:
            ids.append(next_id)
            poses.append(found[column])
            speeds.append(np.zeros(2))
            seen.append(index)
            assigned[column] = next_id
            next_id += 1
        results.append((assigned, found))
    return results


def pose_scores(config: TrackerConfig, seed: int = 0) -> Iterator[tuple[str, str, Scores]]:
    """Yield frame rate, tracker, scores over the 39 sequences, a match from OKS 0.5."""
    sequences = bonn_sequences()
    rng = np.random.default_rng(seed)
    made = [list(made_detections(sequence, rng)) for sequence in sequences]
    runners: dict[str, Runner] = {
        "ours, measured and coasting": run_ours(config, coasting=True),
        "ours, measured only": run_ours(config, coasting=False),
        "Hungarian OKS, constant velocity": run_hungarian,
        "true ids (ceiling of measured only)": run_truth,
    }
    for rate, step in (("full", 1), ("half", 2)):
        for name, runner in runners.items():
            comparisons = [
                _compare(sequence, runner(sequence, frames, step), step)
                for sequence, frames in zip(sequences, made, strict=True)
            ]
            yield rate, name, score(comparisons)


def _compare(sequence: PoseSequence, results: Sequence[FrameResult], step: int) -> Comparison:
    similarity = []
    for index, (_, poses) in zip(range(0, len(sequence.ids), step), results, strict=True):
        truth = sequence.keypoints[index]
        similarity.append(oks(truth, poses, extent_area(truth)) if len(truth) else np.empty((0, len(poses))))
    return Comparison(sequence.ids[::step], [ids for ids, _ in results], similarity)
