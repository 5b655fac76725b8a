"""Which detection continues which track.

All pairs whose enlarged boxes may touch are listed once. Everything else is computed on that list, because most pairs
in a crowd are far apart. Three rounds of matching use it (ByteTrack, ECCV 2022): confirmed tracks with confident
detections, recently seen tracks with doubtful detections, and tentative tracks with the remaining confident detections.

Legend: T tracks, N detections, P candidate pairs, M matches, K keypoints; arrays 2T, 2N, 2P hold x and y.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from trackers.config import AssociationConfig
from trackers.geometry import candidate_pairs, oks_pairs
from trackers.types import Booleans, Floats, Integers, holds_for_all

_NONE = np.empty(0, np.int64)


@dataclass(slots=True)
class Candidates:
    """What association needs of the tracks, predicted to the frame's time; px and px/s."""

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
class ValidDetections:
    """Valid detections of a frame."""

    rows_N: Integers  # their rows in the caller's arrays
    centres_N2: Floats
    sizes_N2: Floats
    boxes_N4: Floats
    scores_N: Floats
    classes_N: Integers
    keypoints_NK2: Floats


@dataclass(slots=True)
class _Pairs:
    rows: Integers
    columns: Integers
    similarity: Floats
    shape: tuple[int, int]


def associate(tracks: Candidates, valid: ValidDetections, config: AssociationConfig) -> tuple[Integers, Integers]:
    """Return matched track rows_M (ascending where all tracks are matched) and detection columns_M."""
    sure_N = valid.scores_N >= config.high_score
    pairs = _compare(tracks, valid, config, sure_N)
    all_sure, all_confirmed = holds_for_all(sure_N), holds_for_all(tracks.confirmed_T)
    if all_sure and all_confirmed:
        return _round(pairs, None, config.first_similarity)
    sure, confirmed = sure_N[pairs.columns], tracks.confirmed_T[pairs.rows]
    matched = [_round(pairs, confirmed & sure, config.first_similarity)]
    if not all_sure:
        eligible = confirmed & ~sure & tracks.recent_T[pairs.rows] & _free(pairs, matched)
        matched.append(_round(pairs, eligible, config.second_similarity))
    if not all_confirmed:
        matched.append(_round(pairs, ~confirmed & sure & _free(pairs, matched), config.first_similarity))
    return np.concatenate([pair[0] for pair in matched]), np.concatenate([pair[1] for pair in matched])


def _free(pairs: _Pairs, matched: list[tuple[Integers, Integers]]) -> Booleans:
    free_T, free_N = np.ones(pairs.shape[0], np.bool_), np.ones(pairs.shape[1], np.bool_)
    for rows, columns in matched:
        free_T[rows] = False
        free_N[columns] = False
    return free_T[pairs.rows] & free_N[pairs.columns]


def _round(pairs: _Pairs, eligible: Booleans | None, threshold: float) -> tuple[Integers, Integers]:
    good = pairs.similarity >= threshold
    if eligible is not None:
        good &= eligible
    chosen = good.nonzero()[0]
    if not len(chosen):
        return _NONE, _NONE
    return assign(pairs.rows[chosen], pairs.columns[chosen], pairs.similarity[chosen], pairs.shape)


def assign(
    rows_P: Integers, columns_P: Integers, similarity_P: Floats, shape: tuple[int, int]
) -> tuple[Integers, Integers]:
    """Choose pairs so that no row or column occurs twice and the sum of similarities (above 0) is greatest.

    A pair whose row and column occur in no other pair is taken directly. The Hungarian method solves the rest.
    """
    lonely = np.maximum(
        np.bincount(rows_P, minlength=shape[0])[rows_P], np.bincount(columns_P, minlength=shape[1])[columns_P]
    )
    hard = (lonely > 1).nonzero()[0]
    if not len(hard):
        return rows_P, columns_P
    hard_rows, row_of = _compact(rows_P[hard], shape[0])
    hard_columns, column_of = _compact(columns_P[hard], shape[1])
    gains = np.zeros((len(hard_rows), len(hard_columns)))
    gains[row_of, column_of] = similarity_P[hard]
    solved_rows, solved_columns = linear_sum_assignment(gains, maximize=True)
    real = gains[solved_rows, solved_columns] > 0.0
    easy = (lonely == 1).nonzero()[0]
    return (
        np.concatenate((rows_P[easy], hard_rows[solved_rows[real]])),
        np.concatenate((columns_P[easy], hard_columns[solved_columns[real]])),
    )


def _compact(values: Integers, size: int) -> tuple[Integers, Integers]:
    present = np.zeros(size, np.bool_)
    present[values] = True
    places = present.nonzero()[0]
    order = np.empty(size, np.int64)
    order[places] = np.arange(len(places))
    return places, order[values]


