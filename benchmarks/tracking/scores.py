"""HOTA, IDF1 and MOTA by TrackEval 1.3, from boxes or from any similarity.

Legend: F frames, G true objects of a frame, R results of a frame.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from benchmarks.tracking.data import BoxSequence, Floats

Integers = NDArray[np.int64]
_DISTRACTORS = (2, 7, 8, 12)  # MOT17: person on vehicle, static person, distractor, reflection
_PEDESTRIAN = 1


@dataclass(frozen=True, slots=True)
class Scores:
    """Percentages, and the number of identity switches, over all sequences together."""

    hota: float
    idf1: float
    mota: float
    switches: int
    det_a: float
    ass_a: float

    def __str__(self) -> str:
        return f"{self.hota:.1f} / {self.idf1:.1f} / {self.mota:.1f} / {self.switches}"


@dataclass(frozen=True, slots=True)
class Comparison:
    """One sequence: per frame true ids, result ids, and their similarity_GR (0..1)."""

    true_ids: Sequence[Integers]
    result_ids: Sequence[Integers]
    similarity: Sequence[Floats]


def box_iou(first_G4: Floats, second_R4: Floats) -> Floats:
    """Plain IoU of all pairs of (x1, y1, x2, y2)."""
    low = np.maximum(first_G4[:, None, :2], second_R4[:, :2])
    high = np.minimum(first_G4[:, None, 2:], second_R4[:, 2:])
    overlap = np.prod(np.maximum(high - low, 0.0), axis=2)
    areas_G = np.prod(first_G4[:, 2:] - first_G4[:, :2], axis=1)
    areas_R = np.prod(second_R4[:, 2:] - second_R4[:, :2], axis=1)
    return np.asarray(overlap / np.maximum(areas_G[:, None] + areas_R - overlap, 1e-9))


def compare_boxes(sequence: BoxSequence, results: dict[int, tuple[Integers, Floats]]) -> Comparison:
    """Match by MOTChallenge's rules: results on distractors and true boxes with conf 0 do not count.

    Args:
        results: frame -> ids_R and boxes_R4.
    """
    true_ids, result_ids, similarity = [], [], []
    for frame in sequence.frames:
        first, last = np.searchsorted(sequence.truth_R[:, 0], (frame, frame + 1))
        truth = sequence.truth_R[first:last]
        ids_R, boxes_R4 = results.get(frame, (np.empty(0, np.int64), np.empty((0, 4))))
        boxes_G4 = np.concatenate((truth[:, 2:4], truth[:, 2:4] + truth[:, 4:6]), axis=1)
        iou_GR = box_iou(boxes_G4, boxes_R4)
        rows, columns = linear_sum_assignment(np.where(iou_GR >= 0.5, iou_GR, 0.0), maximize=True)
        on_distractor = (iou_GR[rows, columns] >= 0.5) & np.isin(truth[rows, 7], _DISTRACTORS)
        kept_R = np.ones(len(ids_R), np.bool_)
        if sequence.name.startswith("MOT17"):
            kept_R[columns[on_distractor]] = False
        kept_G = (truth[:, 6] > 0) & (truth[:, 7] == _PEDESTRIAN)
        true_ids.append(truth[kept_G, 1].astype(np.int64))
        result_ids.append(ids_R[kept_R])
        similarity.append(iou_GR[np.ix_(kept_G, kept_R)])
    return Comparison(true_ids, result_ids, similarity)


def score(comparisons: Sequence[Comparison]) -> Scores:
    """Combine sequences as TrackEval does."""
    with contextlib.redirect_stdout(io.StringIO()):  # TrackEval prints its configuration
        from trackeval.metrics import CLEAR, HOTA, Identity

        metrics = {"hota": HOTA(), "clear": CLEAR(), "identity": Identity()}
        parts = [_as_trackeval(comparison) for comparison in comparisons]
        totals: dict[str, Any] = {
            name: metric.combine_sequences({str(i): metric.eval_sequence(part) for i, part in enumerate(parts)})
            for name, metric in metrics.items()
        }
    hota, clear = totals["hota"], totals["clear"]
    return Scores(
        100 * float(np.mean(hota["HOTA"])),
        100 * float(totals["identity"]["IDF1"]),
        100 * float(clear["MOTA"]),
        int(clear["IDSW"]),
        100 * float(np.mean(hota["DetA"])),
        100 * float(np.mean(hota["AssA"])),
    )


def _as_trackeval(comparison: Comparison) -> dict[str, Any]:
    true_ids, true_count = _renumbered(comparison.true_ids)
    result_ids, result_count = _renumbered(comparison.result_ids)
    return {
        "num_timesteps": len(true_ids),
        "num_gt_ids": true_count,
        "num_tracker_ids": result_count,
        "num_gt_dets": sum(map(len, true_ids)),
        "num_tracker_dets": sum(map(len, result_ids)),
        "gt_ids": true_ids,
        "tracker_ids": result_ids,
        "similarity_scores": list(comparison.similarity),
    }


def _renumbered(ids: Sequence[Integers]) -> tuple[list[Integers], int]:
    known = np.unique(np.concatenate(ids)) if ids else np.empty(0, np.int64)
    return [np.searchsorted(known, row) for row in ids], len(known)
