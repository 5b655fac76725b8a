"""The encoder. In each layer, image and text attend to each other, then text to itself, then the image around itself.

Shape suffixes: B batch, N image tokens, C classes, D channels, L levels, M heads, P points, S tokens sampled.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from engines.kernels import ms_deform_attn
from engines.xpose.config import XPoseConfig
from engines.xpose.geometry import Geometry
from engines.xpose.layers import Attention, DropPath, LayerNorm, Linear, to_dtype


class Encoded(NamedTuple):
    """An encoded image and its encoded prompts."""

    memory_BND: Tensor
    text_BCD: Tensor
    object_valid_BC: Tensor | None  # bool, True for real classes; None: all are real
    geometry: Geometry


class DeformableAttention(nn.Module):
    """Sample a pyramid at a few learned offsets around each reference. Source: Deformable DETR, arXiv:2010.04159."""

    def __init__(self, dim: int, heads: int, levels: int, points: int) -> None:
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        self.sampling_offsets = Linear(dim, heads * levels * points * 2)
        self.attention_weights = Linear(dim, heads * levels * points)
        self.value_proj = Linear(dim, dim)
        self.output_proj = Linear(dim, dim)

    def values(self, memory_BND: Tensor, padding_BN: Tensor | None) -> Tensor:
        """Project the pyramid to values [B, S, M, D / M]; they are zero on padding."""
        value_BSD = self.value_proj(memory_BND)
        if padding_BN is not None:
            value_BSD = value_BSD.masked_fill(padding_BN[..., None], 0.0)
        return torch.unflatten(value_BSD, -1, (self.heads, -1))

    def forward(
        self, query_BQD: Tensor, reference_BQLR: Tensor, value_BSMD: Tensor, sizes: Sequence[tuple[int, int]]
    ) -> Tensor:
        """Return [B, Q, D]; `reference_BQLR` as in `engines.kernels.ms_deform_attn`."""
        nesting = (self.heads, self.levels, self.points)
        offsets_BQMLP2 = torch.unflatten(self.sampling_offsets(query_BQD), -1, (*nesting, 2))
        logits_BQMLP = torch.unflatten(self.attention_weights(query_BQD), -1, nesting)
        return self.output_proj(ms_deform_attn(value_BSMD, sizes, reference_BQLR, offsets_BQMLP2, logits_BQMLP))  # type: ignore[no-any-return]


class TwoWayAttention(nn.Module):
    """Attention between image and text in both directions, with one set of scores.

    There are few classes but thousands of image tokens, so the projections of the image are folded into the text. The
    scores are V (Wv_h^T K_h), the update of the image is A (S_h Wo_h^T), and the text sums V before the projection. The
    results are the same, without an image-sized tensor of the attention's width.
    """

    def __init__(self, dim: int, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.v_proj = Linear(dim, width)
        self.l_proj = Linear(dim, width)
        self.values_v_proj = Linear(dim, width)
        self.values_l_proj = Linear(dim, width)
        self.out_v_proj = Linear(width, dim)
        self.out_l_proj = Linear(width, dim)

    def forward(
        self, image_BND: Tensor, text_BCD: Tensor, padding_BN: Tensor | None, object_valid_BC: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the updates that are added to the image [B, N, D] and to the text [B, C, D]."""
        image_BND = to_dtype(image_BND, self.v_proj.weight.dtype)
        key_BMCE = self._split(self.l_proj(text_BCD))  # E = width / heads
        value_BMCE = self._split(self.values_l_proj(text_BCD))
        scale = 1 / math.sqrt(key_BMCE.shape[-1])
        # [B, M, C, D] and [B, M, C]
        fold_BMCD = key_BMCE @ torch.unflatten(self.v_proj.weight, 0, (self.heads, -1)) * scale
        constant_BMC = (key_BMCE @ torch.unflatten(self.v_proj.bias, 0, (self.heads, -1))[..., None])[..., 0] * scale
        scores_BMCN = fold_BMCD @ image_BND[:, None].transpose(-1, -2) + constant_BMC[..., None]
        return (
            self._update_image(scores_BMCN, value_BMCE, object_valid_BC),
            self._update_text(scores_BMCN, image_BND, padding_BN),
        )

    def _update_image(self, scores_BMCN: Tensor, value_BMCE: Tensor, object_valid_BC: Tensor | None) -> Tensor:
        if object_valid_BC is not None:
            scores_BMCN = scores_BMCN.masked_fill(~object_valid_BC[:, None, :, None], -math.inf)
        share_BMCN = scores_BMCN.softmax(2)
        weight_MED = torch.unflatten(self.out_v_proj.weight.t(), 0, (self.heads, -1))
        out_BMCD = value_BMCE @ weight_MED
        return share_BMCN.flatten(1, 2).transpose(1, 2) @ out_BMCD.flatten(1, 2) + self.out_v_proj.bias

    def _update_text(self, scores_BMCN: Tensor, image_BND: Tensor, padding_BN: Tensor | None) -> Tensor:
        if padding_BN is not None:
            scores_BMCN = scores_BMCN.masked_fill(padding_BN[:, None, None], -math.inf)
        share_BMCN = scores_BMCN.softmax(3)
        gathered_BMCD = share_BMCN @ image_BND[:, None]
        weight_MDE = torch.unflatten(self.values_v_proj.weight, 0, (self.heads, -1)).transpose(1, 2)
        mixed_BMCE = gathered_BMCD @ weight_MDE + torch.unflatten(self.values_v_proj.bias, 0, (self.heads, 1, -1))
        return self.out_l_proj(mixed_BMCE.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def _split(self, x_BCE: Tensor) -> Tensor:
        return torch.unflatten(x_BCE, -1, (self.heads, -1)).transpose(1, 2)


class FusionLayer(nn.Module):
    """Two-way attention, pre-norm. The residual is the normalised stream, as in the released network."""

    def __init__(self, config: XPoseConfig) -> None:
        super().__init__()
        dim = config.hidden_dim
        self.layer_norm_v = LayerNorm(dim)
        self.layer_norm_l = LayerNorm(dim)
        self.attn = TwoWayAttention(dim, config.fusion_dim, config.fusion_heads)
        self.gamma_v = nn.Parameter(torch.empty(dim))
        self.gamma_l = nn.Parameter(torch.empty(dim))
        self.drop_path = DropPath(config.fusion_drop_path)

    def forward(
        self, image_BND: Tensor, text_BCD: Tensor, padding_BN: Tensor | None, object_valid_BC: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the updated image and text."""
        image_BND, text_BCD = self.layer_norm_v(image_BND), self.layer_norm_l(text_BCD)
        to_image_BND, to_text_BCD = self.attn(image_BND, text_BCD, padding_BN, object_valid_BC)
        image_BND = image_BND + self.drop_path(self.gamma_v * to_image_BND)
        return image_BND, text_BCD + self.drop_path(self.gamma_l * to_text_BCD)


class TextLayer(nn.Module):
    """Self-attention in which each class attends only to itself, then a feed-forward; post-norm."""

    def __init__(self, config: XPoseConfig) -> None:
        super().__init__()
        dim = config.hidden_dim
        self.self_attn = Attention(dim, config.text_heads)
        self.norm1 = LayerNorm(dim)
        self.linear1 = Linear(dim, config.text_feedforward)
        self.linear2 = Linear(config.text_feedforward, dim)
        self.norm2 = LayerNorm(dim)

    def forward(self, text_BCD: Tensor) -> Tensor:
        """[B, C, D] -> [B, C, D]."""
        text_BCD = self.norm1(text_BCD + self.self_attn.attend_to_itself(text_BCD))
        return self.norm2(text_BCD + self.linear2(self.linear1(text_BCD).relu_()))  # type: ignore[no-any-return]


class ImageLayer(nn.Module):
    """Deformable attention of each image token, then a feed-forward; post-norm."""

    def __init__(self, config: XPoseConfig) -> None:
        super().__init__()
        dim = config.hidden_dim
        self.self_attn = DeformableAttention(dim, config.heads, config.levels, config.points)
        self.norm1 = LayerNorm(dim)
        self.linear1 = Linear(dim, config.feedforward)
        self.linear2 = Linear(config.feedforward, dim)
        self.norm2 = LayerNorm(dim)

    def forward(self, image_BND: Tensor, position_BND: Tensor, geometry: Geometry) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        value_BSMD = self.self_attn.values(image_BND, geometry.padding_BN)
        reference_BNL2 = geometry.reference_BNL2.expand(image_BND.shape[0], -1, -1, -1)
        sampled_BND = self.self_attn(image_BND + position_BND, reference_BNL2, value_BSMD, geometry.sizes)
        image_BND = self.norm1(image_BND + sampled_BND)
        return self.norm2(image_BND + self.linear2(self.linear1(image_BND).relu_()))  # type: ignore[no-any-return]


class Encoder(nn.Module):
    """Layers of fusion, text layer and image layer."""

    def __init__(self, config: XPoseConfig) -> None:
        super().__init__()
        layers = range(config.encoder_layers)
        self.layers = nn.ModuleList(ImageLayer(config) for _ in layers)
        self.text_layers = nn.ModuleList(TextLayer(config) for _ in layers)
        self.fusion_layers = nn.ModuleList(FusionLayer(config) for _ in layers)

    def forward(
        self,
        image_BND: Tensor,
        position_BND: Tensor,
        text_BCD: Tensor,
        object_valid_BC: Tensor | None,
        geometry: Geometry,
    ) -> Encoded:
        """Encode image tokens and classes. Positions are added to the queries of the image, never to its values."""
        for fusion, text_layer, image_layer in zip(self.fusion_layers, self.text_layers, self.layers, strict=True):
            image_BND, text_BCD = fusion(image_BND, text_BCD, geometry.padding_BN, object_valid_BC)
            text_BCD = text_layer(text_BCD)
            image_BND = image_layer(image_BND, position_BND, geometry)
        return Encoded(image_BND, text_BCD, object_valid_BC, geometry)
