"""The decoder: queries attend to each other, to the classes and to the image, and refine their boxes.

Shape suffixes: B batch, Q queries, N image tokens, S the same as sampled, C classes, D channels, L levels, M heads,
T tokens of a group. References are (centre x, centre y, width, height) as fractions of the unpadded image.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from engines.xpose.config import XPoseConfig
from engines.xpose.encoder import DeformableAttention, Encoded
from engines.xpose.layers import Attention, LayerNorm, Linear, Mlp, geometry_dtype, sine_code, to_dtype

QUERY_TEMPERATURE = 10000.0
TABLE_KEYPOINTS = 17  # the first table holds the 17 keypoints of COCO, the second table the rest


class Groups(NamedTuple):
    """Queries after the expansion. Each group is one box token followed by its keypoint tokens."""

    x_BGTD: Tensor
    reference_BGT4: Tensor
    class_BG: Tensor  # int64: the class whose keypoints the group looks for
    valid_BGT: Tensor | None  # bool, True for the box and for real keypoints; None: all are real

    def attention_mask(self) -> Tensor | None:
        """Mask [B * G, 1, 1, T]: True for tokens to which the others of their group may attend."""
        return None if self.valid_BGT is None else self.valid_BGT.flatten(0, 1)[:, None, None]


class DecoderLayer(nn.Module):
    """Self-attention, text attention, deformable attention, feed-forward; post-norm."""

    def __init__(self, config: XPoseConfig) -> None:
        super().__init__()
        dim = config.hidden_dim
        self.cross_attn = DeformableAttention(dim, config.heads, config.levels, config.points)
        self.norm1 = LayerNorm(dim)
        self.ca_text = Attention(dim, config.heads)
        self.catext_norm = LayerNorm(dim)
        self.self_attn = Attention(dim, config.heads)
        self.norm2 = LayerNorm(dim)
        self.linear1 = Linear(dim, config.feedforward)
        self.linear2 = Linear(config.feedforward, dim)
        self.norm3 = LayerNorm(dim)

    def forward(
        self,
        x_BQD: Tensor,
        position_BQD: Tensor,
        reference_BQL4: Tensor,
        value_BSMD: Tensor,
        encoded: Encoded,
        attention_mask: Tensor | None = None,
        groups: int = 1,
    ) -> Tensor:
        """Return [B, Q, D].

        Args:
            x_BQD: contents of the queries. With `groups` > 1 they are runs of Q / groups queries; each run attends only
                to itself.
            position_BQD: position codes of their references, added to queries and keys.
            reference_BQL4: references times the valid ratio of each level.
            value_BSMD: this layer's projection of the memory.
            encoded: text and sizes of the levels.
            attention_mask: True where a query may attend to another; broadcasts to [B * groups, heads, q, q].
            groups: number of runs.
        """
        batch = x_BQD.shape[0]
        placed, content = (torch.unflatten(t, 1, (groups, -1)).flatten(0, 1) for t in (x_BQD + position_BQD, x_BQD))
        attended = self.self_attn(placed, placed, content, attention_mask)
        x_BQD = self.norm2(x_BQD + torch.unflatten(attended, 0, (batch, groups)).flatten(1, 2))
        valid = encoded.object_valid_BC
        text_mask = None if valid is None else valid[:, None, None]
        text_BCD = encoded.text_BCD
        x_BQD = self.catext_norm(x_BQD + self.ca_text(x_BQD + position_BQD, text_BCD, text_BCD, text_mask))
        sampled = self.cross_attn(x_BQD + position_BQD, reference_BQL4, value_BSMD, encoded.geometry.sizes)
        x_BQD = self.norm1(x_BQD + sampled)
        return self.norm3(x_BQD + self.linear2(self.linear1(x_BQD).relu_()))  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """The layers, the position code of their references, and the initial sizes of keypoints."""

    def __init__(self, config: XPoseConfig) -> None:
        super().__init__()
        dim = config.hidden_dim
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.norm = LayerNorm(dim)
        self.ref_point_head = Mlp(2 * dim, dim, dim, layers=2)
        self.hw = nn.Embedding(TABLE_KEYPOINTS, 2)
        self.hw_append = nn.Embedding(config.max_keypoints - TABLE_KEYPOINTS, 2)

    def values(self, encoded: Encoded) -> list[Tensor]:
        """Project the memory for every layer: [B, S, M, D / M] each."""
        padding_BN = encoded.geometry.padding_BN
        return [layer.cross_attn.values(encoded.memory_BND, padding_BN) for layer in self.layers]  # type: ignore[call-arg, operator]

    def run_layer(
        self,
        index: int,
        x_BQD: Tensor,
        reference_BQ4: Tensor,
        value_BSMD: Tensor,
        encoded: Encoded,
        attention_mask: Tensor | None = None,
        groups: int = 1,
    ) -> Tensor:
        """Compute the position code of the references and run layer `index`; see `DecoderLayer.forward`."""
        ratio_BL4 = encoded.geometry.valid_ratio_BL2.repeat(1, 1, 2)
        reference_BQL4 = reference_BQ4[:, :, None] * ratio_BL4[:, None]
        position_BQD = self.ref_point_head(self.code_references(reference_BQL4[:, :, 0]))
        layer = self.layers[index]
        return layer(x_BQD, position_BQD, reference_BQL4, value_BSMD, encoded, attention_mask, groups)  # type: ignore[no-any-return]

    def code_references(self, reference_BQ4: Tensor) -> Tensor:
        """Return the sine code [B, Q, 2 D] in the order centre y, centre x, width, height."""
        channels = self.norm.normalized_shape[0] // 2
        x, y, width, height = (reference_BQ4 * (2 * math.pi)).unbind(-1)
        codes = [sine_code(angle, channels, QUERY_TEMPERATURE) for angle in (y, x, width, height)]
        return torch.cat(codes, dim=-1)

    def keypoint_sizes(self, keypoints: int) -> Tensor:
        """Return the initial width and height of each keypoint slot, as fractions of its box: [K, 2]."""
        table = torch.cat((self.hw.weight, self.hw_append.weight))[:keypoints]
        return to_dtype(table, geometry_dtype(table.dtype)).sigmoid()
