"""Synthetic scenes of `pipeline.synthetic` as training samples."""

from collections.abc import Iterator
from functools import partial
from multiprocessing import get_context

import cv2
import numpy as np

from pipeline.synthetic import CATEGORIES, Scene, SceneConfig, render_scene
from training.data.sample import Instance, Sample


def read_synthetic(config: SceneConfig, first_seed: int, count: int, workers: int = 0) -> Iterator[Sample]:
    """Yield `count` scenes, one per seed, starting with `first_seed`. Training and test sets use disjoint ranges.

    Args:
        workers: number of processes that render; 0 renders in this process.
    """
    seeds, render = range(first_seed, first_seed + count), partial(_render, config)
    if not workers:
        yield from map(render, seeds)
        return
    with get_context("spawn").Pool(workers, cv2.setNumThreads, (1,)) as pool:
        yield from pool.imap(render, seeds, chunksize=16)


def _render(config: SceneConfig, seed: int) -> Sample:
    return sample_from_scene(render_scene(seed, config), str(seed))


def sample_from_scene(scene: Scene, image_id: str) -> Sample:
    """Label a scene. Hidden keypoints are labelled (v = 1), keypoints outside the picture are not (v = 0)."""
    instances = tuple(
        Instance(
            found.category,
            CATEGORIES[found.category],
            np.asarray(found.box_xyxy, np.float32),
            np.concatenate([found.keypoints_K2, found.visible_K[:, None]], axis=1).astype(np.float32),
            float(found.area),
        )
        for found in scene.instances
        if (found.visible_K > 0).any()
    )
    return Sample(scene.rgb_HW3, instances, "synthetic", image_id)
