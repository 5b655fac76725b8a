"""A new backbone learns an old one's features; the rest of the network stays as it was."""

import itertools
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from engines.checkpoint import load_weights, save_weights, trained_categories
from pipeline.synthetic import SceneConfig
from tests.engines.test_efficientnet import published
from training import distil
from training.data.cache import write_cache
from training.data.stream import SourceConfig
from training.data.synthetic import read_synthetic
from training.distil import Distillation, DistilRecipe, load_distil_recipe, main
from training.recipe import Recipe
from training.state import Trainee, load_start


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DistilRecipe:
    """nano with random weights teaches on four scenes; the ImageNet weights are random ones."""
    weights = published(torch.Generator().manual_seed(1))
    monkeypatch.setattr(distil, "published_weights", lambda: weights)
    seconds = itertools.count()  # a clock that goes on by one second a step
    monkeypatch.setattr(distil, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    model, clip = load_weights("nano", "random")
    save_weights(tmp_path / "old.safetensors", model, clip, {"chair": "chair"}, torch.float32)
    scenes = SceneConfig(size_hw=(64, 64), categories=("chair",), instances=(1, 1))
    write_cache(tmp_path / "scenes", read_synthetic(scenes, 0, 4), 4, 64)
    pupil = {"backbone": "efficientnet_lite0"}
    sources = [SourceConfig("scenes", 1.0)]
    return DistilRecipe(str(tmp_path / "old.safetensors"), pupil, sources, 12 / 60, (64, 64), 2, 1e-3)


def test_the_pupil_keeps_the_rest_of_the_network_and_comes_nearer_to_the_features(
    recipe: DistilRecipe, tmp_path: Path
) -> None:
    losses = distil.distil(recipe, tmp_path, tmp_path / "new.safetensors")
    assert len(losses) == 10
    assert min(losses[-3:]) < losses[0]
    went_on = Recipe([], [], model_overrides=recipe.pupil_model, start_from=str(tmp_path / "new.safetensors"))
    trainee = Trainee(went_on)
    load_start(trainee, went_on)
    teacher = Distillation(recipe).teacher
    for name in ("transformer.level_embed", "projection.layers.0.weight"):
        torch.testing.assert_close(trainee.model.get_parameter(name), teacher.get_parameter(name))
    assert trained_categories("nano", str(tmp_path / "new.safetensors")) == {"chair": "chair"}


def test_a_recipe_with_an_unknown_field_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text('teacher = "a"\nminuets = 3\n')
    with pytest.raises(ValueError, match=r"r\.toml.*minuets"):
        load_distil_recipe(tmp_path / "r.toml")


def test_a_missing_teacher_ends_the_command_in_one_line(recipe: DistilRecipe, tmp_path: Path) -> None:
    text = '[pupil_model]\n[[sources]]\ncache = "scenes"\nweight = 1.0\n'
    fields = 'teacher = "gone.safetensors"\nminutes = 0.01\nsize_hw = [64, 64]\nbatch = 1\nlr = 1e-3\n'
    (tmp_path / "r.toml").write_text(fields + text)
    with pytest.raises(SystemExit, match="gone"):
        main(tmp_path / "r.toml", tmp_path, tmp_path / "new.safetensors")
