"""Weights between two snapshots."""

from pathlib import Path

import pytest
import torch

from engines.checkpoint import load_weights, save_weights, trained_categories
from training.blend import main


def test_the_command_writes_the_weights_between_and_the_seconds_categories(tmp_path: Path) -> None:
    first, second, between = (tmp_path / f"{name}.safetensors" for name in ("first", "second", "between"))
    model, clip = load_weights("nano", "random")
    save_weights(first, model, clip, {"person": "person"})
    with torch.no_grad():
        for parameter in (*model.parameters(), *clip.parameters()):
            parameter.add_(1.0)
    save_weights(second, model, clip, {"chair": "chair"})
    main(first, second, between, share=0.25)
    assert trained_categories("nano", str(between)) == {"chair": "chair"}
    for old, new in zip(load_weights("nano", str(first)), load_weights("nano", str(between)), strict=True):
        moved = new.state_dict()
        for name, _ in old.named_parameters():
            torch.testing.assert_close(moved[name], old.state_dict()[name] + 0.25, atol=0.01, rtol=0.002)


def test_a_file_that_is_absent_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="absent"):
        main(tmp_path / "absent.safetensors", tmp_path / "absent.safetensors", tmp_path / "out.safetensors")
