"""Weights that anyone can make again: deterministic noise by the rule that the goldens were taken under.

Source: the README of the goldens, in the shared data.
"""

import csv
import functools
import gzip
import math
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

HEAD_END = re.compile(r"(^|\.)(enc_out_bbox_embed|(bbox|pose|pose_hw)_embed\.\d+)\.layers\.2\.(weight|bias)$")
TABLES = {
    "label_enc.weight",
    "padding.weight",
    "transformer.tgt_embed.weight",
    "transformer.level_embed",
    "transformer.decoder.hw.weight",
    "transformer.decoder.hw_append.weight",
    "clip_model.token_embedding.weight",
    "clip_model.positional_embedding",
    "clip_model.visual.positional_embedding",
    "clip_model.visual.class_embedding",
}


KEY_TABLE = Path(__file__).with_name("golden_small") / "state_dict.tsv.gz"


@functools.cache
def key_table() -> dict[str, tuple[tuple[int, ...], str, str]]:
    """Return every official key with its shape, dtype and the first of its aliases."""
    with gzip.open(KEY_TABLE, "rt", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    return {row["key"]: (_shape(row["shape"]), row["dtype"], row["canonical"]) for row in rows}


def _shape(text: str) -> tuple[int, ...]:
    return tuple(int(side) for side in re.findall(r"\d+", text))


def fill_tensor(seed: int, key: str, shape: tuple[int, ...]) -> Tensor:
    """Return the float32 noise of one canonical key: the first matching rule wins."""
    generator = np.random.Generator(np.random.PCG64([seed, zlib.crc32(key.encode())]))
    noise = np.asarray(generator.standard_normal(shape))
    return torch.from_numpy(_scaled(noise, key, shape).astype(np.float32))


def _scaled(noise: np.ndarray, key: str, shape: tuple[int, ...]) -> np.ndarray:
    if key == "clip_model.logit_scale":
        return np.asarray(math.log(1 / 0.07))
    if key.endswith("sampling_offsets.bias"):
        return 2 * noise
    if key.endswith((".gamma_v", ".gamma_l")):
        return 0.3 + 0.05 * noise
    if HEAD_END.search(key):
        return 0.05 * noise
    if key.endswith("relative_position_bias_table") or key in TABLES:
        return 0.5 * noise
    if key in ("clip_model.text_projection", "clip_model.visual.proj"):
        return noise / math.sqrt(shape[0])
    if key.endswith("bias"):
        return 0.02 * noise
    if len(shape) == 1:
        return 1 + 0.1 * noise
    return noise / math.sqrt(math.prod(shape[1:]))


def filled(seed: int, *, clip: bool = False) -> Iterator[tuple[str, Tensor]]:
    """Yield every official floating-point key with its weights; aliases share one tensor.

    `clip` includes the keys under `clip_model.`.
    """
    canonical: dict[str, Tensor] = {}
    for key, (shape, dtype, first) in key_table().items():
        if not dtype.startswith("float") or (key.startswith("clip_model.") and not clip):
            continue
        if first not in canonical:
            canonical[first] = fill_tensor(seed, first, shape)
        yield key, canonical[first]