def _compare(tracks: Candidates, valid: ValidDetections, config: AssociationConfig, sure_N: Booleans) -> _Pairs:
    """Return the candidate pairs with their similarities."""
    track_10T, detection_6N = _track_features(tracks, config), _detection_features(valid, config, sure_N)
    rows, columns = candidate_pairs(track_10T[0:2], track_10T[2:4], track_10T[8], detection_6N[0:2], detection_6N[2:4])
    track, detection = track_10T[:, rows], detection_6N[:, columns]
    similarity = _box_similarity(track, detection, config)
    shape = (len(tracks.scores_T), len(valid.scores_N))
    class_index = tracks.classes_T[0]
    if not (holds_for_all(tracks.classes_T == class_index) and holds_for_all(valid.classes_N == class_index)):
        similarity[tracks.classes_T[rows] != valid.classes_N[columns]] = -np.inf
    if config.pose_weight and valid.keypoints_NK2.shape[1]:
        near = (similarity > -np.inf).nonzero()[0]
        rows, columns, similarity = rows[near], columns[near], similarity[near]
        oks, common = oks_pairs(
            tracks.keypoints_TK2[rows], valid.keypoints_NK2[columns], track[2, near] * track[3, near],
            tracks.sigmas_TK[rows],
        )  # fmt: skip
        mixed = similarity + config.pose_weight * (oks - similarity)
        mixed[mixed < config.pose_similarity] = -np.inf
        similarity = np.where(common, mixed, similarity)
    return _Pairs(rows, columns, similarity, shape)


def _track_features(tracks: Candidates, config: AssociationConfig) -> Floats:
    """Rows: centre x, y; size x, y; last seen x, y; weighted heading x, y; growth; score."""
    features = np.empty((10, len(tracks.scores_T)))
    features[0:2] = tracks.centres_T2.T
    features[2:4] = tracks.sizes_T2.T
    features[4:6] = tracks.seen_at_T2.T
    scale_T = np.sqrt(features[2] * features[3])
    vx, vy = tracks.speeds_T2.T
    features[8] = np.hypot(vx, vy) / scale_T * (2.0 * config.speed_buffer) + (1.0 + 2.0 * config.buffer)
    hx, hy = tracks.headings_T2.T
    least_T = config.heading_speed * scale_T
    features[6:8] = tracks.headings_T2.T * (0.5 * config.heading_weight / np.maximum(np.hypot(hx, hy), least_T))
    features[9] = tracks.scores_T
    return features


def _detection_features(valid: ValidDetections, config: AssociationConfig, sure_N: Booleans) -> Floats:
    """Rows: centre x, y; size x, y; score; score to its power."""
    features = np.empty((6, len(valid.scores_N)))
    features[0:2] = valid.centres_N2.T
    features[2:4] = valid.sizes_N2.T
    features[4] = valid.scores_N
    features[5] = valid.scores_N ** np.where(sure_N, config.score_power, config.low_score_power)
    return features


def _box_similarity(track: Floats, detection: Floats, config: AssociationConfig) -> Floats:
    """Similarity of pairs, -inf where the grown boxes do not touch; arguments as the features, of each pair."""
    size_2P, detected_2P, growth = track[2:4], detection[2:4], track[8]
    apart_2P = np.abs(track[0:2] - detection[0:2])
    smaller_2P = np.minimum(size_2P, detected_2P)
    middle_2P = 0.5 * (size_2P + detected_2P)
    grown_2P = np.minimum(smaller_2P, middle_2P - apart_2P / growth)
    np.maximum(grown_2P, 0.0, out=grown_2P)
    overlap = grown_2P[0] * grown_2P[1]  # in units of growth²
    apart_P = overlap <= 0.0
    similarity = overlap / (size_2P[0] * size_2P[1] + detected_2P[0] * detected_2P[1] - overlap)
    smaller, both = smaller_2P[1], 2.0 * middle_2P[1]
    shared = np.maximum(np.minimum(smaller, middle_2P[1] - apart_2P[1]), 0.0)
    similarity *= shared * detection[5] / (both - shared) * np.sqrt(smaller / (both - smaller))
    moved_2P = detection[0:2] - track[4:6]
    turned_2P = moved_2P * track[6:8]
    similarity += (turned_2P[0] + turned_2P[1]) / (np.hypot(moved_2P[0], moved_2P[1]) + 1e-9)
    similarity -= config.score_weight * np.abs(track[9] - detection[4])
    similarity[apart_P] = -np.inf
    return np.asarray(similarity)
