"""Train a new backbone to reproduce the features of the old one: python -m training.distil RECIPE --data … --out FILE.

This needs no labels. The result is the trained network with the new backbone and new input projections; continue with
`training.train`. The new backbone starts from its ImageNet weights (`training.imagenet`).

Shape suffixes: B batch, D channels, H height, W width.
"""

import logging
import time
import tomllib
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch
import typer
from torch import Tensor, nn

from engines.checkpoint import load_weights, save_weights, trained_categories
from engines.errors import XPoseError
from engines.xpose import XPose, XPoseConfig
from training.data.stream import SourceConfig, Stream, normalise, stack_images
from training.imagenet import backbone_weights, published_weights
from training.memory import keep_freed_memory

logger = logging.getLogger(__name__)
REPLACED = ("backbone.", "input_proj.")
WARMUP_STEPS = 20


class DistilRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Settings of a distillation.

    Args:
        teacher: weights of nano.
        pupil_model: fields of `XPoseConfig` in which the pupil differs from the teacher, such as the backbone.
        sources: caches of the pictures; labels are not used.
        minutes: duration of the training, wall clock.
        lr: initial learning rate of the backbone; it falls to a hundredth.
        projection_lr: factor on `lr` for the input projections, which start from random weights.
    """

    teacher: str
    pupil_model: dict[str, Any]
    sources: list[SourceConfig]
    minutes: float
    size_hw: tuple[int, int]
    batch: int
    lr: float
    projection_lr: float = 5.0
    seed: int = 0


class Distillation:
    """A teacher, its pupil, and the loss between their features."""

    def __init__(self, recipe: DistilRecipe) -> None:
        self.teacher, self.clip = load_weights("nano", recipe.teacher)
        fields = {key: tuple(value) if isinstance(value, list) else value for key, value in recipe.pupil_model.items()}
        torch.manual_seed(recipe.seed)
        self.pupil = XPose(XPoseConfig(**(vars(XPoseConfig.nano()) | fields)))
        own = self.teacher.state_dict()
        kept = {key: value for key, value in own.items() if not key.startswith(REPLACED)}
        self.pupil.load_state_dict(kept, strict=False)
        self.pupil.backbone[0].load_state_dict(backbone_weights(published_weights()))

    def loss(self, pixels_B3HW: Tensor) -> Tensor:
        """Squared error over the variance of each channel, averaged over channels and levels."""
        with torch.no_grad():
            goals = [goal.float() for goal in self.teacher.feature_maps(pixels_B3HW)]
        total = torch.zeros(())
        for goal_BDHW, said_BDHW in zip(goals, self.pupil.feature_maps(pixels_B3HW), strict=True):
            error_D = (said_BDHW.float() - goal_BDHW).square().mean((0, 2, 3))
            variance_D = goal_BDHW.var((0, 2, 3)) + 1e-2
            total = total + (error_D / variance_D).mean() / len(goals)
        return total


def load_distil_recipe(path: Path) -> DistilRecipe:
    """Read a recipe.

    Raises:
        ValueError: the file is not TOML, or has an unknown key or a value of the wrong kind. The message names file and
            key.
    """
    try:
        return msgspec.convert(tomllib.loads(path.read_text()), DistilRecipe)
    except (OSError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ValueError(f"recipe {path}: {error}") from error


def distil(recipe: DistilRecipe, data: Path, out: Path) -> list[float]:
    """Run a recipe, write the weights of the pupil, and return the loss of each step."""
    run, stream = Distillation(recipe), Stream(recipe.sources, data, recipe.seed)
    optimiser = _optimiser(run.pupil, recipe)
    categories = trained_categories("nano", recipe.teacher)
    started, losses = time.monotonic(), list[float]()
    while (share := (time.monotonic() - started) / (60 * recipe.minutes)) < 1:
        for group in optimiser.param_groups:
            group["lr"] = group["factor"] * recipe.lr * (1 - 0.99 * share) * min(1.0, (len(losses) + 1) / WARMUP_STEPS)
        canvases = stream.canvases(recipe.batch, *recipe.size_hw, stream.generator(0, len(losses), 0))
        with torch.autocast("cpu", torch.bfloat16):
            loss = run.loss(normalise(stack_images(canvases)))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_([*run.pupil.parameters()], 1.0)
        optimiser.step()
        losses.append(float(loss.detach()))
        if len(losses) % 10 == 0:
            logger.info("step %d  %.1f s  loss %.4f", len(losses), time.monotonic() - started, losses[-1])
    save_weights(out, run.pupil, run.clip, categories, torch.float32)
    return losses


def _optimiser(pupil: XPose, recipe: DistilRecipe) -> torch.optim.AdamW:
    groups = [
        {"params": [*pupil.backbone.parameters()], "factor": 1.0},
        {"params": [*pupil.input_proj.parameters()], "factor": recipe.projection_lr},
    ]
    return torch.optim.AdamW(groups, lr=recipe.lr, weight_decay=0.0, betas=(0.9, 0.98))


def main(
    recipe: Annotated[Path, typer.Argument(help="TOML file, for example training/recipes/nano_lite0_backbone.toml")],
    data: Annotated[Path, typer.Option(help="folder of image caches, see training.data.build")],
    out: Annotated[Path, typer.Option(help="file for the weights of the pupil, .safetensors")],
) -> None:
    """Train a new backbone to reproduce the features of an old one."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    keep_freed_memory()
    try:
        distil(load_distil_recipe(recipe), data, out)
    except (ValueError, OSError, XPoseError) as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    typer.run(main)
