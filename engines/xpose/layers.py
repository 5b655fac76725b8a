"""The building blocks of the network.

The dtypes of the parameters decide about mixed precision. A linear map or convolution computes in the dtype of its
weight, and a norm in the dtype of its parameters. `geometry_dtype` returns the dtype of references, positions and
locations.

Shape suffixes: B batch, Q queries, S keys, D channels, H height, W width.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

CLAMP = 1e-3  # for the logit, as in the released code: a smaller reference enters the next layer as 0.001


def to_dtype(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Cast only where the dtype differs, so that exported graphs contain no cast without effect."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def to_weight(tensor: Tensor, weight: Tensor) -> Tensor:
    """Cast to the dtype of a weight where it differs. Under autocast the operation casts by itself."""
    return tensor if torch.is_autocast_enabled(tensor.device.type) else to_dtype(tensor, weight.dtype)


def geometry_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of coordinates: float64 in a float64 network, else float32, also in half precision."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def inverse_sigmoid(fraction: Tensor) -> Tensor:
    """Clamped logit: log(max(x, 1e-3) / max(1 - x, 1e-3)) for x clamped to [0, 1]; in [-6.907755, 6.907755]."""
    fraction = fraction.clamp(0, 1)
    return torch.log(fraction.clamp(min=CLAMP) / (1 - fraction).clamp(min=CLAMP))


def sine_code(angles: Tensor, channels: int, temperature: float) -> Tensor:
    """Spread angles (radians) over `channels` sines and cosines, interleaved: [...] -> [..., channels].

    Source: Attention Is All You Need, section 3.5, with the channel pairs side by side.
    """
    pairs = torch.arange(channels // 2, device=angles.device, dtype=torch.float32)  # as in the released code, always
    spread = angles[..., None] / temperature ** (2 * pairs / channels)
    return torch.stack((spread.sin(), spread.cos()), dim=-1).flatten(-2)


class Linear(nn.Linear):
    """A linear map that computes in the dtype of its weight."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        return functional.linear(to_weight(x, self.weight), self.weight, self.bias)


class Conv2d(nn.Conv2d):
    """A convolution that computes in the dtype of its weight."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] -> [B, out, H', W']."""
        return super().forward(to_weight(x, self.weight))


class LayerNorm(nn.LayerNorm):
    """A layer norm whose result has the dtype of its parameters."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        return super().forward(to_dtype(x, self.weight.dtype))


class GroupNorm(nn.GroupNorm):
    """A group norm whose result has the dtype of its parameters."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, D, H, W] -> [B, D, H, W]."""
        return super().forward(to_dtype(x, self.weight.dtype))


class Mlp(nn.Module):
    """Linear maps with ReLU between them, and no ReLU after the last."""

    def __init__(self, inputs: int, hidden: int, outputs: int, layers: int) -> None:
        super().__init__()
        widths = [inputs, *[hidden] * (layers - 1), outputs]
        self.layers = nn.ModuleList(Linear(wide, narrow) for wide, narrow in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs]."""
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        return self.layers[-1](x)  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Multi-head attention under PyTorch's own parameter names."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))  # rows: query, key, value
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = Linear(dim, dim)

    def forward(self, query_BQD: Tensor, key_BSD: Tensor, value_BSD: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return [B, Q, D]; `mask` broadcasts to [B, heads, Q, S] and is True where a query may attend to a key."""
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        query, key, value = (
            self._split(functional.linear(to_weight(source, weight), weight, bias))
            for source, weight, bias in zip((query_BQD, key_BSD, value_BSD), weights, biases, strict=True)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def _split(self, x_BSD: Tensor) -> Tensor:
        return torch.unflatten(x_BSD, -1, (self.heads, -1)).transpose(1, 2)

    def attend_to_itself(self, x_BSD: Tensor) -> Tensor:
        """Attend each token to itself only: the softmax is 1, so queries and keys do not matter."""
        weight, bias = self.in_proj_weight.chunk(3)[2], self.in_proj_bias.chunk(3)[2]
        return self.out_proj(functional.linear(to_weight(x_BSD, weight), weight, bias))  # type: ignore[no-any-return]


class DropPath(nn.Module):
    """In training, drop a residual branch per sample and scale up those that are kept. Source: arXiv:1603.09382."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """[B, ...] -> [B, ...]."""
        if not self.training or self.rate == 0.0:
            return x
        keep = 1.0 - self.rate
        kept = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep)
        return x * (kept / keep)


def circle_of_offsets(heads: int, levels: int, points: int) -> Tensor:
    """Initial sampling offsets: head h samples along the angle 2 pi h / heads, its p-th point p cells away.

    Returns [heads * levels * points * 2], x before y. Source: Deformable DETR, arXiv:2010.04159, appendix A.4.
    """
    angles = torch.arange(heads, dtype=torch.float32) * (2 * math.pi / heads)
    direction_M2 = torch.stack((angles.cos(), angles.sin()), dim=-1)
    direction_M2 = direction_M2 / direction_M2.abs().amax(-1, keepdim=True)
    steps_P = torch.arange(1, points + 1, dtype=torch.float32)
    offsets_MLP2 = direction_M2[:, None, None, :] * steps_P[None, None, :, None].expand(heads, levels, points, 1)
    return offsets_MLP2.flatten()
