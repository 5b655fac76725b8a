"""Muon for the matrices in transformer blocks and AdamW for everything else, or AdamW alone.

Muon (Jordan et al., 2024; arXiv:2502.16982) orthogonalises the momentum of a matrix before it is applied. From random
weights it needs fewer images than AdamW to reach the same loss. Its updates are scaled to the size of AdamW's, so that
both follow one schedule; the learning rate of Muon is `Recipe.muon_rate` times that of AdamW.
"""

from typing import Any

import torch
from torch import nn

from engines.clip import Clip
from engines.xpose import XPose
from training.muon import Muon
from training.recipe import Recipe

BETAS = (0.9, 0.98)
MOMENTUM = 0.95
SMALL_MAPS = ("sampling_offsets", "attention_weights")  # start at zero, set sampling locations: no matrices for Muon


class Optimiser:
    """The optimisers of a run: one torch optimiser per kind of parameter."""

    def __init__(self, model: XPose, clip: Clip, others: list[nn.Parameter], recipe: Recipe) -> None:
        self.muon_rate = recipe.muon_rate
        matrices = set[nn.Parameter]()
        if recipe.optimiser == "muon":
            blocks = (model.backbone, model.transformer.encoder, model.transformer.decoder.layers)
            towers = (clip.transformer.resblocks, clip.visual.transformer.resblocks)
            matrices = {parameter for part in (*blocks, *towers) for parameter in _matrices(part)}
        backbone = set(model.backbone.parameters())
        every = [*model.parameters(), *clip.parameters(), *others]
        self.parts: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(
                _split([p for p in every if p not in matrices], backbone),
                lr=1.0,
                weight_decay=recipe.weight_decay,
                betas=BETAS,
            )
        ]
        if matrices:
            self.parts.append(
                Muon(
                    _split([p for p in every if p in matrices], backbone),
                    torch.bfloat16 if recipe.precision == "bf16" else torch.float32,
                    momentum=MOMENTUM,
                    weight_decay=recipe.weight_decay,
                )
            )

    def set_rates(self, rate: float, backbone_rate: float) -> None:
        """Set the learning rates of the next step."""
        for part, factor in zip(self.parts, (1.0, self.muon_rate), strict=False):
            for group, value in zip(part.param_groups, (rate, backbone_rate), strict=True):
                group["lr"] = value * factor

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def step(self) -> None:
        """Apply the gradients."""
        for part in self.parts:
            part.step()

    def state_dict(self) -> list[dict[str, Any]]:
        """Return the state for an exact resume."""
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Undo `state_dict`."""
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)


def _matrices(module: nn.Module) -> list[nn.Parameter]:
    """Return the weights of linear maps and of the joint projections of attention."""
    return [
        parameter
        for name, parameter in module.named_parameters()
        if parameter.ndim == 2 and name.endswith("weight") and not any(small in name for small in SMALL_MAPS)
    ]


def _split(parameters: list[nn.Parameter], backbone: set[nn.Parameter]) -> list[dict[str, Any]]:
    return [
        {"params": [p for p in parameters if p not in backbone]},
        {"params": [p for p in parameters if p in backbone]},
    ]
