"""Optimal assignment under a threshold, fast where nothing is ambiguous.

Legend: T tracks, N detections, M matches.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment

from trackers.types import Floats, Integers

_NONE = np.empty(0, np.int64)


def assign(similarity_TN: Floats, threshold: float) -> tuple[Integers, Integers]:
    """Pair rows with columns so that the sum of similarities of at least `threshold` (above 0) is greatest.

    A pair whose row and column admit no other pair needs no solver; only the rest goes through the Hungarian method.

    Returns:
        rows_M and columns_M, rows ascending within each of the two parts.
    """
    allowed = similarity_TN >= threshold
    in_row = allowed.sum(axis=1)
    in_column = allowed.sum(axis=0)
    if not in_row.any():
        return _NONE, _NONE
    rows, columns = np.nonzero(allowed)
    if in_row.max() == 1 and in_column.max() == 1:
        return rows, columns
    unique = (in_row[rows] == 1) & (in_column[columns] == 1)
    clear_rows, clear_columns = rows[unique], columns[unique]
    in_row[clear_rows] = 0
    in_column[clear_columns] = 0
    hard_rows = in_row.nonzero()[0]
    hard_columns = in_column.nonzero()[0]
    block = np.ix_(hard_rows, hard_columns)
    gains = np.where(allowed[block], similarity_TN[block], 0.0)
    solved_rows, solved_columns = linear_sum_assignment(gains, maximize=True)
    real = gains[solved_rows, solved_columns] > 0.0
    return (
        np.concatenate((clear_rows, hard_rows[solved_rows[real]])),
        np.concatenate((clear_columns, hard_columns[solved_columns[real]])),
    )
