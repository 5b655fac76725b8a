"""A new backbone learns an old one's features; the rest of the network stays as it was."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engines.checkpoint import load_weights, save_weights, trained_categories
from engines.clip import Clip, ClipConfig
from engines.xpose import XPose, XPoseConfig
from pipeline.synthetic import SceneConfig
from tests.engines.test_efficientnet import published
from training import distil
from training.data.cache import write_cache
from training.data.stream import SourceConfig
from training.data.synthetic import read_synthetic
from training.distil import Distillation, DistilRecipe, load_distil_recipe, main

SWIN = {"backbone": "swin", "embed_dim": 16, "depths": [1, 1, 1], "num_heads": [1, 1, 1], "window": 4}
SWIN |= {"level_stages": [1, 2]}


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DistilRecipe:
    """A small Swin teaches on four scenes; the ImageNet weights are random ones."""
    weights = published(torch.Generator().manual_seed(1))
    monkeypatch.setattr(distil, "published_weights", lambda: weights)
    torch.manual_seed(0)
    fields = {key: tuple(value) if isinstance(value, list) else value for key, value in SWIN.items()}
    teacher = XPose(replace(XPoseConfig.nano(), **fields))  # type: ignore[arg-type]
    save_weights(tmp_path / "old.safetensors", teacher, Clip(ClipConfig.nano()), {"chair": "chair"}, torch.float32)
    scenes = SceneConfig(size_hw=(64, 64), categories=("chair",), instances=(1, 1))
    write_cache(tmp_path / "scenes", read_synthetic(scenes, 0, 4), 4, 64)
    return DistilRecipe(str(tmp_path / "old.safetensors"), SWIN, [SourceConfig("scenes", 1.0)], 0.03, (64, 64), 2, 1e-3)


def test_the_pupil_keeps_the_rest_of_the_network_and_comes_nearer_to_the_features(
    recipe: DistilRecipe, tmp_path: Path
) -> None:
    losses = distil.distil(recipe, tmp_path, tmp_path / "new.safetensors")
    assert losses[-1] < losses[0]
    model, _ = load_weights("nano", str(tmp_path / "new.safetensors"))
    teacher = Distillation(recipe).teacher
    for name in ("transformer.level_embed", "projection.layers.0.weight"):
        torch.testing.assert_close(model.get_parameter(name), teacher.get_parameter(name))
    assert trained_categories("nano", str(tmp_path / "new.safetensors")) == {"chair": "chair"}


def test_a_recipe_with_an_unknown_field_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text('teacher = "a"\nminuets = 3\n')
    with pytest.raises(ValueError, match=r"r\.toml.*minuets"):
        load_distil_recipe(tmp_path / "r.toml")


def test_a_missing_teacher_ends_the_command_in_one_line(recipe: DistilRecipe, tmp_path: Path) -> None:
    text = '[teacher_model]\n[[sources]]\ncache = "scenes"\nweight = 1.0\n'
    fields = 'teacher = "gone.safetensors"\nminutes = 0.01\nsize_hw = [64, 64]\nbatch = 1\nlr = 1e-3\n'
    (tmp_path / "r.toml").write_text(fields + text)
    with pytest.raises(SystemExit, match="gone"):
        main(tmp_path / "r.toml", tmp_path, tmp_path / "new.safetensors")
