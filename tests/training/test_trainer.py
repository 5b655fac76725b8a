"""The trainer end to end on a tiny network: it learns, resumes exactly, and agrees across processes."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from engines.skeletons import load_skeleton
from pipeline.synthetic import SceneConfig
from tests.support import REPOSITORY
from training.data.cache import write_cache
from training.data.synthetic import read_synthetic
from training.distil import load_distil_recipe
from training.recipe import Recipe, load_recipe, model_configs
from training.state import Trainee
from training.trainer import Trainer

TINY = """
model = "nano"
model_overrides = { embed_dim = 8, depths = [1, 1, 1], num_heads = [1, 1, 1], window = 4, hidden_dim = 32, \
heads = 2, encoder_layers = 1, decoder_layers = 3, box_layers = 1, queries = 12, groups = 3, feedforward = 32, \
text_feedforward = 32, text_heads = 2, fusion_dim = 32, fusion_heads = 1 }
seed = 4
optimiser = "muon"
warmup_steps = 2
spread_steps = 3
snapshot_steps = 0
evaluate_steps = 3
evaluate_cache = "scenes"
evaluate_images = 2
precision = "fp32"
[denoising]
queries = 8
[weights]
dense = 1.0
crowding = 1.0
scored_groups = true
[[sources]]
cache = "scenes"
weight = 1.0
[[phases]]
steps = 2
size_hw = [32, 32]
batch = 2
lr = 1e-3
lr_end = 1e-3
decoder_share = 0.0
[[phases]]
steps = 1
size_hw = [64, 48]
batch = 2
lr = 1e-3
lr_end = 1e-3
detached_decoder = true
[[phases]]
steps = 1
size_hw = [64, 48]
batch = 4
lr = 1e-3
lr_end = 1e-3
learns = "image_tower"
[[phases]]
steps = 3
size_hw = [64, 48]
batch = 2
lr = 1e-3
lr_end = 1e-4
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four scenes and a tiny recipe beside them."""
    folder = tmp_path_factory.mktemp("data")
    scenes = SceneConfig(size_hw=(48, 48), categories=("chair", "table"), instances=(1, 2))
    write_cache(folder / "scenes", read_synthetic(scenes, 0, 6), 6, 48)
    (folder / "tiny.toml").write_text(TINY)
    return folder


def losses(folder: Path, rank: int = 0) -> list[float]:
    """The total loss of every logged step."""
    lines = (folder / f"log{rank}.jsonl").read_text().splitlines()
    return [json.loads(line)["total"] for line in lines]


def test_fresh_heads_look_at_one_neighbour_each(data: Path) -> None:
    recipe = load_recipe(data / "tiny.toml")
    overrides = recipe.model_overrides | {"num_heads": [4, 4, 4]}
    attention = (
        Trainee(msgspec.structs.replace(recipe, model_overrides=overrides)).model.backbone[0].layers[0].blocks[0].attn
    )
    bias_TTM = attention.relative_position_bias_table[attention.relative_position_index]
    seen_M = bias_TTM[4 * 1 + 2].argmax(0)  # from row 1, column 2 of a window of 4 x 4
    assert [divmod(int(place), 4) for place in seen_M] == [(0, 2), (2, 2), (1, 1), (1, 3)]


def test_an_interrupted_run_goes_on_to_the_very_same_numbers(data: Path, tmp_path: Path) -> None:
    recipe = load_recipe(data / "tiny.toml")
    whole = Trainer(recipe, data, tmp_path / "whole")
    whole.run()
    Trainer(recipe, data, tmp_path / "cut").run(stop_at=3)
    resumed = Trainer(recipe, data, tmp_path / "cut", workers=2)  # who draws the canvases makes no difference
    assert resumed.step == 3
    resumed.run()
    assert list((tmp_path / "cut" / "tensorboard").iterdir())
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    for key, value in whole.trainee.state_dict().items():
        assert torch.equal(value, resumed.trainee.state_dict()[key]), key
    for key, value in whole.average.tensors.items():
        assert torch.equal(value, resumed.average.tensors[key]), key


def test_a_run_starts_from_the_average_of_another_and_its_training_only_head(data: Path, tmp_path: Path) -> None:
    recipe = load_recipe(data / "tiny.toml")
    first = Trainer(recipe, data, tmp_path / "first")
    first.run(stop_at=3)
    from_first = msgspec.structs.replace(recipe, seed=5, start_from=str(tmp_path / "first" / "checkpoint.pt"))
    second = Trainer(from_first, data, tmp_path / "second")
    assert second.step == 0
    assert not torch.equal(first.average.tensors["dense.query.weight"], first.trainee.dense.query.weight)
    for key, value in second.trainee.state_dict().items():
        assert torch.equal(value, first.average.tensors[key]), key


@pytest.mark.parametrize("content", [b"", b"no checkpoint"])
def test_a_start_that_is_no_checkpoint_is_refused_by_name(data: Path, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.pt"
    path.write_bytes(content)
    recipe = msgspec.structs.replace(load_recipe(data / "tiny.toml"), start_from=str(path))
    with pytest.raises(ValueError, match=r"broken\.pt"):
        Trainer(recipe, data, tmp_path / "run")


@pytest.mark.parametrize("content", [{"model": {}}, torch.zeros(2)])
def test_a_start_without_averaged_weights_is_refused_with_what_to_give(
    data: Path, tmp_path: Path, content: object
) -> None:
    torch.save(content, tmp_path / "other.pt")
    recipe = msgspec.structs.replace(load_recipe(data / "tiny.toml"), start_from=str(tmp_path / "other.pt"))
    with pytest.raises(ValueError, match=r"other\.pt: it is no checkpoint\.pt"):
        Trainer(recipe, data, tmp_path / "run")


def test_every_trainable_tensor_learns_from_a_step_with_all_modalities(data: Path, tmp_path: Path) -> None:
    recipe = load_recipe(data / "tiny.toml")
    trainer = Trainer(msgspec.structs.replace(recipe, phases=recipe.phases[3:]), data, tmp_path / "run")
    trainer.run()
    silent = {name for name, parameter in trainer.trainee.named_parameters() if parameter.grad is None}
    assert silent == {"clip_model.logit_scale"}


def test_a_detached_decoder_teaches_the_image_features_nothing(data: Path, tmp_path: Path) -> None:
    recipe = load_recipe(data / "tiny.toml")
    silent = msgspec.structs.replace(recipe.weights, dense=0.0, alignment=0.0)
    trainer = Trainer(
        msgspec.structs.replace(recipe, phases=recipe.phases[1:2], weights=silent), data, tmp_path / "run"
    )
    model = trainer.trainee.model
    with torch.no_grad():
        for fusion in model.transformer.encoder.fusion_layers:
            fusion.get_parameter("gamma_l").zero_()  # else the classes carry a little from the decoder to the image
    trainer.train_step(trainer.draws(1))
    features = [*model.backbone.parameters(), *model.input_proj.parameters()]
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in features)
    assert all(parameter.grad.any() for parameter in model.transformer.decoder.layers[0].linear1.parameters())


def test_the_image_tower_alone_learns_to_name_examples(data: Path, tmp_path: Path) -> None:
    recipe = load_recipe(data / "tiny.toml")
    phase = msgspec.structs.replace(recipe.phases[2], steps=30, lr_end=1e-3)
    trainer = Trainer(msgspec.structs.replace(recipe, phases=[phase]), data, tmp_path / "run")
    before = {key: value.clone() for key, value in trainer.trainee.state_dict().items()}
    with torch.no_grad():
        trainer.average.tensors["model.bbox_embed.0.layers.0.weight"].zero_()  # as an average that lags behind
    losses = []
    trainer.run(lambda step, log: losses.append(log["total"]))
    changed = {key for key, value in trainer.trainee.state_dict().items() if not torch.equal(value, before[key])}
    assert changed
    assert all(key.startswith(("clip_model.visual.", "model.pos_proj.", "model.padding.")) for key in changed)
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    assert not trainer.average.tensors["model.bbox_embed.0.layers.0.weight"].any()


def test_the_training_only_head_alone_learns(data: Path, tmp_path: Path) -> None:
    recipe = load_recipe(data / "tiny.toml")
    phase = msgspec.structs.replace(recipe.phases[0], steps=30, lr=1e-2, lr_end=1e-2, learns="head")
    trainer = Trainer(msgspec.structs.replace(recipe, phases=[phase]), data, tmp_path / "run")
    before = {key: value.clone() for key, value in trainer.trainee.state_dict().items()}
    losses = []
    trainer.run(lambda step, log: losses.append(log["dense"]))
    changed = {key for key, value in trainer.trainee.state_dict().items() if not torch.equal(value, before[key])}
    assert changed
    assert all(key.startswith("dense.") for key in changed)
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])


def test_two_processes_share_their_gradients(data: Path, tmp_path: Path) -> None:
    """Both end with the same weights, though they drew different images."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "training.train", str(data / "tiny.toml"), "--data", str(data)]
    workers = [
        subprocess.Popen(
            [*command, "--out", str(tmp_path / f"out{rank}"), "--stop-at", "4"],
            cwd=REPOSITORY,
            env=os.environ
            | {"WORLD_SIZE": "2", "RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for rank in (0, 1)
    ]
    outputs = [worker.communicate(timeout=120)[0].decode() for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], outputs
    assert losses(tmp_path / "out0", 0) != losses(tmp_path / "out1", 1)
    weights = [json.loads((tmp_path / f"out{r}" / f"log{r}.jsonl").read_text().splitlines()[-1]) for r in (0, 1)]
    assert weights[0]["gradient"] == pytest.approx(weights[1]["gradient"], rel=1e-4)


def test_a_recipe_with_an_unknown_key_or_model_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(TINY.replace("warmup_steps", "warmup_stepz"))
    with pytest.raises(ValueError, match="warmup_stepz"):
        load_recipe(path)
    path.write_text(TINY.replace('precision = "fp32"', 'precision = "fp8"'))
    with pytest.raises(ValueError, match="fp8"):
        load_recipe(path)
    path.write_text(TINY.replace('optimiser = "muon"', 'optimiser = "sgd"'))
    with pytest.raises(ValueError, match="sgd"):
        load_recipe(path)
    path.write_text(TINY.replace('learns = "image_tower"', 'learns = "tail"'))
    with pytest.raises(ValueError, match="tail"):
        load_recipe(path)
    path.write_text(TINY.replace('learns = "image_tower"', 'learns = "head"').replace("dense = 1.0", "dense = 0.0"))
    with pytest.raises(ValueError, match=r"weights\.dense"):
        load_recipe(path)


RECIPES = REPOSITORY / "training" / "recipes"


@pytest.mark.parametrize("path", [RECIPES / "ablation.toml", *sorted(RECIPES.glob("nano*.toml"))], ids=lambda p: p.stem)
def test_the_recipes_of_the_repository_are_valid(path: Path) -> None:
    recipe = load_distil_recipe(path) if path.stem == "nano_lite0_backbone" else load_recipe(path)
    if isinstance(recipe, Recipe):
        model_configs(recipe)
    photos = {"lspet_train", "lspet_taught", "coco_train", "no_people_train", "livestock_train"}
    buildable = {*photos, *(settings.stem for settings in RECIPES.glob("synthetic_*.toml")), "ablation_train"}
    assert {source.cache for source in recipe.sources} <= buildable


def test_the_keypoint_list_and_the_recipe_of_the_readme_are_valid(tmp_path: Path) -> None:
    text = (REPOSITORY / "training" / "README.md").read_text(encoding="utf-8")
    skeleton, recipe = (tmp_path / name for name in ("newt.toml", "newts_recipe.toml"))
    blocks = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    for path, block in zip((skeleton, recipe), blocks, strict=True):
        path.write_text(block, encoding="utf-8")
    assert load_skeleton(skeleton).name == "newt"
    model_configs(load_recipe(recipe))


def test_the_learning_rate_warms_up_and_goes_to_its_end(data: Path) -> None:
    recipe = load_recipe(data / "tiny.toml")
    rates = [recipe.learning_rate(step) for step in range(recipe.steps)]
    np.testing.assert_allclose(rates[:3], [5e-4, 1e-3, 1e-3])
    assert rates[-1] < rates[-2] < rates[2]
