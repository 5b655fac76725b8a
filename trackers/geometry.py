"""Pairs of overlapping boxes, and similarity of poses.

Legend: T tracks, N detections, P candidate pairs, K keypoints; arrays 2T, 2N, 2P hold x and y in their first axis.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from trackers.types import Booleans, Floats, Integers

_PAIRS_AT_ONCE = 65_536  # limits the memory of OKS when thousands of objects overlap
_WILD_DISTANCE = 5.0  # median distances from the median point; a body's farthest joint lies within 3
_FEW_PAIRS = 400  # up to this number all pairs are returned: finding those that overlap would take longer


def candidate_pairs(
    centres_2T: Floats, sizes_2T: Floats, growth_T: Floats, centres_2N: Floats, sizes_2N: Floats
) -> tuple[Integers, Integers]:
    """Rows and columns of all pairs of boxes that overlap once both are scaled by `growth_T` about their centres.

    Pairs that do not overlap may be among them.
    """
    tracks, detections = len(growth_T), sizes_2N.shape[1]
    if tracks * detections <= _FEW_PAIRS:
        return _all_pairs(tracks, detections)
    half_T = 0.5 * growth_T
    reach_2T = sizes_2T * half_T
    near = np.abs(centres_2T[0][:, None] - centres_2N[0]) < reach_2T[0][:, None] + np.multiply.outer(
        half_T, sizes_2N[0]
    )
    rows_P, columns_P = near.nonzero()
    apart_P = np.abs(centres_2T[1][rows_P] - centres_2N[1][columns_P])
    close = apart_P < reach_2T[1][rows_P] + half_T[rows_P] * sizes_2N[1][columns_P]
    return rows_P[close], columns_P[close]


@lru_cache(maxsize=64)
def _all_pairs(tracks: int, detections: int) -> tuple[Integers, Integers]:
    pairs = np.repeat(np.arange(tracks), detections), np.tile(np.arange(detections), tracks)
    for indices in pairs:
        indices.flags.writeable = False
    return pairs


def oks_pairs(first_PK2: Floats, second_PK2: Floats, area_P: Floats, sigmas_PK: Floats) -> tuple[Floats, Booleans]:
    """Object keypoint similarity of paired poses over the keypoints both have.

    Args:
        first_PK2, second_PK2: px, NaN where absent.
        area_P: px², of the object.
        sigmas_PK: COCO's per-keypoint sigma (fractions of sqrt(area)).
    Returns:
        oks_P in 0..1 (0 without a common keypoint) and whether a common keypoint exists.
    Source: COCO keypoint evaluation, e = d² / (2 area (2 sigma)²).
    """
    oks_P = np.zeros(len(area_P))
    common_P = np.zeros(len(area_P), np.bool_)
    for start in range(0, len(area_P), _PAIRS_AT_ONCE):
        chunk = slice(start, start + _PAIRS_AT_ONCE)
        difference = first_PK2[chunk] - second_PK2[chunk]
        error = np.einsum("pka,pka->pk", difference, difference)
        absent = np.asarray(np.isnan(error))  # on either side
        similar = np.exp(error / (-8.0 * area_P[chunk, None] * np.square(sigmas_PK[chunk])))
        similar[absent] = 0.0
        count = similar.shape[1] - absent.sum(axis=1)
        oks_P[chunk] = similar.sum(axis=1) / np.maximum(count, 1)
        common_P[chunk] = count > 0
    return oks_P, common_P


def keypoint_boxes(keypoints_NK2: Floats) -> Floats:
    """(x1, y1, x2, y2) around the present keypoints; NaN rows without any.

    A keypoint that is much farther from the median point than most is ignored. A side is at least a tenth of the longer
    side, and at least a pixel (one keypoint, a straight arm).
    """
    middle_N12 = _median(keypoints_NK2)[:, None]
    distance_NK = np.hypot(*np.moveaxis(keypoints_NK2 - middle_N12, 2, 0))
    counted_NK1 = (distance_NK <= _WILD_DISTANCE * _median(distance_NK)[:, None])[..., None]
    low = np.where(counted_NK1, keypoints_NK2, np.inf).min(axis=1, initial=np.inf)
    high = np.where(counted_NK1, keypoints_NK2, -np.inf).max(axis=1, initial=-np.inf)
    any_N1 = counted_NK1.any(axis=1)
    low, high = np.where(any_N1, low, np.nan), np.where(any_N1, high, np.nan)
    size_N2 = high - low
    least_N1 = np.maximum(0.1 * size_N2.max(axis=1, keepdims=True), 1.0)
    grow_N2 = np.maximum(least_N1 - size_N2, 0.0) * 0.5
    return np.concatenate((low - grow_N2, high + grow_N2), axis=1)


def _median(values: Floats) -> Floats:
    """Upper median over axis 1, ignoring NaN; NaN if all values are NaN."""
    ordered = np.sort(values, axis=1)  # NaN last
    middle = np.sum(~np.isnan(values), axis=1, keepdims=True) // 2
    return np.asarray(np.take_along_axis(ordered, np.minimum(middle, values.shape[1] - 1), axis=1)[:, 0])
