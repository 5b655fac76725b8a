"""Canvases and examples from several caches. All random choices use the generator that the caller passes.

Legend: N examples of a class, K keypoint slots.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import msgspec
import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

from engines.skeletons import load_skeleton
from engines.visual_prompts import LEAST_EXAMPLE_PX, LEAST_MARKED, crop_example
from training.data.augment import AugmentConfig, compose, draw_layout
from training.data.cache import ImageCache
from training.data.sample import Sample

PIXEL_MEAN_255 = (123.675, 116.28, 103.53)
PIXEL_STD_255 = (58.395, 57.12, 57.375)


class SourceConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One cache of the mixture.

    Args:
        cache: folder name under the data folder.
        weight: relative frequency with which a canvas is filled from it.
        limit: use only this many images from its start; 0 uses all.
        unlabelled: categories whose objects its images may show without a label (`Sample.unlabelled`).
        absent: categories that are absent from its images. They are always prompted.
        backdrops: a cache of pictures without labelled objects that fill the rest of the canvas; "" uses the border
            colour.
    """

    cache: str
    weight: float
    limit: int = 0
    unlabelled: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    backdrops: str = ""
    augment: AugmentConfig = AugmentConfig()


@dataclass(frozen=True)
class Examples:
    """Visual prompts of one class: N crops with their keypoints."""

    pixels_N3SS: Tensor
    points_NK2: Tensor
    visible_NK: Tensor

    def to(self, device: torch.device) -> "Examples":
        """Return the same examples on another device."""
        return Examples(self.pixels_N3SS.to(device), self.points_NK2.to(device), self.visible_NK.to(device))

    @classmethod
    def joined(cls, parts: Sequence["Examples"]) -> "Examples":
        """Join the examples of several classes, one after another."""
        return cls(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    def parted_by(self, classes: int) -> list["Examples"]:
        """Split into the examples of each class, which have the same number."""
        count = len(self.pixels_N3SS) // classes
        columns = zip(*(getattr(self, field.name).split(count) for field in fields(self)), strict=True)
        return [Examples(*parts) for parts in columns]


class Stream:
    """Draws canvases and examples from several caches.

    Args:
        folder: folder that contains the caches.
    Raises:
        FileNotFoundError: a cache is missing.
        ValueError: there is no cache, or one has no images.
    """

    def __init__(self, sources: Sequence[SourceConfig], folder: Path, seed: int) -> None:
        if not sources:
            raise ValueError("the recipe names no sources; give at least one [[sources]] with cache and weight")
        self.sources, self.seed = tuple(sources), seed
        self.caches = tuple(ImageCache(folder / source.cache) for source in sources)
        self.lengths = tuple(
            min(len(cache), source.limit or len(cache)) for source, cache in zip(sources, self.caches, strict=True)
        )
        for source, length in zip(sources, self.lengths, strict=True):
            if length == 0:
                raise ValueError(f"cache {source.cache} has no images; build it from data that has labels")
        names = {source.backdrops for source in sources if source.backdrops}
        self._backdrops = {name: ImageCache(folder / name) for name in sorted(names)}
        weights = np.array([source.weight for source in sources], np.float64)
        self._weights = weights / weights.sum()
        self._places = self._index_instances()
        self._marked: list[list[tuple[str, tuple[int, int, int]]]] = [[] for _ in sources]
        for name, (_, places) in sorted(self._places.items()):
            for place in places:
                self._marked[place[0]].append((name, place))
        self.vocabulary = {name: skeleton for name, (skeleton, _) in sorted(self._places.items())}
        self._slots = max((len(load_skeleton(name).keypoints) for name in self.vocabulary.values()), default=0)

    def generator(self, rank: int, step: int, purpose: int) -> Generator:
        """Return the generator of one draw. Different purposes keep canvases, prompts and examples independent."""
        return np.random.default_rng([self.seed, rank, step, purpose])

    def canvases(self, count: int, height: int, width: int, rng: Generator) -> list[Sample]:
        """Return `count` augmented canvases."""
        return [self._canvas(height, width, rng) for _ in range(count)]

    def _canvas(self, height: int, width: int, rng: Generator) -> Sample:
        chosen = int(rng.choice(len(self.sources), p=self._weights))
        source, augment = self.sources[chosen], self.sources[chosen].augment
        layout = draw_layout(augment, rng)
        picks = rng.integers(self.lengths[chosen], size=layout[0] * layout[1])
        samples = [self.caches[chosen][int(i)] for i in picks]
        backdrop = None
        if source.backdrops:
            pictures = self._backdrops[source.backdrops]
            backdrop = pictures[int(rng.integers(len(pictures)))]
        canvas = compose(samples, layout, height, width, augment, rng, backdrop)
        return replace(canvas, unlabelled=source.unlabelled, absent=source.absent)

    def examples(self, category: str, count: int, side_px: int, rng: Generator) -> Examples:
        """Return `count` marked examples of a category, cropped like visual prompts; K is that of the longest list."""
        places = self._places[category][1]
        return self._crop([places[int(rng.integers(len(places)))] for _ in range(count)], side_px)

    def marked(self, count: int, side_px: int, rng: Generator) -> tuple[list[str], Examples]:
        """Return `count` marked examples of any category, from the sources by their weights, and their categories."""
        drawn = []
        for source in rng.choice(len(self.sources), size=count, p=self._weights):
            drawn.append(self._marked[source][int(rng.integers(len(self._marked[source])))])
        categories, places = zip(*drawn, strict=True)
        return list(categories), self._crop(places, side_px)

    def _crop(self, places: Sequence[tuple[int, int, int]], side_px: int) -> Examples:
        pixels, points, visible = zip(*(self._example(place, side_px) for place in places), strict=True)
        return Examples(*(torch.from_numpy(np.stack(part)) for part in (pixels, points, visible)))

    def _example(self, place: tuple[int, int, int], side_px: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        source, index, number = place
        sample = self.caches[source][index]
        instance = sample.instances[number]
        box = tuple(float(value) for value in instance.box_xyxy)
        pixels, points_K2, visible_K = crop_example(sample.image_HW3, box, instance.keypoints_K3, side_px)  # type: ignore[arg-type]
        spare = self._slots - len(points_K2)
        return pixels, np.pad(points_K2, ((0, spare), (0, 0))), np.pad(visible_K, (0, spare))

    def _index_instances(self) -> dict[str, tuple[str, list[tuple[int, int, int]]]]:
        """Return the keypoint list of each category, and the (source, image, instance) of its usable examples."""
        places: dict[str, tuple[str, list[tuple[int, int, int]]]] = {}
        for source, cache in enumerate(self.caches):
            for index in range(self.lengths[source]):
                for number, (category, skeleton, marked, side_px) in enumerate(cache.summary(index)):
                    known = places.setdefault(category, (skeleton, []))
                    if known[0] != skeleton:
                        raise ValueError(
                            f"category {category!r} has the lists {known[0]!r} and {skeleton!r}; one is allowed"
                        )
                    few = marked < min(LEAST_MARKED, len(load_skeleton(skeleton).keypoints))
                    if not few and side_px >= LEAST_EXAMPLE_PX:
                        known[1].append((source, index, number))
        return {category: entry for category, entry in places.items() if entry[1]}


def stack_images(samples: Sequence[Sample]) -> Tensor:
    """Stack images of one size as [B, H, W, 3] uint8."""
    return torch.from_numpy(np.stack([sample.image_HW3 for sample in samples]))


def normalise(images_BHW3: Tensor) -> Tensor:
    """Convert uint8 [B, H, W, 3] to the network's [B, 3, H, W] float32, on the device of the images."""
    mean, std = (
        torch.tensor(values, device=images_BHW3.device).view(3, 1, 1) for values in (PIXEL_MEAN_255, PIXEL_STD_255)
    )
    return (images_BHW3.permute(0, 3, 1, 2).float() - mean) / std
