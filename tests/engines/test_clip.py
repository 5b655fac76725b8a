"""The tokenizer, both towers against the original's numbers, and the properties of keypoint tokens."""

import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from engines.clip import (
    CONTEXT_TOKENS,
    Clip,
    ClipConfig,
    TowerConfig,
    load_clip,
    sine_code,
    tokenize,
)
from engines.errors import CheckpointError, PromptError
from tests.engines.fill import fill_tensor, key_table
from tests.support import need_shared

TINY = ClipConfig(text=TowerConfig(width=32, layers=2, heads=2), vision=TowerConfig(width=48, layers=2, heads=3))


@pytest.fixture(params=[False, True], ids=["alone", "marks are seen"])
def tiny(request: pytest.FixtureRequest) -> Clip:
    torch.manual_seed(0)
    clip = Clip(replace(TINY, marks_are_seen=request.param)).double()
    for name, parameter in clip.named_parameters():  # default biases are zero and would hide errors
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)
    return clip


def prompt_parts(
    clip: Clip, keypoints: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, nn.Linear, torch.Tensor]:
    width = clip.config.vision.width
    pixels = torch.randn(2, 3, 224, 224, dtype=torch.float64)
    points = torch.rand(2, keypoints, 2, dtype=torch.float64)
    visible = torch.ones(2, keypoints, dtype=torch.bool)
    return (
        pixels,
        points,
        visible,
        nn.Linear(256, width).double(),
        torch.randn(1, width, dtype=torch.float64),
    )


def tokens_of(text: str) -> list[int]:
    return [int(token) for token in tokenize([text])[0] if token]


def test_tokens_of_the_check_values() -> None:
    assert tokens_of("a photo of person") == [49406, 320, 1125, 539, 2533, 49407]
    assert tokens_of("a photo of face") == [49406, 320, 1125, 539, 1710, 49407]
    knuckle = [49406, 320, 1125, 539, 18674, 568, 874, 42023, 49407]
    assert tokens_of("a photo of thumb's first knuckle") == knuckle
    assert tokens_of("a photo of thumb’s first knuckle") == knuckle
    assert tokens_of("  A  photo of &amp;amp; ") == tokens_of("a photo of &")


def test_another_tokenizers_special_words_are_plain_text() -> None:
    """instant-clip-tokenizer turns this spelling into the start token; CLIP knows it not."""
    assert tokens_of("<start_of_text> x")[1] != 49406


def test_tokens_are_bit_equal_to_the_originals() -> None:
    golden = np.load(need_shared("golden/clip_text.npz"))
    prompts = json.loads(golden["prompts"].tobytes())
    np.testing.assert_array_equal(tokenize(prompts).numpy(), golden["tokens"])


def test_a_text_longer_than_the_context_is_an_error() -> None:
    assert tokenize(["dog " * (CONTEXT_TOKENS - 2)]).shape == (1, CONTEXT_TOKENS)
    with pytest.raises(PromptError, match="78 tokens, allowed are 77"):
        tokenize(["dog " * (CONTEXT_TOKENS - 1)])


def test_text_tower_gives_the_originals_numbers() -> None:
    golden = np.load(need_shared("golden/clip_text.npz"))
    with torch.device("meta"):
        clip = Clip(ClipConfig.vit_b_32())
    text_keys = [key for key in clip.state_dict() if not key.startswith("visual.")]
    clip.visual = nn.Identity()
    clip = clip.to_empty(device="cpu")
    clip.load_state_dict(
        {key: fill_tensor(4, f"clip_model.{key}", tuple(clip.state_dict()[key].shape)) for key in text_keys}
    )
    tokens = torch.from_numpy(golden["tokens"].astype(np.int64))[torch.from_numpy(golden["emb_index"])]
    with torch.no_grad():
        np.testing.assert_allclose(clip.encode_text(tokens), golden["emb"], atol=1e-5, rtol=1e-5)
        np.testing.assert_allclose(clip.double().encode_text(tokens), golden["emb_f64"], atol=1e-10, rtol=1e-10)


def test_parameter_names_and_shapes_are_the_official_ones() -> None:
    official = {
        key.removeprefix("clip_model."): shape
        for key, (shape, *_) in key_table().items()
        if key.startswith("clip_model.")
    }
    with torch.device("meta"):
        own = Clip(ClipConfig.vit_b_32()).state_dict()
    assert set(own) == set(official)
    for key, tensor in own.items():
        assert tuple(tensor.shape) == official[key], key


def test_text_padding_changes_nothing(tiny: Clip) -> None:
    short, long = tokenize(["a mug"]), tokenize(["a mug", "a photo of a very old mug with a chipped rim"])
    torch.testing.assert_close(tiny.encode_text(short), tiny.encode_text(long)[:1], rtol=0, atol=1e-12)


def test_the_object_vector_sees_marked_points_only_where_configured(tiny: Clip) -> None:
    pixels, points, visible, pos_proj, padding = prompt_parts(tiny, 5)
    alone, none = tiny.encode_visual_prompt(pixels, points[:, :0], visible[:, :0], pos_proj, padding)
    with_points, vectors = tiny.encode_visual_prompt(pixels, points, visible, pos_proj, padding)
    assert none.shape == (2, 0, 512)
    assert vectors.shape == (2, 5, 512)
    if tiny.config.marks_are_seen:
        assert (with_points - alone).abs().amax(1).min() > 1e-3
    else:
        torch.testing.assert_close(with_points, alone, rtol=0, atol=1e-10)


