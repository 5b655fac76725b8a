"""CLIP: text and marked example images become the vectors of 512 numbers that the network is prompted with.

Text and image towers of CLIP ViT-B/32 under OpenAI's parameter names, plus what X-Pose adds to the image tower:
keypoint tokens, which let an example image stand where words would. Vectors are not normalised, as X-Pose was trained.

Shapes: N prompts, T tokens of the longest text, W width of a tower, P patches and class token (50), K keypoints.
Source: openai/CLIP (MIT), arXiv:2103.00020.
"""

import html
import math
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from engines.errors import CheckpointError, PromptError

if TYPE_CHECKING:
    from instant_clip_tokenizer import Tokenizer

CONTEXT_TOKENS = 77
VOCABULARY = 49408
START_TOKEN = 49406
END_TOKEN = 49407
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)

_SPECIAL_TOKENS = {"<|startoftext|>": START_TOKEN, "<|endoftext|>": END_TOKEN}
_SPECIAL_PATTERN = re.compile(r"(<\|startoftext\|>|<\|endoftext\|>)")
# instant-clip-tokenizer spells its special tokens so; cut after "<", where CLIP cuts anyway, they are plain text.
_NOT_SPECIAL_PATTERN = re.compile(r"(?<=<)(?=(?:start|end)_of_text>)")


@dataclass(frozen=True)
class TowerConfig:
    """Size of one transformer."""

    width: int
    layers: int
    heads: int


@dataclass(frozen=True)
class ClipConfig:
    """Sizes of both towers; both end in vectors of `embed_dim`.

    `marks_are_seen`: marked points of an example see each other, in place of the image and themselves alone, and the
    vector of the object sees them, too. That tells from few examples which point is which and of what, but is not what
    the released weights were trained with, as far as one can read it (XPOSE.md 9.2, step 5).
    """

    text: TowerConfig
    vision: TowerConfig
    embed_dim: int = 512
    image_px: int = 224
    patch_px: int = 32
    marks_are_seen: bool = False

    @classmethod
    def vit_b_32(cls) -> Self:
        """The towers of the official model: 63.4 M and 87.8 M parameters."""
        return cls(text=TowerConfig(width=512, layers=12, heads=8), vision=TowerConfig(width=768, layers=12, heads=12))

    @classmethod
    def nano(cls) -> Self:
        """Towers of the shipped model: 3.3 M (nearly all of it the token table) and 1.3 M parameters."""
        return cls(
            text=TowerConfig(width=64, layers=2, heads=2),
            vision=TowerConfig(width=128, layers=4, heads=4),
            marks_are_seen=True,
        )


def clean(text: str) -> str:
    """Repair, unescape, lower-case and single-space a text, as CLIP does before its vocabulary is looked up."""
    import ftfy  # here, so that encoded prompts need no text packages

    repaired = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(repaired.split()).lower()


def tokenize(texts: Sequence[str]) -> Tensor:
    """Turn texts into token rows: start, pieces, end, zeros.

    Returns:
        tokens_NT: int64, T = 77.
    Raises:
        PromptError: a text needs more than 77 tokens.
    """
    tokens_NT = torch.zeros(len(texts), CONTEXT_TOKENS, dtype=torch.int64)
    for row, text in enumerate(texts):
        tokens = [START_TOKEN, *_pieces(clean(text)), END_TOKEN]
        if len(tokens) > CONTEXT_TOKENS:
            raise PromptError(
                f"the prompt {text[:60]!r}… needs {len(tokens)} tokens, allowed are {CONTEXT_TOKENS}: use fewer words"
            )
        tokens_NT[row, : len(tokens)] = torch.tensor(tokens)
    return tokens_NT


def _pieces(cleaned: str) -> list[int]:
    tokens: list[int] = []
    for part in _SPECIAL_PATTERN.split(cleaned):
        if part in _SPECIAL_TOKENS:
            tokens.append(_SPECIAL_TOKENS[part])
        else:
            for run in _NOT_SPECIAL_PATTERN.split(part):
                tokens.extend(_tokenizer().encode(run))
    return tokens


@cache
def _tokenizer() -> "Tokenizer":
    from instant_clip_tokenizer import Tokenizer

    return Tokenizer()


