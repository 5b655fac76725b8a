"""Annotation files: what is clicked or copied is what `load_example` reads."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from engines import annotate
from engines.annotate import Marking, app, main, mark_by_clicking, write_annotation
from engines.errors import PromptError
from engines.skeletons import Skeleton, load_skeleton
from engines.visual_prompts import load_example
from tests.support import need_shared

MUG = Skeleton("mug", ("rim", "handle"), ((0, 1),))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "mug.png"
    cv2.imwrite(str(path), np.zeros((50, 100, 3), dtype=np.uint8))
    return path


def marking() -> Marking:
    return Marking("mug", MUG, np.zeros((50, 100, 3), dtype=np.uint8))


def test_clicks_become_an_example_that_reads_back(image: Path, tmp_path: Path) -> None:
    state = marking()
    assert "one corner" in state.hint
    state.click(60, 40)
    assert "opposite corner" in state.hint
    state.skip()  # a corner cannot be skipped
    state.click(10, 5)
    assert state.hint.startswith("rim")
    state.click(99, 9)
    state.undo()
    state.click(20.5, 7)
    assert not state.complete
    state.skip()
    assert state.complete
    assert "Enter" in state.hint
    state.click(1, 1)  # nothing left to place
    write_annotation(state.example(), "mug.png", tmp_path / "mug.json")
    example = load_example(image, tmp_path / "mug.json")
    assert (example.name, example.skeleton.keypoints, example.skeleton.edges) == ("mug", MUG.keypoints, MUG.edges)
    assert example.box_xyxy == (10, 5, 60, 40)
    np.testing.assert_array_equal(example.keypoints_K3, [[20.5, 7, 2], [0, 0, 0]])
    assert not list(tmp_path.glob("*.partial"))


def test_marking_nothing_is_refused() -> None:
    state = marking()
    state.click(1, 1)
    state.click(20, 20)
    state.skip()
    state.skip()
    with pytest.raises(PromptError, match="no visible keypoint"):
        state.example()


class Screen:
    """Stands for OpenCV's window: plays mouse clicks and keys."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, actions: list[tuple[int, int] | str]) -> None:
        self.actions = iter(actions)
        self.titles: list[str] = []
        self.mouse: Callable[..., None] = lambda *_: None
        monkeypatch.setenv("DISPLAY", ":0")
        for name, stand_in in {
            "namedWindow": lambda *_: None,
            "setMouseCallback": lambda _, callback: setattr(self, "mouse", callback),
            "getWindowProperty": lambda *_: 1.0,
            "imshow": lambda _, picture: self.check(picture),
            "setWindowTitle": lambda _, title: self.titles.append(title),
            "waitKey": lambda _: self.act(),
            "destroyAllWindows": lambda: self.titles.append("closed"),
        }.items():
            monkeypatch.setattr(annotate.cv2, name, stand_in)

    def check(self, picture: np.ndarray) -> None:
        assert picture.shape == (500, 1000, 3)  # the longer side fills the window

    def act(self) -> int:
        action = next(self.actions)
        if isinstance(action, str):
            return {"enter": 13, "escape": 27, "undo": 8}.get(action) or ord(action)
        self.mouse(cv2.EVENT_LBUTTONDOWN, *action, 0, None)
        return -1


def test_the_window_places_clicks_in_image_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen(monkeypatch, [(100, 50), (600, 400), "enter", (200, 300), "s", "undo", "s", "enter"])
    example = mark_by_clicking(marking())
    assert example is not None
    np.testing.assert_allclose(example.box_xyxy, (10.05, 5.05, 60.05, 40.05))
    np.testing.assert_allclose(example.keypoints_K3, [[20.05, 30.05, 2], [0, 0, 0]], rtol=1e-5)
    assert screen.titles[-1] == "closed"


def test_escape_cancels(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen(monkeypatch, [(100, 50), "escape"])
    assert mark_by_clicking(marking()) is None
    assert screen.titles[-1] == "closed"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems always have a display")
def test_without_a_display_clicking_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(PromptError, match="needs a display"):
        mark_by_clicking(marking())


def test_one_object_of_a_coco_file_is_copied(tmp_path: Path) -> None:
    coco = need_shared("data/unikpt_samples/coco/test_coco_open.json")
    content = json.loads(coco.read_text(encoding="utf-8"))
    annotation = next(entry for entry in content["annotations"] if entry["num_keypoints"] > 5)
    record = next(entry for entry in content["images"] if entry["id"] == annotation["image_id"])
    (image,) = coco.parent.rglob(record["file_name"])
    out = tmp_path / "me.json"
    options = ["--annotation-id", str(annotation["id"])]
    result = CliRunner().invoke(app, ["from-coco", str(coco), str(image), str(out), *options])
    assert result.exit_code == 0, result.output
    example = load_example(image, out)
    assert example.skeleton is load_skeleton("person")
    np.testing.assert_allclose(example.keypoints_K3.reshape(-1), annotation["keypoints"])
    with pytest.raises(PromptError, match="has 0 annotations"):
        load_example(image, coco, annotation_id="-1")


def test_the_command_clicks_and_writes(image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Screen(monkeypatch, [(100, 50), (600, 400), (200, 300), (250, 300), "enter"])
    out = tmp_path / "mug.json"
    arguments = ["click", str(image), str(out), "--name", "mug", "--keypoints", "rim,handle"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert load_example(image, out).name == "mug"
    Screen(monkeypatch, ["escape"])
    cancelled = CliRunner().invoke(app, [*arguments[:2], str(tmp_path / "other.json"), *arguments[3:]])
    assert cancelled.exit_code == 1
    assert not (tmp_path / "other.json").exists()


def test_errors_of_the_command_are_one_line(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["annotate", "from-coco", str(tmp_path / "no.json"), str(image), "out.json"])
    with pytest.raises(SystemExit) as raised:
        main()
    assert raised.value.code == 2
    assert capsys.readouterr().err.strip().count("\n") == 0


def test_an_unwritable_place_is_a_clear_error(tmp_path: Path) -> None:
    state = marking()
    for x in (1, 20, 5, 6):
        state.click(x, x)
    with pytest.raises(PromptError, match=r"cannot write .*nowhere"):
        write_annotation(state.example(), "mug.png", tmp_path / "nowhere" / "mug.json")
