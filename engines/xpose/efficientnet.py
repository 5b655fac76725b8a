"""EfficientNet-Lite0: a convolutional backbone for CPUs, made of inverted residual blocks with ReLU6.

It has no batch norms. The import of the published weights (`training.imagenet`) folds them into the convolutions, so
training, inference and exported graphs run the same plain convolutions.

Shape suffixes: B batch, H height, W width, C channels.

Source: EfficientNet, arXiv:1905.11946; the Lite variant of TensorFlow's `tpu` repository (no squeeze-and-excitation,
ReLU6 in place of swish, first convolution not scaled).
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from engines.xpose.layers import Conv2d


class StageSize(NamedTuple):
    """Blocks of one width."""

    blocks: int
    kernel: int
    stride: int  # stride of the first block
    expansion: int
    width: int


STEM_WIDTH = 32
STAGES = (
    StageSize(1, 3, 1, 1, 16),
    StageSize(2, 3, 2, 6, 24),
    StageSize(2, 5, 2, 6, 40),
    StageSize(3, 3, 2, 6, 80),
    StageSize(3, 5, 1, 6, 112),
    StageSize(4, 5, 2, 6, 192),
    StageSize(1, 3, 1, 6, 320),
)
LEVEL_STAGES = (2, 4, 6)
LEVEL_WIDTHS = tuple(STAGES[stage].width for stage in LEVEL_STAGES)
"""Channels of the returned maps, at strides 8, 16 and 32."""


def _convolution(into: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> Conv2d:
    convolution = Conv2d(into, out, kernel, stride=stride, padding=kernel // 2, groups=groups)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_in", nonlinearity="relu")
    assert convolution.bias is not None
    nn.init.zeros_(convolution.bias)
    return convolution


class InvertedResidual(nn.Module):
    """An inverted residual block: expand, depthwise convolution, project. Adds its input where the size is the same."""

    def __init__(self, into: int, out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = into * expansion
        self.expand = _convolution(into, wide, 1) if expansion > 1 else None
        self.depthwise = _convolution(wide, wide, kernel, stride, groups=wide)
        self.project = _convolution(wide, out, 1)
        self.residual = stride == 1 and into == out

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', ceil(H / stride), ceil(W / stride)]."""
        wide_BCHW = x_BCHW if self.expand is None else functional.relu6(self.expand(x_BCHW))
        y: Tensor = self.project(functional.relu6(self._filter(wide_BCHW)))
        return x_BCHW + y if self.residual else y

    def _filter(self, y_BCHW: Tensor) -> Tensor:
        """Apply the depthwise convolution, under autocast in float32: its bf16 backward is much slower on CPUs."""
        if not torch.is_autocast_enabled(y_BCHW.device.type):
            return self.depthwise(y_BCHW)  # type: ignore[no-any-return]
        with torch.autocast(y_BCHW.device.type, enabled=False):
            return self.depthwise(y_BCHW.float())  # type: ignore[no-any-return]


class EfficientNetLite0(nn.Module):
    """The backbone without its classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _convolution(3, STEM_WIDTH, 3, stride=2)
        self.stages = nn.ModuleList()
        into = STEM_WIDTH
        for size in STAGES:
            blocks = []
            for index in range(size.blocks):
                stride = size.stride if index == 0 else 1
                blocks.append(InvertedResidual(into, size.width, size.kernel, stride, size.expansion))
                into = size.width
            self.stages.append(nn.Sequential(*blocks))

    def forward(self, pixels_B3HW: Tensor) -> list[Tensor]:
        """Return maps [B, C, H / stride, W / stride] at strides 8, 16 and 32, sizes rounded up."""
        x = functional.relu6(self.stem(pixels_B3HW))
        maps = []
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if index in LEVEL_STAGES:
                maps.append(x)
        return maps
