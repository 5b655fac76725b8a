"""The prompt sizes that engines are compiled for.

A compiled engine computes its whole capacity, whatever the prompts. So there is a ladder of capacities, and prompts run
on the smallest engine that holds them (`engines.backends.fitted`). `benchmarks.prompt_capacity` counts what each costs.
"""

from typing import NamedTuple

MAX_KEYPOINTS = 68
"""Keypoint slots of the published model, which has a learned size for each."""
KEYPOINTS = (17, 33, MAX_KEYPOINTS)
"""People, hands with room to spare, and the most that the network has."""


class Capacity(NamedTuple):
    """Room for prompts: classes, and keypoints of each class."""

    classes: int
    keypoints: int

    def holds(self, other: "Capacity") -> bool:
        """Whether prompts of the size `other` fit."""
        return self.classes >= other.classes and self.keypoints >= other.keypoints

    def __str__(self) -> str:
        return f"{self.classes} {'class' if self.classes == 1 else 'classes'} of {self.keypoints} keypoints"


def capacity_for(needed: Capacity) -> Capacity:
    """Return the smallest capacity of the ladder that holds `needed`: a power of two of classes, one of `KEYPOINTS`."""
    classes = 1 << (needed.classes - 1).bit_length()
    return Capacity(classes, next(count for count in KEYPOINTS if count >= needed.keypoints))


def capacities_for(needed: Capacity, most: Capacity) -> list[Capacity]:
    """Return the capacities that hold `needed`, up to the one that holds `most`, the cheapest first.

    Keypoints decide the order: they cost more than classes.
    """
    first, last = capacity_for(needed), capacity_for(most)
    doublings = range(first.classes.bit_length() - 1, last.classes.bit_length())
    points = [count for count in KEYPOINTS if first.keypoints <= count <= last.keypoints]
    return [Capacity(1 << doubling, count) for count in points for doubling in doublings]