def test_keypoints_may_come_in_any_order(tiny: Clip) -> None:
    pixels, points, visible, pos_proj, padding = prompt_parts(tiny, 5)
    order = torch.tensor([3, 0, 4, 1, 2])
    _, straight = tiny.encode_visual_prompt(pixels, points, visible, pos_proj, padding)
    _, permuted = tiny.encode_visual_prompt(pixels, points[:, order], visible, pos_proj, padding)
    torch.testing.assert_close(permuted, straight[:, order], rtol=0, atol=1e-10)
    assert (straight[:, 0] - straight[:, 1]).abs().max() > 1e-3  # positions do matter


def test_coordinates_of_an_invisible_point_are_not_looked_at(tiny: Clip) -> None:
    pixels, points, visible, pos_proj, padding = prompt_parts(tiny, 3)
    visible[:, 1] = False
    moved = points.clone()
    moved[:, 1] = float("nan")
    _, before = tiny.encode_visual_prompt(pixels, points, visible, pos_proj, padding)
    _, after = tiny.encode_visual_prompt(pixels, moved, visible, pos_proj, padding)
    torch.testing.assert_close(after, before, rtol=0, atol=0)


def test_slots_that_are_not_marked_change_no_other(tiny: Clip) -> None:
    pixels, points, visible, pos_proj, padding = prompt_parts(tiny, 5)
    visible[:, 3:] = False
    object_of_few, few = tiny.encode_visual_prompt(pixels, points[:, :3], visible[:, :3], pos_proj, padding)
    object_of_many, many = tiny.encode_visual_prompt(pixels, points, visible, pos_proj, padding)
    torch.testing.assert_close(many[:, :3], few, rtol=0, atol=1e-10)
    torch.testing.assert_close(object_of_many, object_of_few, rtol=0, atol=1e-10)


def test_marked_points_see_each_other_only_where_configured(tiny: Clip) -> None:
    pixels, points, visible, pos_proj, padding = prompt_parts(tiny, 3)
    _, before = tiny.encode_visual_prompt(pixels, points, visible, pos_proj, padding)
    points[:, 2] = points[:, 2].flip(0)
    _, after = tiny.encode_visual_prompt(pixels, points, visible, pos_proj, padding)
    assert ((after[:, :2] - before[:, :2]).abs().max() > 1e-3) == tiny.config.marks_are_seen


def test_visual_prompts_teach_every_part_they_pass_through(tiny: Clip) -> None:
    pixels, points, visible, pos_proj, padding = prompt_parts(tiny, 3)
    visible[0, 0] = False
    points[0, 0] = float("nan")
    padding.requires_grad_()
    object_N512, keypoints_NK512 = tiny.encode_visual_prompt(pixels, points, visible, pos_proj, padding)
    (object_N512.square().sum() + keypoints_NK512.square().sum()).backward()
    for tensor in (padding, *pos_proj.parameters(), *tiny.visual.parameters()):
        assert tensor.grad is not None
        assert torch.isfinite(tensor.grad).all()
        assert tensor.grad.abs().max() > 0


def test_sine_code_puts_y_first() -> None:
    code = sine_code(torch.tensor([[[0.25, 0.5]]], dtype=torch.float64), 256)[0, 0]
    torch.testing.assert_close(code[:4], torch.tensor([0, -1, 0.408751, -0.912646]).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(code[128:132], torch.tensor([1, 0, 0.977918, 0.208991]).double(), atol=1e-6, rtol=0)


def test_nano_towers_fit_their_share_of_the_file() -> None:
    """24 MiB of half precision hold 12.5 M numbers; the network itself takes about 6 M of them."""
    with torch.device("meta"):
        clip = Clip(ClipConfig.nano())
    assert sum(parameter.numel() for parameter in clip.parameters()) < 6e6


def test_openais_archive_loads(tiny: Clip, tmp_path: Path) -> None:
    class Archive(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for key, value in tiny.state_dict().items():
                parent: nn.Module = self
                *folders, leaf = key.split(".")
                for folder in folders:
                    if folder not in dict(parent.named_children()):
                        parent.add_module(folder, nn.Module())
                    parent = parent.get_submodule(folder)
                parent.register_parameter(leaf, nn.Parameter(value.half()))
            self.register_buffer("context_length", torch.tensor(77))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(Archive()), str(tmp_path / "ViT-B-32.pt"))
    fresh = Clip(TINY)
    assert load_clip(fresh, tmp_path / "ViT-B-32.pt") == {"text", "visual"}
    expected = tiny.float().state_dict()
    for key, value in fresh.state_dict().items():
        torch.testing.assert_close(value, expected[key].half().float(), rtol=0, atol=0)


def test_towers_load_one_by_one_and_whole(tiny: Clip) -> None:
    state = tiny.state_dict()
    visual = {f"clip_model.{key}": value for key, value in state.items() if key.startswith("visual.")}
    assert load_clip(Clip(TINY), visual) == {"visual"}
    with pytest.raises(CheckpointError, match="lacks 1 keys of CLIP's visual tower"):
        load_clip(Clip(TINY), {key: value for key, value in visual.items() if key != "clip_model.visual.proj"})
    with pytest.raises(CheckpointError, match="unexpected"):
        load_clip(Clip(TINY), {"head.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="shape"):
        load_clip(Clip(ClipConfig(text=TINY.text, vision=TowerConfig(64, 2, 2))), visual)


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 truncated"])
def test_a_file_that_is_no_archive_is_one_clear_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "broken.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"broken\.pt"):
        load_clip(Clip(TINY), tmp_path / "broken.pt")
    with pytest.raises(CheckpointError, match=r"absent\.pt"):
        load_clip(Clip(TINY), tmp_path / "absent.pt")
