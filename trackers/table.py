"""Data of each track, as arrays of equal length."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from trackers.types import Booleans, Floats, Integers


@dataclass(slots=True)
class TrackTable:
    """One row per track; legend: T tracks."""

    ids_T: Integers
    classes_T: Integers
    scores_T: Floats
    hits_T: Integers  # detections so far
    confirmed_T: Booleans
    born_s_T: Floats
    seen_s_T: Floats  # time of the last detection
    detection_T: Integers  # row of this update's detection, or -1
    boxes_T4: Floats  # last detected box, (x1, y1, x2, y2)
    centres_T2: Floats  # of that box
    headings_T2: Floats  # observed velocity of the box's centre, px/s

    @classmethod
    def empty(cls) -> TrackTable:
        return cls(
            ids_T=np.empty(0, np.int64),
            classes_T=np.empty(0, np.int64),
            scores_T=np.empty(0),
            hits_T=np.empty(0, np.int64),
            confirmed_T=np.empty(0, np.bool_),
            born_s_T=np.empty(0),
            seen_s_T=np.empty(0),
            detection_T=np.empty(0, np.int64),
            boxes_T4=np.empty((0, 4)),
            centres_T2=np.empty((0, 2)),
            headings_T2=np.empty((0, 2)),
        )

    def __len__(self) -> int:
        return len(self.ids_T)

    def append(self, other: TrackTable) -> None:
        for item in fields(self):
            setattr(self, item.name, np.concatenate((getattr(self, item.name), getattr(other, item.name))))

    def keep(self, kept_T: Booleans) -> None:
        for item in fields(self):
            setattr(self, item.name, getattr(self, item.name)[kept_T])
