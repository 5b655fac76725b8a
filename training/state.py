"""The parts of a run, its exact checkpoint, its averaged weights and the weights that ship.

The shipped file contains the network and the prompt towers (`clip_model.*`); a checkpoint contains everything.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor, nn

from engines.checkpoint import load_own, load_weights, save_weights
from engines.clip import Clip
from engines.errors import XPoseError
from engines.xpose import XPose
from training.alignment import DenseAlignment
from training.optimiser import Optimiser
from training.recipe import Recipe, model_configs

DECODER_PRIOR = -3.0
"""Class logit of any query in the untrained network, about 5 %, so that negatives do not dominate the first steps.
Source: the prior of RetinaNet (arXiv:1708.02002, 4.1), applied to the two norms whose dot product is the logit."""

NEIGHBOURS_YX = ((-1, 0), (1, 0), (0, -1), (0, 1), (-1, -1), (-1, 1), (1, -1), (1, 1))


class Trainee(nn.Module):
    """The network, its prompt towers and the head that only training uses."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        torch.manual_seed(recipe.seed)
        model_config, clip_config = model_configs(recipe)
        self.model = XPose(model_config)
        self.clip_model = Clip(clip_config)
        self.dense = DenseAlignment(model_config.hidden_dim)
        if not recipe.start_from:
            _start_from_scratch(self.model)


def _start_from_scratch(model: XPose) -> None:
    """Start class logits near the prior. Dot products of two unit-variance vectors would have magnitudes of tens."""
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
        for name, parameter in model.backbone.named_parameters():
            if name.endswith("relative_position_bias_table"):
                parameter.copy_(_look_beside(parameter))
            elif parameter.ndim == 2:
                nn.init.trunc_normal_(parameter, std=0.02)


def _look_beside(table: Tensor) -> Tensor:
    """Set relative position biases so that every head attends to one neighbour, like a weight of a convolution.

    Heads get the eight neighbours in turn, then those two cells away, and so on. Training can change the biases.
    Source: ConViT, arXiv:2103.10697, section 3 (locality strength 1).
    """
    places, heads = table.shape
    window = (math.isqrt(places) + 1) // 2
    steps = torch.arange(2 * window - 1) - (window - 1)
    away_y, away_x = torch.meshgrid(-steps, -steps, indexing="ij")  # indices count from the key to the query
    biases = []
    for head in range(heads):
        ring, side = divmod(head, len(NEIGHBOURS_YX))
        y, x = NEIGHBOURS_YX[side]
        biases.append(-((away_y - y * (ring + 1)) ** 2 + (away_x - x * (ring + 1)) ** 2).flatten())
    return torch.stack(biases, 1).to(table.dtype)


@torch.no_grad()
def move(tensors: Mapping[str, Tensor], towards: Mapping[str, Tensor], share: float) -> None:
    """Interpolate tensors in place towards those of the same names by `share` (0..1). Integers are copied."""
    for key, value in towards.items():
        if value.is_floating_point():
            tensors[key].lerp_(value, share)
        else:
            tensors[key].copy_(value)


class Average:
    """Exponential moving average of all floating-point tensors. Integer buffers are copied."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.tensors = {key: value.detach().clone() for key, value in module.state_dict().items()}

    def update(self, module: nn.Module) -> None:
        """Move towards the module, faster at first, so that initial weights are forgotten. Frozen parts do not move."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        frozen = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
        learned = {key: value for key, value in module.state_dict().items() if key not in frozen}
        move(self.tensors, learned, 1 - decay)


def save_checkpoint(path: Path, trainee: Trainee, average: Average, optimiser: Optimiser, step: int) -> None:
    """Write the state for an exact resume. If this is interrupted, the previous file stays complete."""
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


def load_checkpoint(path: Path, trainee: Trainee, average: Average, optimiser: Optimiser) -> int:
    """Restore a run and return its next step."""
    content = torch.load(path, map_location="cpu", weights_only=True)
    trainee.load_state_dict(content["trainee"])
    average.tensors = {key: value.to(average.tensors[key].device) for key, value in content["average"].items()}
    average.updates = content["average_updates"]
    optimiser.load_state_dict(content["optimiser"])
    return int(content["step"])


def save_snapshot(path: Path, trainee: Trainee, categories: Mapping[str, str]) -> None:
    """Write the weights for shipping: half precision, with the trained categories and their keypoint lists."""
    save_weights(path, trainee.model, trainee.clip_model, categories)


def load_start(trainee: Trainee, recipe: Recipe) -> None:
    """Load initial weights: a snapshot of ours, the official checkpoint, or the averaged weights of another run.

    The last one (.pt) also contains the head that only training uses.

    Raises:
        ValueError: the file cannot be read or does not match the model of the recipe.
    """
    try:
        if recipe.start_from.endswith(".pt"):
            content = torch.load(recipe.start_from, map_location="cpu", weights_only=True)
            if not isinstance(content, dict) or "average" not in content:
                raise ValueError(f"cannot start from {recipe.start_from}: it is no checkpoint.pt of training.train")
            trainee.load_state_dict(content["average"])
            return
        if recipe.start_from.endswith(".safetensors"):  # the model may have the overrides of the recipe
            load_own(Path(recipe.start_from), trainee.model, trainee.clip_model)
            return
        model, clip = load_weights(recipe.model, recipe.start_from)
        trainee.model.load_state_dict(model.state_dict())
        trainee.clip_model.load_state_dict(clip.state_dict())
    except (XPoseError, OSError, EOFError, RuntimeError, UnpicklingError) as error:
        raise ValueError(f"cannot start from {recipe.start_from}: {error}") from error
