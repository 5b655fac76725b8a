"""Muon against PyTorch's own."""

import copy
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from training.muon import Muon

SHAPES = ((24, 8), (8, 24), (24, 8), (16, 16))  # two tall ones and a wide one go together
RATE, MOMENTUM, DECAY = 0.02, 0.9, 0.1


def matrices() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def pytorch_muon(parameters: Sequence[nn.Parameter]) -> torch.optim.Muon:
    return torch.optim.Muon(parameters, lr=RATE, momentum=MOMENTUM, weight_decay=DECAY, adjust_lr_fn="match_rms_adamw")


def our_muon(parameters: list[nn.Parameter], dtype: torch.dtype) -> Muon:
    ours = Muon([{"params": parameters}], dtype, momentum=MOMENTUM, weight_decay=DECAY)
    ours.param_groups[0]["lr"] = RATE
    return ours


def give_gradients(parameters: Sequence[nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def run(optimiser: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], steps: range) -> None:
    for step in steps:
        give_gradients(parameters, step)
        optimiser.step()


@torch.no_grad()
def furthest(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """Largest distance of two matrices, as a share of how far the second moved from the start."""
    return max(float((x - y).norm() / (y - s).norm()) for x, y, s in zip(a, b, matrices(), strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_several_steps_are_those_of_pytorch_but_for_the_rounding_of_bf16(dtype: torch.dtype) -> None:
    expected, got = matrices(), matrices()
    run(pytorch_muon(expected), expected, range(5))
    run(our_muon(got, dtype), got, range(5))
    assert furthest(got, expected) < 0.02


def test_products_have_the_precision_that_is_asked_for() -> None:
    exact, got = matrices(), matrices()
    run(our_muon(exact, torch.float64), exact, range(5))
    run(our_muon(got, torch.float32), got, range(5))
    assert furthest(got, exact) < 1e-4  # bf16: 0.009


def test_the_state_is_that_of_pytorch_so_that_its_checkpoints_resume() -> None:
    expected = matrices()
    pytorch = pytorch_muon(expected)
    run(pytorch, expected, range(3))
    got = [nn.Parameter(parameter.detach().clone()) for parameter in expected]
    ours = our_muon(got, torch.bfloat16)
    ours.load_state_dict(copy.deepcopy(pytorch.state_dict()))
    run(pytorch, expected, range(3, 5))
    run(ours, got, range(3, 5))
    assert furthest(got, expected) < 0.02


def test_what_has_no_gradient_stands_still() -> None:
    parameters = matrices()
    ours = our_muon(parameters, torch.float32)
    give_gradients(parameters, 0)
    parameters[0].grad = None
    ours.step()
    moved = [not torch.equal(parameter, start) for parameter, start in zip(parameters, matrices(), strict=True)]
    assert moved == [False, True, True, True]


def test_only_matrices_are_taken() -> None:
    with pytest.raises(ValueError, match="2D"):
        our_muon([nn.Parameter(torch.zeros(3))], torch.float32)
