"""Recipes: one TOML file per training run. Unknown keys are errors. Every field is documented here."""

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
    """A part of the run with its own image size and learning rate, which changes steadily from `lr` to `lr_end`.

    Args:
        steps: optimiser steps.
        size_hw: size of the canvas, pixels.
        batch: canvases per process and micro-batch.
        accumulate: micro-batches per step.
        backbone_lr: factor on the learning rate of parameters with "backbone" in their name.
        decoder_share: fraction (0..1) of the canvases of a batch that go through the decoder. The others train
            backbone, encoder and prompts with the dense losses only. When training from scratch, the decoder cannot
            learn before these have learned something, and it costs as much as they do.
        modality_weights: relative frequency of prompts by text, by examples, and by the mean of both.
        absent_share: fraction of the images with objects that are prompted for absent classes only (XPOSE.md 10.6).
        learns: the part that is trained. "image_tower": only the image tower of the prompts, which classifies `batch`
            marked examples by name; no canvas is drawn. "head": only the head of the dense losses, which exists only in
            training. A snapshot does not contain it, and its first losses would damage the other parts. This needs no
            decoder (`decoder_share` 0).
        detached_decoder: the losses of the decoder do not reach the image features, except slightly through the
            classes. The features learn from the dense losses, because an untrained decoder would damage them.
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
        start_from: initial weights: "" (random), a .safetensors snapshot or an official .pth.
        optimiser: "adamw", as published, or "muon" (`training.optimiser`).
        muon_rate: factor on the learning rate of the matrices that Muon trains.
        spread_steps: number of first steps, from random weights, that train the text tower to separate the vocabulary.
        most_classes: largest number of offered classes per step, present and absent ones together.
        examples: marked examples per class and step for visual prompts; 0 trains text only.
        single_share: fraction (0..1) of the steps in which a class has only one example, like most users' prompts.
        warmup_steps: number of first steps in which the learning rate grows linearly.
        clip_norm: largest global gradient norm.
        ema_decay: decay of the average per step; it is reached gradually.
        precision: "bf16" (autocast, and Muon's products) or "fp32".
        snapshot_steps, evaluate_steps: number of steps between snapshots and between evaluations; 0 for none.
        evaluate_cache, evaluate_images: cache and number of its images for evaluations, which use the averaged weights
            and prompts by words.
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
        """Number of optimiser steps of all phases."""
        return sum(phase.steps for phase in self.phases)

    def phase_at(self, step: int) -> tuple[Phase, float]:
        """Return the phase of a step, and the position of the step within it, 0..1."""
        for phase in self.phases:
            if step < phase.steps:
                return phase, step / phase.steps
            step -= phase.steps
        return self.phases[-1], 1.0

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of the parameters outside the backbone."""
        phase, share = self.phase_at(step)
        return (phase.lr + (phase.lr_end - phase.lr) * share) * min(1.0, (step + 1) / max(1, self.warmup_steps))


def load_recipe(path: Path) -> Recipe:
    """Read a recipe.

    Raises:
        ValueError: the file is not TOML, or has an unknown key or a value of the wrong kind. The message names file and
            key.
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
    """Return the sizes of the network and of its prompt towers.

    Raises:
        ValueError: the model is unknown, or its configuration does not have a field.
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
