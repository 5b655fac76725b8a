"""Recipes: one TOML file per training run, read strictly. Every field has its unit and meaning here."""

import tomllib
from pathlib import Path
from typing import Any, Literal

import msgspec

from engines.clip import ClipConfig
from engines.xpose import XPoseConfig
from training.data.stream import SourceConfig
from training.denoising import DenoisingConfig
from training.objective import LossWeights


class Phase(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A part of the run with its own image size and learning rate, which goes evenly from `lr` to `lr_end`.

    Args:
        steps: optimiser steps.
        size_hw: canvas, pixels.
        batch: canvases per process and micro-batch.
        accumulate: micro-batches per step.
        backbone_lr: factor on the learning rate of parameters with "backbone" in their name.
        decoder_share: of each batch, how many canvases (0..1) go on through the decoder; the rest, and all at 0, train
            backbone, encoder and prompts by the dense losses. From scratch the decoder has nothing to read before
            these have learned something, and it costs as much as they do.
        modality_weights: how often an image is prompted by text, by examples, by the mean of both.
        absent_share: how many of the images that hold objects are prompted for absent classes only (XPOSE.md 10.6).
        learns: what is trained. "image_tower": only that of the prompts, to name `batch` marked examples; no canvas is
            drawn. "head": only the training-only head of the dense losses, which a snapshot to start from lacks and
            whose first losses would lead the rest astray; it needs no decoder (`decoder_share` 0).
        detached_decoder: the decoder's losses do not reach the image's features (but for a little, through the
            classes), which learn by the dense losses; a decoder that has learned little yet leads them astray.
    """

    steps: int
    size_hw: tuple[int, int]
    batch: int
    lr: float
    lr_end: float
    accumulate: int = 1
    backbone_lr: float = 1.0
    decoder_share: float = 1.0
    modality_weights: tuple[float, float, float] = (0.5, 0.25, 0.25)
    absent_share: float = 0.1
    learns: Literal["all", "image_tower", "head"] = "all"
    detached_decoder: bool = False


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One training run.

    Args:
        model: "nano", "swin-t" or "swin-l"; `model_overrides` replaces fields of its configuration.
        start_from: weights to start from: "" (random), a .safetensors snapshot or an official .pth.
        optimiser: "adamw", as published, or "muon" (`training.optimiser`).
        muon_rate: factor on the learning rate of Muon's matrices.
        spread_steps: from random weights, so many steps first teach the text tower to tell the vocabulary apart.
        most_classes: offered per step, present ones and negatives together.
        examples: marked examples per class and step for visual prompts; 0 trains text only.
        single_share: in how many of the steps (0..1) a class shows one example only, as most users do.
        warmup_steps: the learning rate grows evenly over so many first steps.
        clip_norm: global gradient norm.
        ema_decay: per step, reached gradually.
        precision: "bf16" (autocast, and Muon's products) or "fp32".
        snapshot_steps, evaluate_steps: every so many steps; 0 never.
        evaluate_cache, evaluate_images: what it is evaluated on, averaged weights, prompts by words.
    """

    sources: list[SourceConfig]
    phases: list[Phase]
    model: str = "nano"
    model_overrides: dict[str, Any] = {}
    start_from: str = ""
    seed: int = 0
    optimiser: str = "adamw"
    muon_rate: float = 1.0
    spread_steps: int = 400
    most_classes: int = 12
    examples: int = 1
    single_share: float = 0.0
    weight_decay: float = 1e-4
    warmup_steps: int = 100
    clip_norm: float = 0.1
    ema_decay: float = 0.9997
    precision: str = "bf16"
    snapshot_steps: int = 200
    evaluate_steps: int = 0
    evaluate_cache: str = ""
    evaluate_images: int = 64
    denoising: DenoisingConfig = DenoisingConfig()
    weights: LossWeights = LossWeights()

    @property
    def steps(self) -> int:
        """Optimiser steps of all phases."""
        return sum(phase.steps for phase in self.phases)

    def phase_at(self, step: int) -> tuple[Phase, float]:
        """The phase of a step and how far into it the step is, 0..1."""
        for phase in self.phases:
            if step < phase.steps:
                return phase, step / phase.steps
            step -= phase.steps
        return self.phases[-1], 1.0

    def learning_rate(self, step: int) -> float:
        """Of the non-backbone parameters."""
        phase, share = self.phase_at(step)
        return (phase.lr + (phase.lr_end - phase.lr) * share) * min(1.0, (step + 1) / max(1, self.warmup_steps))


def load_recipe(path: Path) -> Recipe:
    """Read a recipe.

    Raises:
        ValueError: not TOML, an unknown key or a value of the wrong kind; names file and key.
    """
    try:
        recipe = msgspec.convert(tomllib.loads(path.read_text()), Recipe)
    except (OSError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ValueError(f"recipe {path}: {error}") from error
    if recipe.precision not in ("bf16", "fp32"):
        raise ValueError(f"recipe {path}: precision is {recipe.precision!r}, allowed are 'bf16' and 'fp32'")
    if recipe.optimiser not in ("adamw", "muon"):
        raise ValueError(f"recipe {path}: optimiser is {recipe.optimiser!r}, allowed are 'adamw' and 'muon'")
    if recipe.evaluate_steps and not recipe.evaluate_cache:
        raise ValueError(f"recipe {path}: evaluate_steps is set, so evaluate_cache must name a cache")
    if not recipe.phases or min(phase.steps for phase in recipe.phases) < 1:
        raise ValueError(f"recipe {path}: needs at least one [[phases]] with steps >= 1")
    if any(phase.learns == "head" for phase in recipe.phases) and not recipe.weights.dense:
        raise ValueError(f"recipe {path}: a phase of the head alone needs weights.dense above 0")
    return recipe


def model_configs(recipe: Recipe) -> tuple[XPoseConfig, ClipConfig]:
    """Sizes of the network and of its prompt towers.

    Raises:
        ValueError: an unknown model or a field that its configuration does not have.
    """
    makers = {"nano": XPoseConfig.nano, "swin-t": XPoseConfig.swin_t, "swin-l": XPoseConfig.swin_l}
    if recipe.model not in makers:
        raise ValueError(f"model is {recipe.model!r}, allowed are {', '.join(makers)}")
    base = makers[recipe.model]()
    known = msgspec.structs.asdict(base) if isinstance(base, msgspec.Struct) else vars(base)
    unknown = sorted(set(recipe.model_overrides) - set(known))
    if unknown:
        raise ValueError(f"model_overrides has {unknown}; allowed are {', '.join(known)}")
    values = {key: tuple(v) if isinstance(v, list) else v for key, v in recipe.model_overrides.items()}
    clip = ClipConfig.nano() if recipe.model == "nano" else ClipConfig.vit_b_32()
    return XPoseConfig(**(dict(known) | values)), clip