class _Attention(nn.Module):
    """Multi-head self-attention under the parameter names of torch's own module."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x_NTW: Tensor, visible_TT: Tensor | None) -> Tensor:
        count, length, width = x_NTW.shape
        qkv = functional.linear(x_NTW, self.in_proj_weight, self.in_proj_bias)
        query, key, value = qkv.view(count, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        out = functional.scaled_dot_product_attention(query, key, value, attn_mask=visible_TT)
        projected: Tensor = self.out_proj(out.transpose(1, 2).reshape(count, length, width))
        return projected


class _Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x_NTW: Tensor) -> Tensor:
        hidden = self.c_fc(x_NTW)
        projected: Tensor = self.c_proj(hidden * torch.sigmoid(1.702 * hidden))  # CLIP's "quick" GELU
        return projected


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = _Attention(width, heads)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = _Mlp(width)
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x_NTW: Tensor, visible_TT: Tensor | None) -> Tensor:
        x_NTW = x_NTW + self.attn(self.ln_1(x_NTW), visible_TT)
        mixed: Tensor = x_NTW + self.mlp(self.ln_2(x_NTW))
        return mixed


class _Transformer(nn.Module):
    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(_Block(config.width, config.heads) for _ in range(config.layers))

    def forward(self, x_NTW: Tensor, visible_TT: Tensor | None) -> Tensor:
        for block in self.resblocks:
            x_NTW = block(x_NTW, visible_TT)
        return x_NTW


class _Visual(nn.Module):
    """The image tower. Keypoint tokens may be appended to its sequence."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        width = config.vision.width
        patches = (config.image_px // config.patch_px) ** 2
        self.marks_are_seen = config.marks_are_seen
        self.conv1 = nn.Conv2d(3, width, config.patch_px, stride=config.patch_px, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty(patches + 1, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = _Transformer(config.vision)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.empty(width, config.embed_dim))

    def forward(self, pixels_N3HW: Tensor, points_NKW: Tensor, marked_NK: Tensor) -> tuple[Tensor, Tensor]:
        """Return the image's vector [N, 512] and the keypoints' [N, K, 512]."""
        patches_NPW = self.conv1(pixels_N3HW).flatten(2).transpose(1, 2)
        class_N1W = self.class_embedding.expand(len(pixels_N3HW), 1, -1)
        image_NPW = torch.cat([class_N1W, patches_NPW], dim=1) + self.positional_embedding
        tokens_NTW = torch.cat([image_NPW, points_NKW], dim=1)
        image_tokens, tokens = image_NPW.shape[1], tokens_NTW.shape[1]
        # Image rows see no keypoints, so the image's own vector is plain CLIP's; a keypoint sees the image and itself.
        visible_TT = torch.eye(tokens, dtype=torch.bool, device=pixels_N3HW.device)
        visible_TT[:, :image_tokens] = True
        if self.marks_are_seen:  # unmarked points are masked, so spare slots change nothing
            reads_T1 = torch.ones(tokens, 1, dtype=torch.bool, device=pixels_N3HW.device)
            reads_T1[1:image_tokens] = False
            visible_TT = visible_TT | (reads_T1 & functional.pad(marked_NK, (image_tokens, 0))[:, None, None])
        tokens_NTW = self.transformer(self.ln_pre(tokens_NTW), visible_TT)
        read_NTW = torch.cat([tokens_NTW[:, :1], tokens_NTW[:, image_tokens:]], dim=1)
        vectors = self.ln_post(read_NTW) @ self.proj
        return vectors[:, 0], vectors[:, 1:]


class Clip(nn.Module):
    """Both towers, under OpenAI's parameter names (the official X-Pose file puts `clip_model.` before them)."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.config = config
        width = config.text.width
        self.token_embedding = nn.Embedding(VOCABULARY, width)
        self.positional_embedding = nn.Parameter(torch.empty(CONTEXT_TOKENS, width))
        self.transformer = _Transformer(config.text)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, config.embed_dim))
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.visual = _Visual(config)
        self._initialise()

    def _initialise(self) -> None:
        """Draw weights as CLIP did before its training."""
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        nn.init.normal_(self.text_projection, std=self.config.text.width**-0.5)
        scale = self.config.vision.width**-0.5
        for parameter in (self.visual.class_embedding, self.visual.positional_embedding, self.visual.proj):
            nn.init.normal_(parameter, std=scale)
        for tower, transformer in ((self.config.text, self.transformer), (self.config.vision, self.visual.transformer)):
            for name, parameter in transformer.named_parameters():
                if name.endswith("bias"):
                    nn.init.zeros_(parameter)
                elif name.endswith("c_fc.weight"):
                    nn.init.normal_(parameter, std=(2 * tower.width) ** -0.5)
                elif name.endswith("in_proj_weight"):
                    nn.init.normal_(parameter, std=tower.width**-0.5)
                elif parameter.ndim == 2:
                    nn.init.normal_(parameter, std=tower.width**-0.5 * (2 * tower.layers) ** -0.5)

    def encode_text(self, tokens_NT: Tensor) -> Tensor:
        """Return vectors [N, 512] of token rows (see `tokenize`).

        Only the columns up to the longest text are computed: attention is causal, so what follows changes nothing.
        """
        longest = int((tokens_NT != 0).sum(dim=1).max()) if len(tokens_NT) else 1
        tokens_NT = tokens_NT[:, :longest]
        x_NTW = self.token_embedding(tokens_NT) + self.positional_embedding[:longest]
        past_TT = torch.ones(longest, longest, dtype=torch.bool, device=tokens_NT.device).tril()
        x_NTW = self.ln_final(self.transformer(x_NTW, past_TT))
        end_N = tokens_NT.argmax(dim=1)  # the end token has the greatest id
        ends_NW: Tensor = x_NTW[torch.arange(len(x_NTW), device=x_NTW.device), end_N]
        return ends_NW @ self.text_projection

    def encode_visual_prompt(
        self, pixels_N3HW: Tensor, points_NK2: Tensor, visible_NK: Tensor, pos_proj: nn.Linear, padding: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Encode example images with marked keypoints.

        Args:
            pixels_N3HW: crops around the object, normalised by PIXEL_MEAN and PIXEL_STD, H = W = 224.
            points_NK2: (x, y) as fractions of the crop; not looked at where invisible.
            visible_NK: True where the point is marked.
            pos_proj: the network's `pos_proj`, from the width of a sine code to that of the image tower.
            padding: the network's `padding.weight`, [1, W]: stands for a point that is not marked.
        Returns:
            object vectors [N, 512] and keypoint vectors [N, K, 512].
        Source: our reading of the published figures; the authors released no code for it.
        """
        marked_NK1 = visible_NK.unsqueeze(-1)
        codes_NKD = sine_code(torch.where(marked_NK1, points_NK2, 0.0), pos_proj.in_features).to(padding.dtype)
        tokens_NKW = torch.where(marked_NK1, pos_proj(codes_NKD), padding.reshape(1, 1, -1))
        encoded: tuple[Tensor, Tensor] = self.visual(pixels_N3HW, tokens_NKW, visible_NK)
        return encoded


def sine_code(points_NK2: Tensor, channels: int) -> Tensor:
    """Return [N, K, channels]: half of them for y, then for x; sines and cosines interleaved, temperature 10,000."""
    half = channels // 2
    exponent = torch.arange(0, half, 2, device=points_NK2.device, dtype=points_NK2.dtype) / half
    angles = 2 * math.pi * points_NK2.flip(-1).unsqueeze(-1) / 10000.0**exponent
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-3)


def load_clip(clip: Clip, state_dict_or_path: Mapping[str, Tensor] | str | Path) -> frozenset[str]:
    """Load OpenAI's `ViT-B-32.pt`, or any state dict with its keys, with or without `clip_model.` before them.

    A tower is loaded whole. If the source has none of its keys, the tower is not changed.

    Returns:
        the towers that were loaded: "text", "visual" or both.
    Raises:
        CheckpointError: the file cannot be read, a tower is incomplete or of another size, a key is unexpected.
    """
    if isinstance(state_dict_or_path, Mapping):
        label, source = "the state dict", dict(state_dict_or_path)
    else:
        label, source = str(state_dict_or_path), _read_archive(Path(state_dict_or_path))
    source = {key.removeprefix("clip_model."): value for key, value in source.items()}
    for key in ("input_resolution", "context_length", "vocab_size"):  # OpenAI's notes on sizes
        source.pop(key, None)
    own = clip.state_dict()
    unexpected = sorted(source.keys() - own.keys())
    if unexpected or not source:
        raise CheckpointError(f"{label} is no CLIP of this size: {len(unexpected)} unexpected keys {unexpected[:5]}")
    visual = {key for key in own if key.startswith("visual.")}
    loaded = set()
    for tower, keys in (("visual", visual), ("text", own.keys() - visual)):
        missing = sorted(keys - source.keys())
        if len(missing) == len(keys):
            continue
        if missing:
            raise CheckpointError(f"{label} lacks {len(missing)} keys of CLIP's {tower} tower: {missing[:5]}")
        loaded.add(tower)
    for key, value in source.items():
        if value.shape != own[key].shape:
            raise CheckpointError(f"{label}: {key} has shape {list(value.shape)}, needed is {list(own[key].shape)}")
    clip.load_state_dict(source, strict=False)
    return frozenset(loaded)


def _read_archive(path: Path) -> dict[str, Tensor]:
    """Read a TorchScript archive, which is what OpenAI publishes, or a plain state dict."""
    try:
        with zipfile.ZipFile(path) as archive:
            scripted = any(name.endswith("constants.pkl") for name in archive.namelist())
        if not scripted:
            return dict(torch.load(path, map_location="cpu", weights_only=True))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # nothing else reads such an archive
            return dict(torch.jit.load(str(path), map_location="cpu").state_dict())  # type: ignore[no-untyped-call]
    except (OSError, zipfile.BadZipFile, RuntimeError, pickle.UnpicklingError, TypeError, ValueError) as error:
        raise CheckpointError(f"cannot read {path} as CLIP weights ({error}): give the path of ViT-B-32.pt") from error
