"""Weights load strictly, round-trip under all their names, and fail with a sentence that helps."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from engines.checkpoint import alias_names, load_official, load_weights, official_state_dict, save_weights
from engines.clip import Clip, ClipConfig
from engines.errors import CheckpointError
from engines.fetch import CLIP_FILE, OFFICIAL_FILE
from engines.xpose import XPose, XPoseConfig
from tests.engines.fill import key_table


@pytest.fixture(scope="module")
def swin_t() -> XPose:
    return XPose(XPoseConfig.swin_t())


@pytest.fixture(scope="module")
def clip() -> Clip:
    return Clip(ClipConfig.vit_b_32())


@pytest.fixture(scope="module")
def official(swin_t: XPose, clip: Clip) -> dict[str, Tensor]:
    """All 1,165 official keys."""
    return official_state_dict(swin_t, clip)


def test_names_and_shapes_are_the_official_ones(official: dict[str, Tensor]) -> None:
    table = key_table()
    assert {key: tuple(value.shape) for key, value in official.items()} == {key: row[0] for key, row in table.items()}
    for key, (_, dtype, canonical) in table.items():
        assert str(official[key].dtype) == f"torch.{dtype}"
        assert official[key].data_ptr() == official[canonical].data_ptr()


def test_a_shared_head_has_all_its_official_names() -> None:
    assert len(alias_names("bbox_embed.0.layers.1.bias", XPoseConfig.swin_t())) == 12
    assert len(alias_names("pose_embed.0.layers.1.bias", XPoseConfig.swin_t())) == 10
    assert len(alias_names("pose_hw_embed.0.layers.1.bias", XPoseConfig.swin_t())) == 8
    assert alias_names("transformer.level_embed", XPoseConfig.swin_t()) == ["transformer.level_embed"]


def test_a_wrapped_checkpoint_without_the_text_tower_loads(official: dict[str, Tensor], swin_t: XPose) -> None:
    released = {
        f"module.{key}": value
        for key, value in official.items()
        if not key.startswith("clip_model.") or key.startswith("clip_model.visual.")
    }
    assert len(released) == 1015
    model = XPose(XPoseConfig.swin_t())
    report = load_official(model, {"model": released})
    assert len(report.missing_clip_text) == 150
    assert len(report.clip) == 152
    for key, value in swin_t.state_dict().items():
        assert torch.equal(model.state_dict()[key], value)


def test_half_precision_files_keep_the_model_in_its_own_dtype(official: dict[str, Tensor]) -> None:
    halved = {key: value.half() if value.is_floating_point() else value for key, value in official.items()}
    model = XPose(XPoseConfig.swin_t())
    load_official(model, halved)
    assert model.get_parameter("transformer.level_embed").dtype == torch.float32


def without(key: str) -> Callable[[dict[str, Tensor]], None]:
    def damage(state: dict[str, Tensor]) -> None:
        del state[key]

    return damage


def changed(key: str, value: Tensor) -> Callable[[dict[str, Tensor]], None]:
    def damage(state: dict[str, Tensor]) -> None:
        state[key] = value

    return damage


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (without("transformer.level_embed"), r"1 missing \(transformer.level_embed\); 0 unexpected"),
        (without("bbox_embed.3.layers.0.bias"), r"1 missing \(bbox_embed.3.layers.0.bias\)"),
        (without("clip_model.visual.proj"), r"1 missing \(clip_model.visual.proj\)"),
        (changed("extra.weight", torch.zeros(1)), r"0 missing; 1 unexpected \(extra.weight\)"),
        (changed("transformer.level_embed", torch.zeros(5, 256)), r"level_embed is \[5, 256\], needed \[4, 256\]"),
        (
            changed("transformer.decoder.pose_embed.4.layers.2.bias", torch.ones(2)),
            "differs from pose_embed.0.layers.2.bias, but both name one shared head",
        ),
        (
            changed(
                "backbone.0.layers.0.blocks.0.attn.relative_position_index", torch.zeros(49, 49, dtype=torch.int64)
            ),
            "not the index that its window size implies",
        ),
    ],
)
def test_anything_else_is_an_error_that_lists_it(
    damage: Callable[[dict[str, Tensor]], None], words: str, official: dict[str, Tensor], swin_t: XPose
) -> None:
    state = dict(official)
    damage(state)
    with pytest.raises(CheckpointError, match=words):
        load_official(swin_t, state)


def test_another_model_is_refused(official: dict[str, Tensor]) -> None:
    with pytest.raises(CheckpointError, match="belongs to another model"):
        load_official(XPose(XPoseConfig.nano()), official)


def test_unreadable_files_are_named(tmp_path: Path, swin_t: XPose) -> None:
    whole, cut = tmp_path / "whole.pth", tmp_path / "cut.pth"
    torch.save({"model": {"a": torch.zeros(1000)}}, whole)
    cut.write_bytes(whole.read_bytes()[:2000])
    text, empty, folder = tmp_path / "text.pth", tmp_path / "empty.pth", tmp_path / "folder.pth"
    text.write_text("no weights\n")
    empty.touch()
    folder.mkdir()
    for path in (cut, text, empty, folder):
        with pytest.raises(CheckpointError, match=f"cannot read {path}"):
            load_official(swin_t, path)
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*fetch-weights"):
        load_official(swin_t, tmp_path / "absent.pth")
    with pytest.raises(CheckpointError, match="1 unexpected"):
        load_official(swin_t, whole)
    torch.save([1, 2], whole)
    with pytest.raises(CheckpointError, match="holds a list"):
        load_official(swin_t, whole)


def test_a_file_that_would_run_code_is_refused(tmp_path: Path, swin_t: XPose) -> None:
    path = tmp_path / "hostile.pth"
    torch.save({"model": {"a": Path("x")}}, path)
    with pytest.raises(CheckpointError, match="cannot read"):
        load_official(swin_t, path)


def test_official_weights_take_the_text_tower_from_openai(
    tmp_path: Path, official: dict[str, Tensor], clip: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XPOSE_WEIGHTS", str(tmp_path / "elsewhere"))
    released = {
        key: value
        for key, value in official.items()
        if not key.startswith("clip_model.") or key.startswith("clip_model.visual.")
    }
    path = tmp_path / OFFICIAL_FILE
    torch.save({"model": released}, path)
    with pytest.raises(CheckpointError, match=f"no {CLIP_FILE} beside"):
        load_weights("swin-t", str(path))
    torch.save(clip.state_dict() | {"input_resolution": torch.tensor(224)}, tmp_path / CLIP_FILE)
    model, loaded = load_weights("swin-t", str(path))
    assert not model.training
    assert torch.equal(loaded.state_dict()["text_projection"], clip.state_dict()["text_projection"])


def test_our_own_file_round_trips(tmp_path: Path) -> None:
    model, clip = load_weights("nano", "random")
    path = tmp_path / "nano.safetensors"
    save_weights(path, model, clip, dtype=torch.float32)
    again, clip_again = load_weights("nano", str(path))
    for module, copy in ((model, again), (clip, clip_again)):
        for key, value in module.state_dict().items():
            assert torch.equal(copy.state_dict()[key], value), key
    assert [file.name for file in tmp_path.iterdir()] == ["nano.safetensors"]
    with pytest.raises(CheckpointError, match="belongs to another model"):
        load_weights("swin-t", str(path))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="as safetensors"):
        load_weights("nano", str(path))


def test_random_weights_are_the_same_every_time_and_spare_the_global_generator() -> None:
    torch.manual_seed(5)
    first = load_weights("nano", "random")[0].state_dict()
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))
    for key, value in load_weights("nano", "random")[0].state_dict().items():
        assert torch.equal(first[key], value), key


def test_absent_weights_and_unknown_models_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XPOSE_WEIGHTS", str(tmp_path))
    with pytest.raises(CheckpointError, match="allowed are nano, swin-t, swin-l"):
        load_weights("swin-b", "random")
    with pytest.raises(CheckpointError, match=r"no weights at .*unipose_swint.pth: run .*fetch-weights"):
        load_weights("swin-t")
    with pytest.raises(CheckpointError, match="never released"):
        load_weights("swin-l")
    with pytest.raises(CheckpointError, match="no weights at"):
        load_weights("nano", str(tmp_path / "absent.safetensors"))
