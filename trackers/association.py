"""Which detection continues which track.

All pairs whose grown boxes touch are listed once; everything else is computed on that list, since most pairs of a
crowd are nowhere near each other. Three rounds take their pairs from it (ByteTrack, ECCV 2022): confirmed tracks with
confident detections, tracks seen a moment ago with doubtful ones, tentative tracks with what is left.

Legend: T tracks, N detections, P candidate pairs, M matches, K keypoints.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from trackers.config import AssociationConfig
from trackers.geometry import interval_overlap, oks_pairs, touching_pairs
from trackers.types import Booleans, Floats, Integers

_NONE = np.empty(0, np.int64)


@dataclass(slots=True)
class Candidates:
    """Tracks as association sees them, predicted to the frame's time (px, px/s)."""

    centres_T2: Floats
    sizes_T2: Floats
    speeds_T2: Floats  # of the filter
    headings_T2: Floats  # observed velocity
    seen_at_T2: Floats  # centre of the last detection
    scores_T: Floats
    classes_T: Integers
    confirmed_T: Booleans
    recent_T: Booleans  # detected in the update before
    keypoints_TK2: Floats
    sigmas_TK: Floats


@dataclass(slots=True)
class Found:
    """Valid detections of a frame."""

    rows_N: Integers  # where they stood in the caller's arrays
    centres_N2: Floats
    sizes_N2: Floats
    boxes_N4: Floats
    scores_N: Floats
    classes_N: Integers
    keypoints_NK2: Floats


def associate(tracks: Candidates, found: Found, config: AssociationConfig) -> tuple[Integers, Integers]:
    """Return matched track rows_M and detection columns_M."""
    scale_T = np.sqrt(tracks.sizes_T2[:, 0] * tracks.sizes_T2[:, 1])
    speed_T = np.hypot(tracks.speeds_T2[:, 0], tracks.speeds_T2[:, 1]) / scale_T
    growth_T = 1.0 + 2.0 * (config.buffer + config.speed_buffer * speed_T)
    rows, columns = touching_pairs(tracks.centres_T2, tracks.sizes_T2, growth_T, found.centres_N2, found.sizes_N2)
    same = tracks.classes_T[rows] == found.classes_N[columns]
    if not same.all():
        rows, columns = rows[same], columns[same]
    if not len(rows):
        return _NONE, _NONE
    sure_N = found.scores_N >= config.high_score
    sure = sure_N[columns]
    similarity = _similarity(tracks, found, config, rows, columns, scale_T, growth_T, sure)
    confirmed = tracks.confirmed_T[rows]
    rounds = [(confirmed & sure, config.first_similarity)]
    if not sure_N.all():
        rounds.append((confirmed & ~sure & tracks.recent_T[rows], config.second_similarity))
    if not confirmed.all():
        rounds.append((~confirmed & sure, config.first_similarity))
    shape = (len(scale_T), len(sure_N))
    matched = [_round(rows, columns, similarity, *rounds[0], shape)]
    for eligible, threshold in rounds[1:]:
        free_T, free_N = np.ones(shape[0], np.bool_), np.ones(shape[1], np.bool_)
        for matched_rows, matched_columns in matched:
            free_T[matched_rows] = False
            free_N[matched_columns] = False
        matched.append(_round(rows, columns, similarity, eligible & free_T[rows] & free_N[columns], threshold, shape))
    if len(matched) == 1:
        return matched[0]
    return np.concatenate([pair[0] for pair in matched]), np.concatenate([pair[1] for pair in matched])


def _round(
    rows: Integers, columns: Integers, similarity: Floats, eligible: Booleans, threshold: float, shape: tuple[int, int]
) -> tuple[Integers, Integers]:
    chosen = (eligible & (similarity >= threshold)).nonzero()[0]
    if not len(chosen):
        return _NONE, _NONE
    return assign(rows[chosen], columns[chosen], similarity[chosen], shape)


