"""Swin, the backbone: windowed attention in four stages.

Shape suffixes: B batch, H height, W width, C channels, N windows, T tokens of a window, M heads.

Source: Swin Transformer, arXiv:2103.14030; sizes, padding and masks as in the released X-Pose.
"""

from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from engines.kernels import cpu
from engines.xpose.config import XPoseConfig
from engines.xpose.layers import Conv2d, DropPath, LayerNorm, Linear, to_dtype

PATCH = 4  # pixels
OTHER_REGION = -100.0  # added to the scores of pairs from distant regions, which the roll has put into one window


def relative_position_index(window: int) -> Tensor:
    """Return the row of the bias table for each (query, key) of a window: [T, T] int64."""
    rows, columns = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    rows_T, columns_T = rows.flatten(), columns.flatten()
    down = rows_T[:, None] - rows_T[None, :] + window - 1
    right = columns_T[:, None] - columns_T[None, :] + window - 1
    return down * (2 * window - 1) + right


def _region_mask(height: int, width: int, window: int, device: torch.device) -> Tensor:
    shift = window // 2

    def regions(length: int) -> Tensor:
        place = torch.arange(length, device=device)
        return (place >= length - window).long() + (place >= length - shift).long()

    region_HW = 3 * regions(height)[:, None] + regions(width)[None, :]
    region_NT = to_windows(region_HW[None, :, :, None], window)[..., 0]
    return (region_NT[:, :, None] != region_NT[:, None, :]) * OTHER_REGION


@lru_cache(maxsize=16)
def _kept_region_mask(height: int, width: int, window: int, device: torch.device) -> Tensor:
    with torch.inference_mode(mode=False):
        return _region_mask(height, width, window, device)


def region_mask(height: int, width: int, window: int, device: torch.device) -> Tensor:
    """Return the mask that is added to the scores of shifted windows, [N, T, T] float32. It is cached per size."""
    if torch.compiler.is_compiling():
        return _region_mask(height, width, window, device)
    return _kept_region_mask(height, width, window, device)


