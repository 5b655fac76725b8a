"""X-Pose: the boxes and keypoints of all objects that match its prompts.

`forward` calls these public methods in turn. Training combines them in its own way:

    encode_prompts → encode → select_queries → decoder layers → expand → decoder layers → predict

Shape suffixes: B batch, H height, W width, C classes, K keypoints of a class, D channels, N image tokens, Q queries,
G groups (boxes with their keypoints), T = 1 + K tokens of a group.

Source: X-Pose, ECCV 2024 (arXiv:2310.08530).
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from engines.xpose.checks import check_inputs
from engines.xpose.config import XPoseConfig
from engines.xpose.decoder import Decoder, Groups
from engines.xpose.efficientnet import EfficientNetLite0
from engines.xpose.encoder import Encoded, Encoder
from engines.xpose.geometry import pyramid_geometry
from engines.xpose.initialise import initialise_backbone, initialise_heads, initialise_neck, initialise_transformer
from engines.xpose.layers import Conv2d, GroupNorm, LayerNorm, Linear, Mlp, geometry_dtype, inverse_sigmoid, to_dtype
from engines.xpose.selection import class_logits, gather_queries, top_queries
from engines.xpose.swin import Swin

NORM_GROUPS = 32


class XPoseOutput(NamedTuple):
    """One row per group; coordinates are fractions of the unpadded image."""

    boxes_BG4: Tensor  # centre x, centre y, width, height
    logits_BGC: Tensor  # raw; -inf for invalid classes
    class_BG: Tensor  # int64: the class whose keypoints were looked for
    keypoints_BGK2: Tensor  # x, y; undefined where that class has no such keypoint


class Prompts(NamedTuple):
    """The part that depends only on the prompts. Compute it once per set of prompts and use it for every image."""

    text_BCD: Tensor  # classes
    object_valid_BC: Tensor | None
    keypoints_BCKD: Tensor  # initial contents of the keypoint tokens
    keypoint_offsets_BCK2: Tensor  # initial positions, as logits relative to the centre of the box
    keypoint_sizes_K2: Tensor  # initial sizes, as fractions of the box
    keypoint_valid_BCK: Tensor | None


class Selected(NamedTuple):
    """The queries that were selected from the image tokens, best first."""

    reference_logits_BQ4: Tensor  # not detached; +inf in all four where a cell has no proposal
    features_BQD: Tensor
    index_BQ: Tensor  # int64: tokens of the memory
    score_BN: Tensor  # of all tokens: the best class logit


class Transformer(nn.Module):
    """Holds the encoder, the decoder and the layers between them, under the released names."""

    def __init__(self, config: XPoseConfig) -> None:
        super().__init__()
        dim = config.hidden_dim
        self.level_embed = nn.Parameter(torch.empty(config.levels, dim))
        self.encoder = Encoder(config)
        self.enc_output = Linear(dim, dim)
        self.enc_output_norm = LayerNorm(dim)
        self.enc_out_bbox_embed = Mlp(dim, dim, 4, layers=3)
        self.tgt_embed = nn.Embedding(config.queries, dim)
        self.decoder = Decoder(config)


class XPose(nn.Module):
    """The network without CLIP. Parameters have the released names; a shared head has the first of its names."""

    def __init__(self, config: XPoseConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.hidden_dim
        self.backbone = nn.ModuleList([_backbone(config)])
        self.input_proj = _input_projections(config)
        self.transformer = Transformer(config)
        self.bbox_embed = nn.ModuleList([Mlp(dim, dim, 4, layers=3)])
        self.pose_embed = nn.ModuleList([Mlp(dim, dim, 2, layers=3)])
        self.pose_hw_embed = nn.ModuleList([Mlp(dim, dim, 2, layers=3)])
        self.projection = Mlp(config.text_dim, dim, dim, layers=3)
        self.projection_kpt = Mlp(config.text_dim, dim, dim, layers=3)
        self.label_enc = nn.Embedding(config.label_book + 1, dim)  # denoising queries of training
        self.pos_proj = Linear(dim, config.visual_width)  # visual prompts: the position of a keypoint
        self.padding = nn.Embedding(1, config.visual_width)  # visual prompts: a keypoint that is not visible
        initialise_backbone(self.backbone)
        initialise_neck(self.input_proj)
        initialise_transformer(self.transformer, self.transformer.level_embed)
        initialise_heads(self._head("bbox"), self._head("pose"), self.transformer.enc_out_bbox_embed)

    def forward(
        self,
        pixels_B3HW: Tensor,
        objects_BC512: Tensor,
        keypoints: Tensor,
        padding_BHW: Tensor | None = None,
        object_valid_BC: Tensor | None = None,
        keypoint_valid: Tensor | None = None,
    ) -> XPoseOutput:
        """Find every prompted keypoint of every prompted object.

        Args:
            pixels_B3HW: RGB, normalised by ImageNet's mean and deviation; zero on padding.
            objects_BC512: CLIP embeddings of the classes.
            keypoints: CLIP embeddings of the keypoints: [B, K, 512], one list for all classes, or [B, C, K, 512], one
                list per class. A box uses the list of its own best class.
            padding_BHW: bool, True on padding (right and bottom).
            object_valid_BC: bool, True on real classes.
            keypoint_valid: bool, True on real keypoints, [B, K] or [B, C, K] like `keypoints`.
        Raises:
            InputError: shapes do not match, or there are more keypoints than the network has slots.
        """
        check_inputs(self.config, pixels_B3HW, objects_BC512, keypoints, padding_BHW, object_valid_BC, keypoint_valid)
        prompts = self.encode_prompts(objects_BC512, keypoints, object_valid_BC, keypoint_valid)
        return self.detect(pixels_B3HW, prompts, padding_BHW)

    def encode_prompts(
        self,
        objects_BC512: Tensor,
        keypoints: Tensor,
        object_valid_BC: Tensor | None = None,
        keypoint_valid: Tensor | None = None,
    ) -> Prompts:
        """Compute the part that depends only on the prompts; the arguments are those of `forward`."""
        classes = objects_BC512.shape[1]
        content = self.projection_kpt(keypoints)
        offsets = to_dtype(self._head("pose")(content), geometry_dtype(content.dtype))
        if keypoints.dim() == 3:
            content, offsets = (t[:, None].expand(-1, classes, -1, -1) for t in (content, offsets))
            keypoint_valid = None if keypoint_valid is None else keypoint_valid[:, None].expand(-1, classes, -1)
        return Prompts(
            text_BCD=self.projection(objects_BC512),
            object_valid_BC=object_valid_BC,
            keypoints_BCKD=content,
            keypoint_offsets_BCK2=offsets,
            keypoint_sizes_K2=self.transformer.decoder.keypoint_sizes(keypoints.shape[-2]),
            keypoint_valid_BCK=keypoint_valid,
        )

    def detect(self, pixels_B3HW: Tensor, prompts: Prompts, padding_BHW: Tensor | None = None) -> XPoseOutput:
        """Run the network on images with encoded prompts."""
        encoded = self.encode(pixels_B3HW, prompts, padding_BHW)
        x_BQD, reference_BQ4 = self.first_queries(self.select_queries(encoded))
        decoder, config = self.transformer.decoder, self.config
        values = decoder.values(encoded)
        for index in range(config.box_layers):
            x_BQD = decoder.run_layer(index, x_BQD, reference_BQ4, values[index], encoded)
            reference_BQ4 = self.refine_boxes(x_BQD, reference_BQ4)
        groups = self.expand(x_BQD, reference_BQ4, encoded, prompts)
        count, tokens = groups.x_BGTD.shape[1:3]
        for index in range(config.box_layers, config.decoder_layers):
            if index > config.box_layers:
                groups = groups._replace(reference_BGT4=self.refine_groups(groups.x_BGTD, groups.reference_BGT4))
            x_BQD, reference_BQ4 = groups.x_BGTD.flatten(1, 2), groups.reference_BGT4.flatten(1, 2)
            mask = groups.attention_mask()
            x_BQD = decoder.run_layer(index, x_BQD, reference_BQ4, values[index], encoded, mask, count)
            groups = groups._replace(x_BGTD=torch.unflatten(x_BQD, 1, (count, tokens)))
        boxes_BG4, logits_BGC, keypoints_BGK2 = self.predict(groups.x_BGTD, groups.reference_BGT4, encoded)
        return XPoseOutput(boxes_BG4, logits_BGC, groups.class_BG, keypoints_BGK2)

    def feature_maps(self, pixels_B3HW: Tensor) -> list[Tensor]:
        """Backbone and neck: one map [B, D, h, w] per level, fine to coarse."""
        maps = self.backbone[0](pixels_B3HW)
        if self.config.extra_level:
            maps.append(maps[-1])  # the extra level halves the coarsest stage, not its projection
        return [project(level) for project, level in zip(self.input_proj, maps, strict=True)]

    def encode(self, pixels_B3HW: Tensor, prompts: Prompts, padding_BHW: Tensor | None = None) -> Encoded:
        """Encode images together with their classes."""
        maps = self.feature_maps(pixels_B3HW)
        sizes = tuple((level.shape[2], level.shape[3]) for level in maps)
        image_BND = torch.cat([level.flatten(2).transpose(1, 2) for level in maps], dim=1)
        geometry = pyramid_geometry(sizes, self.config.hidden_dim, padding_BHW, image_BND.device)
        level_embed = self.transformer.level_embed
        level_ND = torch.cat([level_embed[i].expand(h * w, -1) for i, (h, w) in enumerate(sizes)])
        position_BND = to_dtype(geometry.position_BND, image_BND.dtype) + level_ND
        encoder = self.transformer.encoder
        return encoder(image_BND, position_BND, prompts.text_BCD, prompts.object_valid_BC, geometry)  # type: ignore[no-any-return]

    def select_queries(self, encoded: Encoded) -> Selected:
        """Select the `queries` tokens with the best class scores; all of them if there are fewer."""
        transformer, geometry = self.transformer, encoded.geometry
        offered_BND = encoded.memory_BND.masked_fill(~geometry.offered_BN1, 0.0)
        features_BND = transformer.enc_output_norm(transformer.enc_output(offered_BND))
        score_BN = class_logits(features_BND, encoded.text_BCD, encoded.object_valid_BC).amax(-1)
        index_BQ = top_queries(score_BN, min(self.config.queries, score_BN.shape[1]))
        features_BQD = gather_queries(features_BND, index_BQ)
        proposal_BQ4 = gather_queries(geometry.proposal_BN4.expand(score_BN.shape[0], -1, -1), index_BQ)
        offset_BQ4 = transformer.enc_out_bbox_embed(features_BQD)
        offset_BQ4 = to_dtype(offset_BQ4, geometry_dtype(offset_BQ4.dtype))
        return Selected(offset_BQ4 + proposal_BQ4, features_BQD, index_BQ, score_BN)

    def first_queries(self, selected: Selected) -> tuple[Tensor, Tensor]:
        """Return the inputs of the first layer: contents [B, Q, D] (learned, one per rank) and references [B, Q, 4]."""
        batch, queries = selected.index_BQ.shape
        content_BQD = self.transformer.tgt_embed.weight[:queries].expand(batch, -1, -1)
        return content_BQD, selected.reference_logits_BQ4.sigmoid()

    def refine_boxes(self, x_BQD: Tensor, reference_BQ4: Tensor) -> Tensor:
        """Refine references with the box head: [B, Q, 4]. Takes raw contents between layers, normed ones to predict."""
        return self._move("bbox", x_BQD, reference_BQ4)

    def refine_groups(self, x_BGTD: Tensor, reference_BGT4: Tensor) -> Tensor:
        """Refine the references of box tokens and of keypoint tokens: [B, G, T, 4]."""
        box = self.refine_boxes(x_BGTD[:, :, :1], reference_BGT4[:, :, :1])
        x_BGKD, reference_BGK4 = x_BGTD[:, :, 1:], reference_BGT4[:, :, 1:]
        place = self._move("pose", x_BGKD, reference_BGK4[..., :2])
        size = self._move("pose_hw", x_BGKD, reference_BGK4[..., 2:])
        return torch.cat((box, torch.cat((place, size), dim=-1)), dim=2)

    def expand(self, x_BQD: Tensor, reference_BQ4: Tensor, encoded: Encoded, prompts: Prompts) -> Groups:
        """Turn the best boxes into groups. Each gets the keypoints of its own best class."""
        logits_BQC = class_logits(x_BQD, encoded.text_BCD, encoded.object_valid_BC)
        index_BG = top_queries(logits_BQC.amax(-1), min(self.config.groups, logits_BQC.shape[1]))
        class_BG = gather_queries(logits_BQC, index_BG).argmax(-1)
        box_BGD, reference_BG4 = gather_queries(x_BQD, index_BG), gather_queries(reference_BQ4, index_BG)
        return self.form_groups(box_BGD, reference_BG4, class_BG, prompts)

    def form_groups(self, box_BGD: Tensor, reference_BG4: Tensor, class_BG: Tensor, prompts: Prompts) -> Groups:
        """Append to each box the keypoint tokens of its class.

        Args:
            box_BGD: contents of the boxes.
            reference_BG4: their references.
            class_BG: int64, index of the prompted class.
            prompts: encoded prompts of the same images.
        """
        image_B1 = torch.arange(class_BG.shape[0], device=class_BG.device)[:, None]
        keypoints_BGKD = to_dtype(prompts.keypoints_BCKD, box_BGD.dtype)[image_B1, class_BG]
        centre_BG12 = inverse_sigmoid(reference_BG4[:, :, None, :2])
        place_BGK2 = (centre_BG12 + prompts.keypoint_offsets_BCK2[image_B1, class_BG]).sigmoid()
        size_BGK2 = to_dtype(prompts.keypoint_sizes_K2, place_BGK2.dtype) * reference_BG4[:, :, None, 2:]
        keypoint_reference_BGK4 = torch.cat((place_BGK2, size_BGK2), dim=-1)
        valid_BGT = None
        if prompts.keypoint_valid_BCK is not None:
            valid_BGK = prompts.keypoint_valid_BCK[image_B1, class_BG]
            valid_BGT = torch.cat((torch.ones_like(valid_BGK[..., :1]), valid_BGK), dim=-1)
        return Groups(
            x_BGTD=torch.cat((box_BGD[:, :, None], keypoints_BGKD), dim=2),
            reference_BGT4=torch.cat((reference_BG4[:, :, None], keypoint_reference_BGK4), dim=2),
            class_BG=class_BG,
            valid_BGT=valid_BGT,
        )

    def predict(self, x_BGTD: Tensor, reference_BGT4: Tensor, encoded: Encoded) -> tuple[Tensor, Tensor, Tensor]:
        """Return boxes [B, G, 4], class logits [B, G, C] and keypoints [B, G, K, 2] from the raw output of a layer.

        `reference_BGT4` are the references that entered the layer.
        """
        h_BGTD = self.transformer.decoder.norm(x_BGTD)
        boxes_BG4 = self.refine_boxes(h_BGTD[:, :, 0], reference_BGT4[:, :, 0])
        logits_BGC = class_logits(h_BGTD[:, :, 0], encoded.text_BCD, encoded.object_valid_BC)
        return boxes_BG4, logits_BGC, self._move("pose", h_BGTD[:, :, 1:], reference_BGT4[:, :, 1:, :2])

    def predict_boxes(self, x_BQD: Tensor, reference_BQ4: Tensor, encoded: Encoded) -> tuple[Tensor, Tensor]:
        """Return boxes [B, Q, 4] and class logits [B, Q, C] from the raw output of a box layer, for training."""
        h_BQD = self.transformer.decoder.norm(x_BQD)
        return self.refine_boxes(h_BQD, reference_BQ4), class_logits(h_BQD, encoded.text_BCD, encoded.object_valid_BC)

    def _head(self, name: str) -> Mlp:
        head = self.get_submodule(f"{name}_embed.0")
        assert isinstance(head, Mlp)
        return head

    def _move(self, head: str, x: Tensor, reference: Tensor) -> Tensor:
        return (to_dtype(self._head(head)(x), reference.dtype) + inverse_sigmoid(reference)).sigmoid()


def _backbone(config: XPoseConfig) -> nn.Module:
    return EfficientNetLite0() if config.backbone == "efficientnet_lite0" else Swin(config)


def _input_projections(config: XPoseConfig) -> nn.ModuleList:
    """One convolution and group norm per level."""
    dim, widths = config.hidden_dim, config.level_widths
    convolutions = [Conv2d(width, dim, kernel_size=1) for width in widths]
    if config.extra_level:
        convolutions.append(Conv2d(widths[-1], dim, kernel_size=3, stride=2, padding=1))
    return nn.ModuleList(nn.Sequential(convolution, GroupNorm(NORM_GROUPS, dim)) for convolution in convolutions)
