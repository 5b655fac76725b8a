"""The input of a step (canvases, prompts and targets) as a pure function of (seed, rank, step).

So worker processes can prepare it in advance, and their number does not change a run.

Legend: B images, H, W canvas.
"""

from collections.abc import Iterator
from typing import NamedTuple, cast

import cv2
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from training.data.stream import Examples, Stream, stack_images
from training.prompts import draw_modality
from training.recipe import Phase, Recipe
from training.targets import Offer, Targets, draw_offer, targets_from_samples

EXAMPLE_SIDE_PX = 224


class Canvases(NamedTuple):
    """One micro-batch."""

    images_BHW3: Tensor  # uint8
    offer: Offer
    targets: Targets
    examples: Examples | None  # of each offered class in turn, equally many; None without examples
    modality_B: Tensor
    seed: int  # for random choices within the step


class Marked(NamedTuple):
    """Marked examples of any class, for a phase that trains the image tower."""

    categories: list[str]
    examples: Examples


Drawn = Canvases | Marked


class Draws(Dataset[Drawn]):
    """Micro-batches by (step, number within the step)."""

    def __init__(self, recipe: Recipe, stream: Stream, rank: int) -> None:
        self.recipe, self.stream, self.rank = recipe, stream, rank

    def __getitem__(self, place: tuple[int, int]) -> Drawn:
        step, micro = place
        phase, _ = self.recipe.phase_at(step)
        draw = step * phase.accumulate + micro
        return self._marked(phase, draw) if phase.learns == "image_tower" else self._canvases(phase, draw)

    def _marked(self, phase: Phase, draw: int) -> Marked:
        rng = self.stream.generator(self.rank, draw, 2)
        return Marked(*self.stream.marked(phase.batch, EXAMPLE_SIDE_PX, rng))

    def _canvases(self, phase: Phase, draw: int) -> Canvases:
        recipe, stream, rank = self.recipe, self.stream, self.rank
        samples = stream.canvases(phase.batch, *phase.size_hw, stream.generator(rank, draw, 0))
        rng = stream.generator(rank, draw, 1)
        offer = draw_offer(samples, stream.vocabulary, recipe.most_classes, phase.absent_share, rng)
        targets = targets_from_samples(samples, offer)
        examples = None
        modality_B = torch.zeros(len(samples), dtype=torch.int64)
        if recipe.examples and any(phase.modality_weights[1:]):
            drawer = stream.generator(rank, draw, 2)
            count = 1 if drawer.random() < recipe.single_share else recipe.examples
            shown = [stream.examples(name, count, EXAMPLE_SIDE_PX, drawer) for name in offer.names]
            examples = Examples.joined(shown)  # each tensor that a worker passes on costs a file handle
            modality_B = draw_modality(len(samples), phase.modality_weights, rng)
        return Canvases(stack_images(samples), offer, targets, examples, modality_B, int(rng.integers(2**62)))


def draw_steps(draws: Draws, first: int, last: int, workers: int) -> Iterator[Drawn]:
    """Yield the micro-batches of steps `first` to `last` - 1. `workers` processes draw ahead; 0 uses this process."""
    places = [(step, n) for step in range(first, last) for n in range(draws.recipe.phase_at(step)[0].accumulate)]
    if workers:
        cv2.setNumThreads(1)  # OpenCV's threads do not survive a fork
    loader = DataLoader(
        draws,
        batch_size=None,
        sampler=places,
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,  # workers share the labels of the caches
    )
    return cast(Iterator[Drawn], iter(loader))