def to_windows(x_BHWC: Tensor, window: int) -> Tensor:
    """Split into windows, row-major: [B, H, W, C] -> [B * N, T, C]; H and W are multiples of `window`."""
    batch, height, width, channels = x_BHWC.shape
    x = x_BHWC.reshape(batch, height // window, window, width // window, window, channels)
    return x.transpose(2, 3).reshape(-1, window * window, channels)


def from_windows(x_NTC: Tensor, window: int, height: int, width: int) -> Tensor:
    """Undo `to_windows`."""
    x = x_NTC.reshape(-1, height // window, width // window, window, window, x_NTC.shape[-1])
    return x.transpose(2, 3).reshape(-1, height, width, x_NTC.shape[-1])


def pad_to_multiple(x_BHWC: Tensor, multiple: int) -> Tensor:
    """Add zeros on the right and at the bottom."""
    down, right = -x_BHWC.shape[1] % multiple, -x_BHWC.shape[2] % multiple
    return functional.pad(x_BHWC, (0, 0, 0, right, 0, down)) if down or right else x_BHWC


class WindowAttention(nn.Module):
    """Attention inside windows, with a learned bias per relative position."""

    relative_position_index: Tensor

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        self.register_buffer("relative_position_index", relative_position_index(window))
        self.qkv = Linear(dim, 3 * dim)
        self.proj = Linear(dim, dim)

    def forward(self, x_BHWC: Tensor, shift: int) -> Tensor:
        """[B, H, W, C] -> [B, H, W, C]. Windows move right and down by `shift` tokens and wrap around the edges."""
        _, height, width, channels = x_BHWC.shape
        if cpu.window_attention_available(self.qkv.weight, channels // self.heads, self.window):
            return self.proj(cpu.window_attention(self.qkv(x_BHWC), self._bias(), shift))  # type: ignore[no-any-return]
        mask = None
        if shift:
            x_BHWC = torch.roll(x_BHWC, (-shift, -shift), (1, 2))
            mask = region_mask(height, width, self.window, x_BHWC.device)
        y_BHWC = from_windows(self._attend(to_windows(x_BHWC, self.window), mask), self.window, height, width)
        return torch.roll(y_BHWC, (shift, shift), (1, 2)) if shift else y_BHWC

    def _attend(self, x_NTC: Tensor, region_mask_NTT: Tensor | None) -> Tensor:
        query, key, value = torch.unflatten(self.qkv(x_NTC), -1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        bias_NMTT = self._bias()[None]
        if region_mask_NTT is not None:
            bias_NMTT = bias_NMTT + to_dtype(region_mask_NTT, bias_NMTT.dtype)[:, None]
            bias_NMTT = bias_NMTT.repeat(x_NTC.shape[0] // region_mask_NTT.shape[0], 1, 1, 1)
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=to_dtype(bias_NMTT, query.dtype))
        return self.proj(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def _bias(self) -> Tensor:
        """Return the bias for the scores of each (query, key) of each head: [M, T, T]."""
        bias_TTM = self.relative_position_bias_table[self.relative_position_index.flatten()]
        return torch.unflatten(bias_TTM, 0, self.relative_position_index.shape).permute(2, 0, 1)


class FeedForward(nn.Module):
    """Two linear maps with an exact GELU between them."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = Linear(dim, 4 * dim)
        self.fc2 = Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] -> [..., C]."""
        return self.fc2(functional.gelu(self.fc1(x)))  # type: ignore[no-any-return]


class SwinBlock(nn.Module):
    """Window attention, then a feed-forward; pre-norm. Every second block shifts its windows by half a window."""

    def __init__(self, dim: int, heads: int, window: int, shift: int, drop_path: float) -> None:
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1 = LayerNorm(dim)
        self.attn = WindowAttention(dim, heads, window)
        self.norm2 = LayerNorm(dim)
        self.mlp = FeedForward(dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """[B, H, W, C] -> [B, H, W, C]."""
        _, height, width, _ = x_BHWC.shape
        y = pad_to_multiple(self.norm1(x_BHWC), self.window)  # after the norm: a padded token takes part
        y = self.attn(y, self.shift)
        x = x_BHWC + self.drop_path(y[:, :height, :width])
        return x + self.drop_path(self.mlp(self.norm2(x)))  # type: ignore[no-any-return]


class PatchMerging(nn.Module):
    """Halve the grid and double the channels."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = LayerNorm(4 * dim)
        self.reduction = Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """[B, H, W, C] -> [B, ceil(H / 2), ceil(W / 2), 2 C]."""
        x = pad_to_multiple(x_BHWC, 2)
        even, odd = slice(0, None, 2), slice(1, None, 2)
        quarters = [x[:, rows, columns] for columns in (even, odd) for rows in (even, odd)]
        return self.reduction(self.norm(torch.cat(quarters, dim=-1)))  # type: ignore[no-any-return]


class PatchEmbedding(nn.Module):
    """Patches of 4 x 4 pixels as tokens."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = Conv2d(3, dim, kernel_size=PATCH, stride=PATCH)
        self.norm = LayerNorm(dim)

    def forward(self, pixels_B3HW: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, ceil(H / 4), ceil(W / 4), C]."""
        down, right = -pixels_B3HW.shape[2] % PATCH, -pixels_B3HW.shape[3] % PATCH
        pixels = functional.pad(pixels_B3HW, (0, right, 0, down)) if down or right else pixels_B3HW
        return self.norm(self.proj(pixels).permute(0, 2, 3, 1))  # type: ignore[no-any-return]


class Stage(nn.Module):
    """The blocks at one stride, and the patch merging before the next stage."""

    def __init__(self, dim: int, depth: int, heads: int, window: int, drop_paths: list[float], merge: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            SwinBlock(dim, heads, window, 0 if index % 2 == 0 else window // 2, drop_paths[index])
            for index in range(depth)
        )
        self.downsample = PatchMerging(dim) if merge else None

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """Run the blocks: [B, H, W, C] -> [B, H, W, C]. The caller does the merging."""
        for block in self.blocks:
            x_BHWC = block(x_BHWC)
        return x_BHWC


class Swin(nn.Module):
    """The backbone: four stages at strides 4, 8, 16 and 32. The outputs of `level_stages` are normed and returned."""

    def __init__(self, config: XPoseConfig) -> None:
        super().__init__()
        self.level_stages = config.level_stages
        self.patch_embed = PatchEmbedding(config.embed_dim)
        total = sum(config.depths)
        rates = [config.drop_path * index / max(total - 1, 1) for index in range(total)]
        stages = []
        for stage, depth in enumerate(config.depths):
            before = sum(config.depths[:stage])
            dim, merge = config.embed_dim * 2**stage, stage < len(config.depths) - 1
            drop_paths = rates[before : before + depth]
            stages.append(Stage(dim, depth, config.num_heads[stage], config.window, drop_paths, merge))
        self.layers = nn.ModuleList(stages)
        for stage in config.level_stages:
            self.add_module(f"norm{stage}", LayerNorm(config.embed_dim * 2**stage))

    def forward(self, pixels_B3HW: Tensor) -> list[Tensor]:
        """Return one map [B, C, H / stride, W / stride] per level stage, fine to coarse."""
        x = self.patch_embed(pixels_B3HW)
        maps = []
        for stage, layer in enumerate(self.layers):
            x = layer(x)
            if stage in self.level_stages:
                maps.append(self.get_submodule(f"norm{stage}")(x).permute(0, 3, 1, 2))
            if layer.downsample is not None:
                x = layer.downsample(x)  # type: ignore[operator]
        return maps
