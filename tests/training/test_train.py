"""What the training command says about the processor."""

import msgspec
import pytest
import torch

from training.recipe import Phase, Recipe
from training.train import warn_of_slow_bf16

RECIPE = Recipe(model="nano", phases=[Phase(1, (64, 64), 1, 1e-3, 1e-3)], sources=[])


@pytest.mark.parametrize(
    ("capability", "precision", "optimiser", "warned"),
    [
        ("AVX2", "bf16", "muon", ['precision = "fp32"', 'optimiser = "adamw"']),
        ("AVX2", "bf16", "adamw", ['precision = "fp32"']),
        ("AVX2", "fp32", "adamw", []),
        ("AVX512", "bf16", "muon", []),
    ],
)
def test_a_processor_without_fast_bf16_is_told_what_to_change(
    capability: str,
    precision: str,
    optimiser: str,
    warned: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    warn_of_slow_bf16(msgspec.structs.replace(RECIPE, precision=precision, optimiser=optimiser))
    assert len(caplog.messages) == len(warned)
    assert all(text in message for text, message in zip(warned, caplog.messages, strict=True))
