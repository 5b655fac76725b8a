"""Which parameters compute in half precision: the placement that every compiled engine and the bfloat16 mode share.

A linear map or convolution computes in the dtype of its weight (`engines.xpose.layers`), so placing parameters places
the arithmetic. Half: projections, values, attention and feed-forward maps. Float32: normalisation, embeddings, the
attention between image and text (thousands of tokens share one softmax, and folded it costs next to nothing), sampling
offsets and attention logits of the deformable attention, and the heads, whose results are coordinates. References,
sampling locations, sine codes and inverse sigmoids are float32 by the network's own rule (`geometry_dtype`).
"""

import torch
from torch import nn

from engines.xpose.encoder import TwoWayAttention
from engines.xpose.layers import Attention, Conv2d, Linear
from engines.xpose.model import XPose

HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}
FLOAT32_NAMES = ("sampling_offsets", "attention_weights")
FLOAT32_PREFIXES = (
    "bbox_embed.", "pose_embed.", "pose_hw_embed.", "projection.", "projection_kpt.", "pos_proj.",
    "transformer.enc_output.", "transformer.enc_out_bbox_embed.", "transformer.decoder.ref_point_head.",
)  # fmt: skip


def forbid_tf32() -> None:
    """Make float32 products on NVIDIA GPUs exact in this process; cuDNN rounds their inputs to TF32 by default."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def place(model: XPose, precision: str) -> XPose:
    """Set the dtypes of `model`'s parameters for `precision`, in place, and return it.

    Args:
        precision: "fp32", "fp16" or "bf16".
    Raises:
        ValueError: another precision.
    """
    model.float()
    if precision == "fp32":
        return model
    if precision not in HALF:
        raise ValueError(f"precision is {precision!r}; allowed are fp32, {', '.join(HALF)}")
    dtype = HALF[precision]
    for name, module in model.named_modules():
        if isinstance(module, Attention):
            module.in_proj_weight.data = module.in_proj_weight.data.to(dtype)
            module.in_proj_bias.data = module.in_proj_bias.data.to(dtype)
        if isinstance(module, (Linear, Conv2d)) and not _stays_float32(model, name):
            module.to(dtype)
    return model


def _stays_float32(model: nn.Module, name: str) -> bool:
    parent, _, leaf = name.rpartition(".")
    return (
        leaf in FLOAT32_NAMES
        or f"{name}.".startswith(FLOAT32_PREFIXES)
        or isinstance(model.get_submodule(parent), TwoWayAttention)
    )
