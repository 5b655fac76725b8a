"""Words to classes, classes to tensors, and the cache between."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from engines.clip import Clip, ClipConfig, TowerConfig
from engines.errors import PromptError
from engines.prompts import (
    PromptClass,
    PromptEncoder,
    TextCache,
    average_keypoints,
    keypoint_text,
    object_text,
    parse_prompt,
    require_trained,
)
from engines.skeletons import load_skeleton
from engines.visual_prompts import Example

TINY = ClipConfig(text=TowerConfig(width=32, layers=1, heads=2), vision=TowerConfig(width=32, layers=1, heads=2))


def parse(prompt: str, keypoints: str | None = None, **options: object) -> tuple[PromptClass, ...]:
    return parse_prompt(prompt, keypoints, **{"max_classes": 8, "max_keypoints": 68, **options})  # type: ignore[arg-type]


def mug_example(seed: int = 0, visible: tuple[int, int] = (2, 2)) -> Example:
    rng = np.random.default_rng(seed)
    rgb = rng.integers(0, 256, (80, 100, 3), dtype=np.uint8)
    points = np.array([[30, 40, visible[0]], [60, 20, visible[1]]], dtype=np.float32)
    skeleton = parse("mug", "rim,handle")[0].skeleton
    return Example("mug", skeleton, rgb, (20.0, 10.0, 70.0, 60.0), points)


@pytest.fixture
def encoder(tmp_path: Path) -> PromptEncoder:
    torch.manual_seed(0)
    width = TINY.vision.width
    return PromptEncoder(Clip(TINY), nn.Linear(256, width), torch.randn(1, width), tmp_path)


def test_sentences_are_the_trained_ones() -> None:
    assert object_text("Short_Sleeve-top") == "a photo of short sleeve top"
    assert keypoint_text("Left_front-paw") == "a photo of left front-paw"


def test_known_categories_species_and_garments_find_their_lists() -> None:
    classes = parse("Person, dog ,short sleeve top,Vinegar Fly")
    assert [prompt_class.name for prompt_class in classes] == ["Person", "dog", "short sleeve top", "Vinegar Fly"]
    lists = [prompt_class.skeleton.name for prompt_class in classes]
    assert lists == ["person", "animal_in_AP10K", "short_sleeved_shirt", "fly"]


def test_a_list_may_be_chosen_for_any_object(tmp_path: Path) -> None:
    path = tmp_path / "cup.toml"
    path.write_text('name = "cup"\nkeypoints = ["rim"]\n', encoding="utf-8")
    horse, cup = parse(f"horse@animal_face,my cup@{path}")
    assert (horse.name, horse.skeleton.name) == ("horse", "animal_face")
    assert (cup.name, cup.skeleton.keypoints) == ("my cup", ("rim",))


def test_free_words_for_object_and_keypoints() -> None:
    (mug,) = parse("mug", "rim, handle")
    assert mug.skeleton.keypoints == ("rim", "handle")
    mug, dog = parse("mug,dog@animal", "rim,handle")
    assert len(mug.skeleton.keypoints) == 2
    assert len(dog.skeleton.keypoints) == 17


@pytest.mark.parametrize(
    ("prompt", "keypoints", "says"),
    [
        ("", None, "empty item"),
        ("person,", None, "empty item"),
        ("person, ,dog", None, "empty item"),
        ("person@", None, "name@list"),
        ("@person", None, "name@list"),
        ("dog,Dog", None, "occurs twice"),
        ("horse@animal,horse@animal_face", None, "occurs twice"),
        ("hose", None, r"no keypoint list is known for 'hose'; nearest: horse"),
        ("left_foot", None, "no keypoint list is known"),
        ("horse@animal_in_AP10", None, "nearest: animal_in_AP10K"),
        ("horse@nowhere.toml", None, r"nowhere\.toml"),
        ("mug", "rim,,handle", "empty name"),
        ("mug", "rim,rim", "occurs twice"),
        ("mug", "", "empty name"),
        ("mug", ",".join(f"point {i}" for i in range(69)), "69 names"),
    ],
)
def test_bad_prompts_are_clear_errors(prompt: str, keypoints: str | None, says: str) -> None:
    with pytest.raises(PromptError, match=says):
        parse(prompt, keypoints)


@pytest.mark.parametrize(
    ("prompt", "keypoints"),
    [
        ("x" * 100_000, None),
        ("x" * 100_000 + ",", None),
        ("x" * 100_000 + "@", None),
        ("mug@" + "x" * 100_000, None),
        ("mug@/" + "x" * 100_000, None),
        ("x" * 100_000 + ",dog," + "x" * 100_000, "rim"),
        ("mug", "x" * 100_000 + "," + "x" * 100_000),
    ],
)
def test_errors_repeat_only_the_beginning_of_a_long_prompt(prompt: str, keypoints: str | None) -> None:
    with pytest.raises(PromptError, match=r"x{30,}…") as caught:
        parse(prompt, keypoints)
    assert len(str(caught.value)) < 1200


def test_errors_about_an_untrained_class_repeat_only_its_beginning() -> None:
    for prompt, keypoints in (("x" * 100_000, "nose"), ("person", "x" * 100_000)):
        with pytest.raises(PromptError, match=f"'{'x' * 40}…'") as caught:
            require_trained(parse(prompt, keypoints), {"person": "person"})
        assert len(str(caught.value)) < 400


def test_more_than_the_capacity_is_an_error() -> None:
    with pytest.raises(PromptError, match="3 classes are asked for, this engine takes 1 to 2"):
        parse("person,dog,cat", max_classes=2)
    with pytest.raises(PromptError, match="'face' has 68 keypoints, this engine takes 17"):
        parse("face", max_keypoints=17)


def test_a_model_with_trained_categories_refuses_other_words() -> None:
    trained = {"person": "person", "dog": "animal_in_AP10K"}
    require_trained(parse("Person,dog"), trained)
    require_trained(parse("person", "left knee,root of tail"), trained)
    with pytest.raises(PromptError, match="not trained on 'horse'; its classes are person, dog"):
        require_trained(parse("horse"), trained)
    with pytest.raises(
        PromptError, match="keypoint 'rim' of 'dog'; it knows those of the lists person, animal_in_AP10K"
    ):
        require_trained(parse("dog", "nose,rim"), trained)
    require_trained(parse("mug", examples=[mug_example()]), trained)
    with pytest.raises(PromptError, match="not trained on 'mug'"):
        require_trained(parse("mug", examples=[mug_example()], object_from="mean"), trained)
    with pytest.raises(PromptError, match="keypoint 'rim' of 'mug'"):
        require_trained(parse("mug", examples=[mug_example()], keypoints_from="text"), trained)


def test_an_example_brings_its_own_keypoints() -> None:
    (mug,) = parse("mug", examples=[mug_example(), mug_example(1)])
    assert mug.skeleton.keypoints == ("rim", "handle")
    assert (len(mug.examples), mug.object_from, mug.keypoints_from) == (2, "example", "example")
    with pytest.raises(PromptError, match="belongs to none of the classes person"):
        parse("person", examples=[mug_example()])
    with pytest.raises(PromptError, match="no example image"):
        PromptClass("mug", mug.skeleton, (), "mean", "text")
    with pytest.raises(PromptError, match="come from text, example, mean, got 'sound'"):
        parse("mug", examples=[mug_example()], object_from="sound")


def test_an_examples_keypoints_are_matched_by_name() -> None:
    (mug,) = parse("mug", "handle,bottom", examples=[mug_example()])
    np.testing.assert_array_equal(mug.examples[0].keypoints_K3, [[60, 20, 2], [0, 0, 0]])
    with pytest.raises(PromptError, match="no visible keypoint of the example"):
        parse("mug", "lid", examples=[mug_example()])


def test_tensors_are_padded_to_the_capacity(encoder: PromptEncoder) -> None:
    tensors = encoder.encode(parse("person,table"), max_classes=4, max_keypoints=20)
    assert tensors.objects_C512.shape == (4, 512)
    assert tensors.keypoints_CK512.shape == (4, 20, 512)
    assert tensors.object_valid_C.tolist() == [True, True, False, False]
    assert tensors.keypoint_valid_CK.sum(dim=1).tolist() == [17, 8, 0, 0]
    assert tensors.keypoints_CK512[~tensors.keypoint_valid_CK].abs().max() == 0
    alone = encoder.encode(parse("table"), max_classes=1, max_keypoints=8)
    torch.testing.assert_close(alone.objects_C512[0], tensors.objects_C512[1], rtol=0, atol=1e-6)
    torch.testing.assert_close(alone.keypoints_CK512[0], tensors.keypoints_CK512[1, :8], rtol=0, atol=1e-6)


def test_encoding_over_the_capacity_is_an_error(encoder: PromptEncoder) -> None:
    with pytest.raises(PromptError, match="2 classes are asked for, this engine takes 1 to 1"):
        encoder.encode(parse("person,dog"), 1, 68)
    with pytest.raises(PromptError, match="'person' has 17 keypoints, this engine takes 16"):
        encoder.encode(parse("person"), 1, 16)
    with pytest.raises(PromptError, match="0 classes are asked for"):
        encoder.encode((), 1, 1)


def test_object_and_keypoints_come_each_from_text_example_or_mean(encoder: PromptEncoder) -> None:
    def encode(object_from: str, keypoints_from: str) -> tuple[torch.Tensor, torch.Tensor]:
        classes = parse("mug", examples=[mug_example()], object_from=object_from, keypoints_from=keypoints_from)
        tensors = encoder.encode(classes, 1, 2)
        return tensors.objects_C512[0], tensors.keypoints_CK512[0]

    text, example, mixed, mean = (
        encode("text", "text"),
        encode("example", "example"),
        encode("example", "text"),
        encode("mean", "mean"),
    )
    assert (text[0] - example[0]).abs().max() > 1e-3
    torch.testing.assert_close(mixed, (example[0], text[1]))
    torch.testing.assert_close(mean, ((text[0] + example[0]) / 2, (text[1] + example[1]) / 2))


def test_several_examples_average_each_keypoint_where_it_is_visible(encoder: PromptEncoder) -> None:
    vectors = torch.tensor([[[1.0], [2.0], [3.0]], [[3.0], [6.0], [9.0]]])
    visible = torch.tensor([[True, True, False], [True, False, False]])
    assert average_keypoints(vectors, visible).flatten().tolist() == [2.0, 2.0, 6.0]

    def encode(*examples: Example) -> tuple[torch.Tensor, torch.Tensor]:
        tensors = encoder.encode(parse("mug", examples=examples), 1, 2)
        return tensors.objects_C512[0], tensors.keypoints_CK512[0]

    first, second = encode(mug_example(0)), encode(mug_example(1, visible=(2, 0)))
    both = encode(mug_example(0), mug_example(1, visible=(2, 0)))
    torch.testing.assert_close(both[0], (first[0] + second[0]) / 2)
    torch.testing.assert_close(both[1][0], (first[1][0] + second[1][0]) / 2)
    torch.testing.assert_close(both[1][1], first[1][1])


class Counting(Clip):
    """Counts the texts that the tower really encodes."""

    encoded = 0

    def encode_text(self, tokens_NT: torch.Tensor) -> torch.Tensor:
        self.encoded += len(tokens_NT)
        return super().encode_text(tokens_NT)


def test_a_cached_text_is_not_encoded_again(tmp_path: Path) -> None:
    torch.manual_seed(0)
    clip = Counting(TINY)
    first = TextCache(clip, tmp_path).encode(["a", "b", "a"])
    assert clip.encoded == 2
    torch.testing.assert_close(TextCache(clip, tmp_path).encode(["a", "b", "a"]), first, rtol=0, atol=0)
    assert clip.encoded == 2
    with torch.no_grad():
        clip.text_projection += 1
    TextCache(clip, tmp_path).encode(["a"])  # other weights, other entries
    assert clip.encoded == 3


def test_a_damaged_cache_entry_is_ignored_and_rewritten(tmp_path: Path) -> None:
    clip = Counting(TINY)
    first = TextCache(clip, tmp_path).encode(["a"])
    (entry,) = (path for path in tmp_path.rglob("*") if path.is_file())
    whole = entry.read_bytes()
    for damaged in (b"", whole[:100], whole[:50] + b"\x00\x01" + whole[52:], b"x" + whole):
        entry.write_bytes(damaged)
        torch.testing.assert_close(TextCache(clip, tmp_path).encode(["a"]), first, rtol=0, atol=0)
        assert entry.read_bytes() == whole


def test_the_cache_follows_xdg_and_survives_an_unwritable_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    clip = Counting(TINY)
    TextCache(clip).encode(["a"])
    assert list((tmp_path / "xpose-stream" / "text").rglob("*"))
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING):
        assert TextCache(clip).encode(["a", "b"]).shape == (2, 512)
    assert len(caplog.records) == 1


def test_a_text_is_read_from_disk_once(tmp_path: Path) -> None:
    clip = Counting(TINY)
    cache = TextCache(clip, tmp_path)
    first = cache.encode(["a", "b"])
    for entry in tmp_path.rglob("*"):
        if entry.is_file():
            entry.unlink()
    torch.testing.assert_close(cache.encode(["b", "a"]), first.flip(0), rtol=0, atol=0)
    assert clip.encoded == 2


def test_a_prompt_class_of_a_published_list_carries_its_drawing() -> None:
    (person,) = parse("person")
    assert person.skeleton == load_skeleton("person")
    assert person.skeleton.edges
