"""Reads the goldens: inputs and outputs of the original model, and its selections, to be forced on ours."""

import functools
import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from engines.checkpoint import load_official
from engines.xpose import XPose, XPoseConfig
from tests.engines.fill import filled, key_table
from tests.support import need_shared

MEAN = torch.tensor([0.485, 0.456, 0.406])
STD = torch.tensor([0.229, 0.224, 0.225])


@dataclass(frozen=True)
class GoldenImage:
    """One image of a case."""

    pixels_3HW: Tensor
    arrays: dict[str, np.ndarray]  # without their `bI.` prefix

    def tensor(self, name: str) -> Tensor:
        """Return a recorded array."""
        return torch.from_numpy(self.arrays[name])


@dataclass(frozen=True)
class GoldenCase:
    """A batch that the original model saw."""

    weight_seed: int
    images: tuple[GoldenImage, ...]

    def inputs(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Arguments of `XPose.forward`: padded to the largest image and the longest lists, with masks if uneven."""
        if len(self.images) == 1:
            only = self.images[0]
            return {
                "pixels_B3HW": only.pixels_3HW[None].to(dtype),
                "objects_BC512": only.tensor("obj_text")[None].to(dtype),
                "keypoints": only.tensor("kpt_text")[None].to(dtype),
            }
        pixels, padding = _padded([image.pixels_3HW for image in self.images], (1, 2))
        objects, object_missing = _padded([image.tensor("obj_text") for image in self.images], (0,))
        keypoints, keypoint_missing = _padded([image.tensor("kpt_text") for image in self.images], (0,))
        return {
            "pixels_B3HW": pixels.to(dtype),
            "objects_BC512": objects.to(dtype),
            "keypoints": keypoints.to(dtype),
            "padding_BHW": padding[:, 0],
            "object_valid_BC": ~object_missing[..., 0],
            "keypoint_valid": ~keypoint_missing[..., 0],
        }


def _padded(tensors: list[Tensor], axes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    shape = [max(tensor.shape[axis] for tensor in tensors) for axis in range(tensors[0].dim())]
    filled_up = torch.zeros((len(tensors), *shape))
    missing = torch.ones((len(tensors), *shape), dtype=torch.bool)
    for index, tensor in enumerate(tensors):
        place: tuple[int | slice, ...] = (index, *(slice(0, side) for side in tensor.shape))
        filled_up[place] = tensor
        missing[place] = False
    assert all(
        tensor.shape[axis] == shape[axis] for tensor in tensors for axis in range(len(shape)) if axis not in axes
    )
    return filled_up, missing


SHIPPED = Path(__file__).with_name("golden_small") / "case0.npz"
"""The final outputs of case 0, in the repository."""


def golden_case(number: int) -> GoldenCase:
    """Load one case with everything that was recorded; the test skips where the shared data is absent."""
    return load_case(need_shared(f"golden/case{number}.npz"))


@functools.cache
def load_case(path: Path) -> GoldenCase:
    """Load a case from its file."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    info = json.loads(arrays["info"].tobytes())
    images = []
    for index in range(info["B"]):
        prefix = f"b{index}."
        own = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
        picture = torch.from_numpy(np.array(Image.open(io.BytesIO(own.pop("png").tobytes())).convert("RGB")))
        pixels_HW3 = (picture.float() / 255 - MEAN) / STD
        images.append(GoldenImage(pixels_HW3.permute(2, 0, 1).contiguous(), own))
    return GoldenCase(info["weight_seed"], tuple(images))


@functools.cache
def official_state(seed: int) -> dict[str, Tensor]:
    """All official keys but the CLIP text tower, as the released checkpoint has them; CLIP's image tower is zeros."""
    state = dict(filled(seed))
    indices = XPose(XPoseConfig.swin_t()).state_dict()
    for key, (shape, dtype, _) in key_table().items():
        if dtype == "int64":
            state[key] = indices[key]
        elif key.startswith("clip_model.visual."):
            state[key] = torch.zeros(()).expand(shape)
    return state


@functools.cache
def golden_network(seed: int, dtype: torch.dtype) -> XPose:
    """Swin-T under the goldens' weights."""
    model = XPose(XPoseConfig.swin_t()).eval()
    load_official(model, official_state(seed))
    return model.to(dtype).requires_grad_(requires_grad=False)


def force_selections(monkeypatch: pytest.MonkeyPatch, case: GoldenCase) -> list[Tensor]:
    """Replace the selection by the original's; return the list that its scores are appended to."""
    scores: list[Tensor] = []

    def original_selection(scores_BQ: Tensor, count: int) -> Tensor:
        name = ("top900", "top50")[len(scores) % 2]
        scores.append(scores_BQ)
        index_BG = torch.stack([image.tensor(name).long() for image in case.images])
        assert index_BG.shape[1] == count
        return index_BG

    monkeypatch.setattr("engines.xpose.model.top_queries", original_selection)
    return scores
