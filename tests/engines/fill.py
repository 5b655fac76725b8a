"""The golden weights: deterministic noise by a rule on each key, the same that the original was run with.

The rule stands in `golden/README.md` of the shared data; first match wins.
"""

import math
import re
import zlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_SMALL_HEADS = re.compile(
    r"(^|\.)(enc_out_bbox_embed|(bbox|pose|pose_hw)_embed\.\d+)\.layers\.2\.(weight|bias)$"
)  # fmt: skip
_TABLES = {
    "label_enc.weight", "padding.weight", "transformer.tgt_embed.weight", "transformer.level_embed",
    "transformer.decoder.hw.weight", "transformer.decoder.hw_append.weight", "clip_model.token_embedding.weight",
    "clip_model.positional_embedding", "clip_model.visual.positional_embedding", "clip_model.visual.class_embedding",
}  # fmt: skip


def fill(key: str, shape: Sequence[int], seed: int) -> Tensor:
    """Return the float32 values of an official, canonical key."""
    generator = np.random.Generator(np.random.PCG64([seed, zlib.crc32(key.encode())]))
    z = generator.standard_normal(tuple(shape))
    return torch.from_numpy(np.asarray(_scaled(key, z), dtype=np.float32))


def _scaled(key: str, z: np.ndarray) -> np.ndarray | float:
    if key == "clip_model.logit_scale":
        return math.log(1 / 0.07)
    if key.endswith("sampling_offsets.bias"):
        return 2 * z
    if key.endswith((".gamma_v", ".gamma_l")):
        return 0.3 + 0.05 * z
    if _SMALL_HEADS.search(key):
        return 0.05 * z
    if key.endswith("relative_position_bias_table") or key in _TABLES:
        return 0.5 * z
    if key in ("clip_model.text_projection", "clip_model.visual.proj"):
        return z / math.sqrt(z.shape[0])
    if key.endswith("bias"):
        return 0.02 * z
    if z.ndim == 1:
        return 1 + 0.1 * z
    return z / math.sqrt(math.prod(z.shape[1:]))