def assign(
    rows_P: Integers, columns_P: Integers, similarity_P: Floats, shape: tuple[int, int]
) -> tuple[Integers, Integers]:
    """Choose pairs so that no row or column occurs twice and the sum of similarities (above 0) is greatest.

    A pair whose row and column occur in no other pair needs no solver; only the rest goes through the Hungarian method.
    """
    lonely = (np.bincount(rows_P, minlength=shape[0])[rows_P] == 1) & (
        np.bincount(columns_P, minlength=shape[1])[columns_P] == 1
    )
    if lonely.all():
        return rows_P, columns_P
    rest = ~lonely
    hard_rows, row_of = _compact(rows_P[rest], shape[0])
    hard_columns, column_of = _compact(columns_P[rest], shape[1])
    gains = np.zeros((len(hard_rows), len(hard_columns)))
    gains[row_of, column_of] = similarity_P[rest]
    solved_rows, solved_columns = linear_sum_assignment(gains, maximize=True)
    real = gains[solved_rows, solved_columns] > 0.0
    return (
        np.concatenate((rows_P[lonely], hard_rows[solved_rows[real]])),
        np.concatenate((columns_P[lonely], hard_columns[solved_columns[real]])),
    )


def _compact(values: Integers, size: int) -> tuple[Integers, Integers]:
    present = np.zeros(size, np.bool_)
    present[values] = True
    return present.nonzero()[0], (np.cumsum(present) - 1)[values]


def _similarity(
    tracks: Candidates, found: Found, config: AssociationConfig, rows: Integers, columns: Integers, scale_T: Floats,
    growth_T: Floats, sure: Booleans,
) -> Floats:  # fmt: skip
    sides_T = np.concatenate(
        (tracks.centres_T2.T, tracks.sizes_T2.T, tracks.headings_T2.T, tracks.seen_at_T2.T,
         scale_T[None], growth_T[None], tracks.scores_T[None])
    )  # fmt: skip
    cx, cy, width, height, heading_x, heading_y, from_x, from_y, scale, growth, last_score = sides_T[:, rows]
    sides_N = np.concatenate((found.centres_N2.T, found.sizes_N2.T, found.scores_N[None]))
    to_x, to_y, found_width, found_height, score = sides_N[:, columns]
    apart_x, apart_y = np.abs(cx - to_x), np.abs(cy - to_y)
    overlap = interval_overlap(apart_x, width * growth, found_width * growth) * interval_overlap(
        apart_y, height * growth, found_height * growth
    )
    similarity = overlap / ((width * height + found_width * found_height) * growth * growth - overlap)
    shared = interval_overlap(apart_y, height, found_height)
    similarity *= shared / (height + found_height - shared)
    ratio = np.minimum(height, found_height) / np.maximum(height, found_height)
    power = np.where(sure, config.score_power, config.low_score_power)
    similarity *= ratio**config.shape_power * score**power
    moved_x, moved_y = to_x - from_x, to_y - from_y
    heading_speed = np.hypot(heading_x, heading_y)
    norms = heading_speed * np.hypot(moved_x, moved_y) + 1e-9
    cosine = np.clip((heading_x * moved_x + heading_y * moved_y) / norms, -1.0, 1.0)
    certainty = np.minimum(heading_speed / (scale * config.heading_speed), 1.0)
    similarity += config.heading_weight * certainty * (0.5 - np.arccos(cosine) / np.pi)
    similarity -= config.score_weight * np.abs(last_score - score)
    similarity -= config.distance_weight * np.hypot(apart_x, apart_y) / scale
    if config.pose_weight and found.keypoints_NK2.shape[1]:
        oks, common = oks_pairs(
            tracks.keypoints_TK2[rows], found.keypoints_NK2[columns], width * height, tracks.sigmas_TK[rows]
        )
        similarity = np.where(common, similarity + config.pose_weight * (oks - similarity), similarity)
    return np.asarray(similarity)
