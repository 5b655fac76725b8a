"""Prompts of a training step: words, examples or the mean of both, chosen at random per image.

Legend: B images, C classes, K keypoint slots, M modalities (text, visual, mean), N examples of a class, D channels.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from engines.clip import Clip, tokenize
from engines.prompts import average_keypoints, keypoint_text, object_text
from engines.skeletons import load_skeleton
from engines.xpose import XPose
from engines.xpose.model import Prompts
from training.data.stream import Examples
from training.targets import Offer, keypoint_tables

MODALITIES = ("text", "visual", "mean")


class StepPrompts:
    """The vectors of the offered classes, encoded once per step for all images.

    Args:
        examples: examples of each offered class; None uses text only.
    """

    def __init__(self, model: XPose, clip: Clip, offer: Offer, examples: Sequence[Examples] | None) -> None:
        self.offer = offer
        slots = max(len(skeleton.keypoints) for skeleton in offer.skeletons)
        _, self.keypoint_valid_CK = keypoint_tables(offer.skeletons, slots)
        self.names_CK, self.names = _name_table(offer, slots)
        objects_C512, keypoints_CK512 = _encode_text(clip, offer, self.names_CK, self.names)
        objects, keypoints = [objects_C512], [keypoints_CK512]
        self.marked_CK = self.keypoint_valid_CK
        if examples is not None:
            seen_C512, points_CK512, self.marked_CK = _encode_examples(model, clip, examples, slots)
            objects += [seen_C512, (objects_C512 + seen_C512) / 2]
            keypoints += [points_CK512, (keypoints_CK512 + points_CK512) / 2]
        self.by_modality = model.encode_prompts(torch.stack(objects), torch.stack(keypoints))

    def of_images(self, modality_B: Tensor) -> Prompts:
        """Select the modality and the offered classes of each image."""
        shared = self.by_modality
        valid_BCK = self.keypoint_valid_CK.expand(len(modality_B), -1, -1)
        return Prompts(
            text_BCD=shared.text_BCD[modality_B],
            object_valid_BC=self.offer.object_valid_BC,
            keypoints_BCKD=shared.keypoints_BCKD[modality_B],
            keypoint_offsets_BCK2=shared.keypoint_offsets_BCK2[modality_B],
            keypoint_sizes_K2=shared.keypoint_sizes_K2,
            keypoint_valid_BCK=valid_BCK,
        )


def spread_words(model: XPose, clip: Clip, vocabulary: Mapping[str, str], steps: int, seed: int) -> float:
    """Train a new text tower to separate the words of the vocabulary, before it sees an image.

    An untrained tower gives all short sentences nearly the same vector (cosine 0.95 between keypoints), and the image
    losses need hundreds of steps to change that. Here the target of each projected vector is a random vector of unit
    variance.

    Returns:
        The mean squared error of the last step.
    """
    names = [keypoint_text(name) for name in dict.fromkeys(_keypoint_names(vocabulary))]
    tokens = tokenize([*(object_text(name) for name in vocabulary), *names])
    goal_NC = torch.randn(len(tokens), model.config.hidden_dim, generator=torch.Generator().manual_seed(seed))
    parts = (clip, model.projection, model.projection_kpt)
    optimiser = torch.optim.Adam([parameter for part in parts for parameter in part.parameters()], lr=2e-3)
    error = torch.zeros(())
    for _ in range(steps):
        vectors = clip.encode_text(tokens)
        classes, points = vectors[: len(vocabulary)], vectors[len(vocabulary) :]
        projected = torch.cat([model.projection(classes), model.projection_kpt(points)])
        error = (projected - goal_NC).square().mean()
        optimiser.zero_grad(set_to_none=True)
        error.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return float(error.detach())


def _keypoint_names(vocabulary: Mapping[str, str]) -> list[str]:
    return [name for skeleton in vocabulary.values() for name in load_skeleton(skeleton).keypoints]


def draw_modality(count: int, weights: Sequence[float], rng: np.random.Generator) -> Tensor:
    """Draw an index into `MODALITIES` for each image: int64 [B]."""
    share = np.asarray(weights, np.float64)
    return torch.from_numpy(rng.choice(len(MODALITIES), size=count, p=share / share.sum()))


def _name_table(offer: Offer, slots: int) -> tuple[Tensor, tuple[str, ...]]:
    """Return the index of the keypoint name of each slot, [C, K] int64 (0 for spare slots), and the names."""
    names = tuple(dict.fromkeys(name for skeleton in offer.skeletons for name in skeleton.keypoints))
    rows = {name: row for row, name in enumerate(names)}
    table_CK = torch.zeros(len(offer.skeletons), slots, dtype=torch.int64)
    for c, skeleton in enumerate(offer.skeletons):
        table_CK[c, : len(skeleton.keypoints)] = torch.tensor([rows[name] for name in skeleton.keypoints])
    return table_CK, names


def _encode_text(clip: Clip, offer: Offer, names_CK: Tensor, names: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    texts = [*(object_text(name) for name in offer.names), *(keypoint_text(name) for name in names)]
    vectors = clip.encode_text(tokenize(texts))
    return vectors[: len(offer.names)], vectors[len(offer.names) :][names_CK]


def _encode_examples(
    model: XPose, clip: Clip, examples: Sequence[Examples], slots: int
) -> tuple[Tensor, Tensor, Tensor]:
    pixels, points, visible = (
        torch.cat([getattr(example, key) for example in examples])
        for key in ("pixels_N3SS", "points_NK2", "visible_NK")
    )
    points, visible = points[:, :slots], visible[:, :slots]
    objects, keypoints = clip.encode_visual_prompt(pixels, points, visible, model.pos_proj, model.padding.weight)
    counts = [len(example.pixels_N3SS) for example in examples]
    objects_C512 = torch.stack([part.mean(0) for part in torch.split(objects, counts)])
    parts = zip(torch.split(keypoints, counts), torch.split(visible, counts), strict=True)
    keypoints_CK512 = torch.stack([average_keypoints(part, seen) for part, seen in parts])
    return objects_C512, keypoints_CK512, torch.stack([part.any(0) for part in torch.split(visible, counts)])
