"""Overlaps of boxes and poses.

Legend: T tracks, N detections, P candidate pairs, K keypoints.
"""

from __future__ import annotations

import numpy as np

from trackers.types import Booleans, Floats, Integers

_PAIRS_AT_ONCE = 65_536  # bounds the memory of OKS when thousands of objects lie on one spot


def touching_pairs(
    centres_T2: Floats, sizes_T2: Floats, growth_T: Floats, centres_N2: Floats, sizes_N2: Floats
) -> tuple[Integers, Integers]:
    """Rows and columns of all pairs of boxes that overlap once both are scaled by `growth_T` about their centres."""
    reach_T2 = sizes_T2 * (0.5 * growth_T[:, None])
    near = np.abs(centres_T2[:, :1] - centres_N2[:, 0]) < reach_T2[:, :1] + np.multiply.outer(
        0.5 * growth_T, sizes_N2[:, 0]
    )
    near &= np.abs(centres_T2[:, 1:] - centres_N2[:, 1]) < reach_T2[:, 1:] + np.multiply.outer(
        0.5 * growth_T, sizes_N2[:, 1]
    )
    rows_P, columns_P = near.nonzero()
    return rows_P, columns_P


def interval_overlap(distance_P: Floats, first_P: Floats, second_P: Floats) -> Floats:
    """Length two intervals share, of the given lengths, with midpoints this far apart; 0 when apart."""
    shared = np.minimum(np.minimum(first_P, second_P), 0.5 * (first_P + second_P) - distance_P)
    return np.maximum(shared, 0.0)


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

    Degenerate extents (one keypoint, a straight arm) get a tenth of their longer side, at least a pixel.
    """
    present_NK1 = ~np.isnan(keypoints_NK2[:, :, :1])
    low = np.where(present_NK1, keypoints_NK2, np.inf).min(axis=1, initial=np.inf)
    high = np.where(present_NK1, keypoints_NK2, -np.inf).max(axis=1, initial=-np.inf)
    any_N1 = present_NK1.any(axis=1)
    low, high = np.where(any_N1, low, np.nan), np.where(any_N1, high, np.nan)
    size_N2 = high - low
    least_N1 = np.maximum(0.1 * size_N2.max(axis=1, keepdims=True), 1.0)
    grow_N2 = np.maximum(least_N1 - size_N2, 0.0) * 0.5
    return np.concatenate((low - grow_N2, high + grow_N2), axis=1)
