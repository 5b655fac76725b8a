"""Similarities of boxes and poses.

Legend: T tracks, N detections, P candidate pairs, K keypoints.
"""

from __future__ import annotations

import numpy as np

from trackers.types import Booleans, Floats

_PAIRS_AT_ONCE = 65_536  # bounds the memory of OKS when thousands of objects lie on one spot


def buffered_iou(tracks_T4: Floats, detections_N4: Floats, buffer: float) -> Floats:
    """IoU of all pairs after growing each box by `buffer` of its width and height on every side.

    Args:
        tracks_T4, detections_N4: (x1, y1, x2, y2) in px, positive sizes.
    Returns:
        iou_TN in 0..1.
    Source: C-BIoU, WACV 2023, section 3.2.
    """
    t = _grown(tracks_T4, buffer).T[:, :, None]
    d = _grown(detections_N4, buffer).T
    width = np.minimum(t[2], d[2]) - np.maximum(t[0], d[0])
    height = np.minimum(t[3], d[3]) - np.maximum(t[1], d[1])
    np.maximum(width, 0.0, out=width)
    np.maximum(height, 0.0, out=height)
    overlap: Floats = width * height
    return np.asarray(overlap / ((t[2] - t[0]) * (t[3] - t[1]) + (d[2] - d[0]) * (d[3] - d[1]) - overlap))


def _grown(boxes_N4: Floats, buffer: float) -> Floats:
    size_N2 = boxes_N4[:, 2:] - boxes_N4[:, :2]
    return np.concatenate((boxes_N4[:, :2] - buffer * size_N2, boxes_N4[:, 2:] + buffer * size_N2), axis=1)


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
        error = np.einsum("pkd,pkd->pk", difference, difference)
        both = np.asarray(~np.isnan(error))  # absent on either side
        count = both.sum(axis=1)
        scale = 8.0 * area_P[chunk, None] * np.square(sigmas_PK[chunk])
        similar = np.exp(-error / scale)
        similar[~both] = 0.0
        oks_P[chunk] = similar.sum(axis=1) / np.maximum(count, 1)
        common_P[chunk] = count > 0
    return oks_P, common_P


def keypoint_extent(keypoints_NK2: Floats) -> Floats:
    """(x1, y1, x2, y2) around the present keypoints, NaN rows without any."""
    present_NK = ~np.isnan(keypoints_NK2[:, :, 0])
    low = np.where(present_NK[:, :, None], keypoints_NK2, np.inf).min(axis=1, initial=np.inf)
    high = np.where(present_NK[:, :, None], keypoints_NK2, -np.inf).max(axis=1, initial=-np.inf)
    return np.where(present_NK.any(axis=1)[:, None], np.concatenate((low, high), axis=1), np.nan)
