"""`python -m training.unikpt`: what it prints, writes and refuses."""

import json
from pathlib import Path

import cv2
import numpy as np
import typer
from typer.testing import CliRunner

from training.unikpt.__main__ import main
from training.unikpt.index import load_index, save_index
from training.unikpt.schema import InstanceRecord, Record

COMMAND = typer.Typer()
COMMAND.command()(main)


def _own(folder: Path, names: list[str]) -> tuple[Path, Path]:
    for number in (1, 2):
        cv2.imwrite(str(folder / f"{number}.png"), np.zeros((40, 50, 3), np.uint8))
    (folder / "3.png").write_bytes(b"no image")
    images = [{"id": number, "file_name": f"{number}.png", "width": 50, "height": 40} for number in (1, 2, 3)]
    keypoints = [10, 10, 2, 20, 20, 1]
    annotations = [
        {"id": number, "image_id": number, "category_id": 1, "bbox": [5, 5, 20, 20], "keypoints": keypoints}
        for number in (1, 2, 3)
    ]
    categories = [{"id": 1, "name": "Newt", "keypoints": names}]
    path, skeleton = folder / "newts.json", folder / "newt.toml"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    skeleton.write_text('name = "newt"\nkeypoints = ["tail tip", "snout"]\n')
    return path, skeleton


def test_own_file_to_index_and_pictures(tmp_path: Path) -> None:
    path, skeleton = _own(tmp_path, ["snout", "tail_tip"])
    index, pictures = tmp_path / "index.jsonl", tmp_path / "pictures"
    arguments = ["--coco", str(path), "--skeleton", str(skeleton), "--index", str(index), "--overlay", str(pictures)]
    result = CliRunner().invoke(COMMAND, [*arguments, "--check-images"])
    assert result.exit_code == 0, result.output
    assert "image unreadable" in result.output
    assert "3.png" in result.output
    records = list(load_index(index))
    assert [record.image_path.name for record in records] == ["1.png", "2.png"]
    np.testing.assert_array_equal(records[0].instances[0].keypoints_K3, [[20, 20, 1], [10, 10, 2]])
    assert records[0].instances[0].category == "newt"
    assert len(list(pictures.glob("own_*.png"))) == 2


def test_a_refused_file_is_told_once_and_ends_with_1(tmp_path: Path) -> None:
    path, skeleton = _own(tmp_path, ["snout", "tale tip"])
    result = CliRunner().invoke(COMMAND, ["--coco", str(path), "--skeleton", str(skeleton)])
    assert result.exit_code == 1
    assert "'tale tip' is not in the list 'newt'; nearest: tail tip" in result.output
    assert "Traceback" not in result.output


def test_problems_file_lists_every_problem(tmp_path: Path) -> None:
    path, skeleton = _own(tmp_path, ["snout", "tail tip"])
    (tmp_path / "2.png").unlink()
    problems = tmp_path / "problems.txt"
    CliRunner().invoke(COMMAND, ["--coco", str(path), "--skeleton", str(skeleton), "--problems", str(problems)])
    assert problems.read_text().count("\n") == 1
    assert "newts.json: image missing, id 2" in problems.read_text()


def test_nothing_given_and_unknown_names_are_refused(tmp_path: Path) -> None:
    assert CliRunner().invoke(COMMAND, []).exit_code == 2
    result = CliRunner().invoke(COMMAND, ["--root", str(tmp_path), "--only", "cocoo"])
    assert result.exit_code == 2
    assert "cocoo" in result.output
    path, _ = _own(tmp_path, ["snout", "tail tip"])
    assert CliRunner().invoke(COMMAND, ["--coco", str(path), "--skeleton", "no_such_list"]).exit_code == 2


def test_index_keeps_every_field(tmp_path: Path) -> None:
    keypoints_K3 = np.array([[1.25, 2.5, 2], [0, 0, 0]], np.float32)
    instance = InstanceRecord("cat", "person", (1.0, 2.0, 3.5, 4.0), keypoints_K3, 5.0, False, "9")
    record = Record("d", "val", Path("in/zip.jpg"), 20, 10, (instance,), Path("z.zip"))
    assert save_index(tmp_path / "i.jsonl", [record, record]) == 2
    back = list(load_index(tmp_path / "i.jsonl"))[1]
    np.testing.assert_array_equal(back.instances[0].keypoints_K3, keypoints_K3)
    assert back.to_dict() == record.to_dict()
    assert back.archive == Path("z.zip")
