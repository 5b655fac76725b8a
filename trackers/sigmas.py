"""OKS sigmas: published by the skeleton, or learned per keypoint from the tracking residuals.

Legend: T tracks, M measured tracks, K keypoints.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from trackers.types import Booleans, Floats, Integers

_LEAST, _MOST = 0.035, 0.15  # a little wider than the range of COCO's sigmas
_RATE = 0.002  # learning rate per measured keypoint: the default is forgotten after a few hundred


class Sigmas:
    """Per class index, the sigma of each keypoint, as fractions of sqrt(area)."""

    def __init__(self, published: Mapping[int, NDArray[np.floating]], default: float) -> None:
        self._default = default
        self._published = {index: np.asarray(sigmas, np.float64) for index, sigmas in published.items()}
        self._learned: dict[int, Floats] = {}

    def of(self, classes_T: Integers, keypoints: int) -> Floats:
        """Return sigmas_TK of tracks of these classes."""
        result = np.full((len(classes_T), keypoints), self._default)
        if not keypoints:
            return result
        known = {**self._learned, **self._published}
        for index in set(classes_T.tolist()) & known.keys():
            sigmas = known[index][:keypoints]
            result[classes_T == index, : len(sigmas)] = sigmas
        return result

    def learn(self, classes_M: Integers, squared_MK: Floats, area_M1: Floats, used_MK: Booleans) -> None:
        """Move the sigmas of other classes towards residual² = 4 sigma² area, where OKS is exp(-1/2)."""
        keypoints = squared_MK.shape[1]
        for index in set(classes_M.tolist()) - self._published.keys():
            sigmas = self._learned.get(index, np.empty(0))
            sigmas = np.pad(sigmas, (0, max(keypoints - len(sigmas), 0)), constant_values=self._default)
            rows = (classes_M == index)[:, None] & used_MK
            counts_K = rows.sum(axis=0)
            sums_K = np.where(rows, squared_MK / (4.0 * area_M1), 0.0).sum(axis=0)
            variance_K = np.square(sigmas[:keypoints])
            variance_K += np.minimum(_RATE * counts_K, 1.0) * (sums_K / np.maximum(counts_K, 1) - variance_K)
            sigmas[:keypoints] = np.clip(np.sqrt(variance_K), _LEAST, _MOST)
            self._learned[index] = sigmas
