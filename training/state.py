"""What a run is made of, its exact checkpoint, its average and the weights it ships.

The shipped file holds the network and the prompt towers (`clip_model.*`); a checkpoint holds everything.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from engines.clip import Clip
from engines.xpose import XPose
from training.alignment import DenseAlignment
from training.recipe import Recipe, model_configs

DECODER_PRIOR = -3.0
"""Logit of a class that the untrained network gives any query: about 5 %, so that negatives do not swamp the start.
Source: the prior of RetinaNet (arXiv:1708.02002, 4.1), put into the two norms whose dot product is the logit."""


class Trainee(nn.Module):
    """The network, its prompt towers and the training-only head."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        torch.manual_seed(recipe.seed)
        model_config, clip_config = model_configs(recipe)
        self.model = XPose(model_config)
        self.clip_model = Clip(clip_config)
        self.dense = DenseAlignment(model_config.hidden_dim)
        if not recipe.start_from:
            _start_from_scratch(self.model)

    def shipped(self) -> dict[str, Tensor]:
        """Tensors of the shipped file under their official names."""
        tensors = dict(self.model.state_dict())
        tensors |= {f"clip_model.{key}": value for key, value in self.clip_model.state_dict().items()}
        return tensors


def _start_from_scratch(model: XPose) -> None:
    """Class logits near the prior instead of dot products of two unit-variance vectors, tens wide."""
    transformer = model.transformer
    dim = model.config.hidden_dim
    shift = (-DECODER_PRIOR / dim) ** 0.5
    with torch.no_grad():
        text_norm = transformer.encoder.text_layers[-1].get_submodule("norm2")
        text_norm.get_parameter("weight").fill_(0.3)
        text_norm.get_parameter("bias").fill_(-shift)
        for norm in (transformer.enc_output_norm, transformer.decoder.norm):
            norm.weight.fill_(0.3)
            norm.bias.fill_(shift)
        for parameter in model.backbone.parameters():
            if parameter.ndim == 2:
                nn.init.trunc_normal_(parameter, std=0.02)


class Average:
    """Exponential moving average of all floating tensors; integer buffers are copied."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.tensors = {key: value.detach().clone() for key, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move towards the module; early on faster, so that the start is forgotten."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for key, value in module.state_dict().items():
            if value.is_floating_point():
                self.tensors[key].lerp_(value, 1 - decay)
            else:
                self.tensors[key].copy_(value)


def save_checkpoint(
    path: Path, trainee: Trainee, average: Average, optimiser: torch.optim.Optimizer, step: int
) -> None:
    """Write everything that resuming needs; a break-off leaves the previous file whole."""
    content = {
        "step": step,
        "trainee": trainee.state_dict(),
        "average": average.tensors,
        "average_updates": average.updates,
        "optimiser": optimiser.state_dict(),
    }
    partial = path.with_suffix(".partial")
    torch.save(content, partial)
    partial.replace(path)


def load_checkpoint(path: Path, trainee: Trainee, average: Average, optimiser: torch.optim.Optimizer) -> int:
    """Restore a run; returns the step to go on with."""
    content = torch.load(path, map_location="cpu", weights_only=True)
    trainee.load_state_dict(content["trainee"])
    average.tensors, average.updates = content["average"], content["average_updates"]
    optimiser.load_state_dict(content["optimiser"])
    return int(content["step"])


def save_snapshot(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, object]) -> None:
    """Write shippable weights in half precision; integer buffers keep their type."""
    half = {key: value.half() if value.is_floating_point() else value for key, value in tensors.items()}
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
    partial = path.with_suffix(".partial")
    save_file({key: value.contiguous() for key, value in half.items()}, partial, texts)
    partial.replace(path)


def load_start(trainee: Trainee, path: Path) -> None:
    """Start from a snapshot of ours.

    Raises:
        ValueError: tensors are missing, unexpected or of another size.
    """
    tensors = {key: value.float() if value.is_floating_point() else value for key, value in load_file(path).items()}
    own = trainee.shipped()
    wrong = sorted({*own} ^ {*tensors}) or [key for key in own if own[key].shape != tensors[key].shape]
    if wrong:
        raise ValueError(f"{path} does not fit the recipe's model: {len(wrong)} tensors differ, first {wrong[:3]}")
    clip = {key.removeprefix("clip_model."): value for key, value in tensors.items() if key.startswith("clip_model.")}
    trainee.clip_model.load_state_dict(clip)
    trainee.model.load_state_dict({key: value for key, value in tensors.items() if not key.startswith("clip_model.")})
