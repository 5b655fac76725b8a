"""Synthetic scenes as training samples: the generator of `pipeline.synthetic`, its labels in our schema."""

from collections.abc import Iterator

import numpy as np

from pipeline.synthetic import CATEGORIES, Scene, SceneConfig, render_scene
from training.data.sample import Instance, Sample


def read_synthetic(config: SceneConfig, first_seed: int, count: int) -> Iterator[Sample]:
    """Yield `count` scenes, one per seed from `first_seed` on; training and test sets take disjoint ranges."""
    for seed in range(first_seed, first_seed + count):
        yield sample_from_scene(render_scene(seed, config), str(seed))


def sample_from_scene(scene: Scene, image_id: str) -> Sample:
    """Label a scene; a hidden keypoint is labelled (v = 1), one outside the picture is not (v = 0)."""
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
