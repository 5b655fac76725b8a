"""Skeleton files: the published lists byte for byte, and errors that help."""

from pathlib import Path

import pytest
import yaml

from engines.capacity import MAX_KEYPOINTS
from engines.errors import PromptError
from engines.skeletons import DEFAULT_SIGMA, known_skeletons, load_skeleton, skeletons_by_instance
from tests.support import need_shared


def test_the_28_published_lists_are_byte_exact() -> None:
    published = yaml.safe_load(need_shared("spec/prompts.yaml").read_text(encoding="utf-8"))["categories"]
    assert set(known_skeletons()) == set(published)
    assert len(published) == 28
    for name, facts in published.items():
        skeleton = load_skeleton(name)
        assert skeleton.name == name
        assert list(skeleton.keypoints) == facts["keypoints"]
        assert [list(edge) for edge in skeleton.edges] == (facts["skeleton"] or facts.get("skeleton_mmpose", []))
        assert [list(pair) for pair in skeleton.flip_pairs] == facts["flip_pairs"]["pairs"]
        values = None if facts["sigmas"] is None else facts["sigmas"]["values"]
        assert (None if skeleton.sigmas is None else list(skeleton.sigmas)) == values


def test_every_instance_name_of_the_published_prompts_finds_its_list() -> None:
    published = yaml.safe_load(need_shared("spec/prompts.yaml").read_text(encoding="utf-8"))["categories"]
    by_instance = skeletons_by_instance()
    for name, facts in published.items():
        for instance in [] if facts["instance_prompts"] == "any" else facts["instance_prompts"]:
            assert by_instance[instance.lower()].name == name
    assert by_instance["dog"].name == "animal_in_AP10K"
    assert by_instance["short sleeve top"].name == "short_sleeved_shirt"


def test_names_compare_without_case_and_separators() -> None:
    assert load_skeleton("Animal-in_ap10k") is load_skeleton("animal_in_AP10K")


def test_sigmas_fall_back_where_none_are_published() -> None:
    assert load_skeleton("table").sigmas is None
    assert load_skeleton("table").oks_sigmas == (DEFAULT_SIGMA,) * 8
    assert load_skeleton("person").oks_sigmas[0] == 0.026


def test_a_file_of_the_users_own_works_the_same(tmp_path: Path) -> None:
    path = tmp_path / "mug.toml"
    path.write_text('name = "mug"\nkeypoints = ["rim", "handle"]\nedges = [[0, 1]]\n', encoding="utf-8")
    mug = load_skeleton(path)
    assert mug.keypoints == ("rim", "handle")
    assert mug.edges == ((0, 1),)
    assert load_skeleton(str(path)) == mug


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('name = "a"\n', "keypoints"),
        ('name = "a"\nkeypoints = []\n', f"1 to {MAX_KEYPOINTS}"),
        (f'name = "a"\nkeypoints = {[f"k{i}" for i in range(69)]}\n', "69 names"),
        ('name = "a"\nkeypoints = ["x", "x"]\n', "occurs twice"),
        ('name = "a"\nkeypoints = ["x", " "]\n', "empty name"),
        ('name = "a"\nkeypoints = ["x", 3]\n', "keypoints"),
        ('name = "a"\nkeypoints = ["x", "y"]\nedges = [[0, 2]]\n', r"'edges': \[0, 2\].*0..1"),
        ('name = "a"\nkeypoints = ["x", "y"]\nedges = [[0]]\n', "edges"),
        ('name = "a"\nkeypoints = ["x", "y", "z"]\nflip_pairs = [[0, 1], [1, 2]]\n', "two pairs"),
        ('name = "a"\nkeypoints = ["x", "y"]\nsigmas = [0.1]\n', "need 2 positive numbers"),
        ('name = "a"\nkeypoints = ["x"]\nsigmas = [0.0]\n', "positive"),
        ('name = "a"\nkeypoints = ["x"]\nkeypoint = ["y"]\n', "unknown key 'keypoint'; nearest: keypoints"),
        ("name = \n", "not a TOML file"),
    ],
)
def test_errors_name_the_file_the_key_and_what_is_allowed(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(PromptError, match=says) as raised:
        load_skeleton(path)
    assert "wrong.toml" in str(raised.value)


def test_an_unknown_list_suggests_the_nearest() -> None:
    with pytest.raises(PromptError, match="nearest: animal_in_AP10K"):
        load_skeleton("animal_in_AP10")
    with pytest.raises(PromptError, match="cannot read"):
        load_skeleton("nowhere/at_all.toml")
