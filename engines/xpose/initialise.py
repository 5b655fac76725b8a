"""Initial values of all parameters, as in the released model. They matter when you train from scratch."""

import torch
from torch import nn

from engines.xpose.encoder import DeformableAttention, FusionLayer, TwoWayAttention
from engines.xpose.layers import Attention, Conv2d, Mlp, circle_of_offsets
from engines.xpose.swin import WindowAttention

LAYER_SCALE = 1e-4


def initialise_transformer(transformer: nn.Module, level_embed: nn.Parameter) -> None:
    """Xavier for every matrix, then the special initial values of attention, sampling and fusion."""
    for parameter in transformer.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
    nn.init.normal_(level_embed)
    for module in transformer.modules():
        if isinstance(module, DeformableAttention):
            _initialise_sampling(module)
        elif isinstance(module, Attention):
            nn.init.zeros_(module.in_proj_bias)
            nn.init.zeros_(module.out_proj.bias)
        elif isinstance(module, TwoWayAttention):
            for linear in module.children():
                nn.init.zeros_(linear.get_parameter("bias"))
        elif isinstance(module, FusionLayer):
            nn.init.constant_(module.gamma_v, LAYER_SCALE)
            nn.init.constant_(module.gamma_l, LAYER_SCALE)


def _initialise_sampling(attention: DeformableAttention) -> None:
    nn.init.zeros_(attention.sampling_offsets.weight)
    with torch.no_grad():
        attention.sampling_offsets.bias.copy_(circle_of_offsets(attention.heads, attention.levels, attention.points))
    for linear in (attention.value_proj, attention.output_proj, attention.attention_weights):
        nn.init.zeros_(linear.bias)
    nn.init.zeros_(attention.attention_weights.weight)


def initialise_backbone(backbone: nn.Module) -> None:
    """Initialise the bias tables only. Linear maps keep PyTorch's defaults, because pretrained weights replace them."""
    for module in backbone.modules():
        if isinstance(module, WindowAttention):
            nn.init.trunc_normal_(module.relative_position_bias_table, std=0.02)


def initialise_neck(input_proj: nn.Module) -> None:
    """Xavier for the convolutions, and zero biases."""
    for module in input_proj.modules():
        if isinstance(module, Conv2d):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def initialise_heads(bbox: Mlp, pose: Mlp, proposal: Mlp) -> None:
    """Boxes and keypoints start at their references. The head of the proposals starts as a copy of the box head."""
    for head in (bbox, pose):
        last = head.layers[-1]
        nn.init.zeros_(last.get_parameter("weight"))
        nn.init.zeros_(last.get_parameter("bias"))
    proposal.load_state_dict(bbox.state_dict())
