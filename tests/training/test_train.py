"""What the training command says about the processor."""

import msgspec
import pytest
import torch

from training.recipe import Phase, Recipe
from training.train import warn_of_slow_bf16

RECIPE = Recipe(model="nano", phases=[Phase(1, (64, 64), 1, 1e-3, 1e-3)], sources=[])


@pytest.mark.parametrize(
    ("capability", "precision", "warned"), [("AVX2", "bf16", True), ("AVX2", "fp32", False), ("AVX512", "bf16", False)]
)
def test_a_processor_without_fast_bf16_is_told_what_to_change(
    capability: str, precision: str, warned: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    warn_of_slow_bf16(msgspec.structs.replace(RECIPE, precision=precision))
    assert ['precision = "fp32"' in message for message in caplog.messages] == [True] * warned
