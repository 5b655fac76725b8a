"""Both wheels, built and installed into fresh environments, as `pip install .` and `pip install clients/python` do."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from tests.support import REPOSITORY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SHIPPED = ("pipeline", "engines", "trackers", "configs")
BUILD = ("wheel", "--quiet", "--no-deps", "--no-build-isolation")


def run(*command: str | Path, folder: Path, status: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a command outside the repository, with nothing of it on Python's path."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command], cwd=folder, env=environment, capture_output=True, text=True, timeout=240,
        check=False,
    )  # fmt: skip
    assert done.returncode == status, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The application's wheel, built from a copy so that nothing is left in the repository."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "checkout"
    for name in (*SHIPPED, "clients"):
        shutil.copytree(REPOSITORY / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "build"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, copy)
    run(sys.executable, "-m", "pip", *BUILD, "--wheel-dir", folder, copy, folder=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of a fresh environment with the application.

    The wheel is really installed. Its dependencies are gigabytes, so they are borrowed from the tests' environment.
    """
    folder = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "venv", "--without-pip", folder / "env", folder=folder)
    python = folder / "env" / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", wheel, folder=folder)
    (packages,) = (folder / "env" / "lib").glob("python3.*/site-packages")
    (packages / "borrowed.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")
    return folder / "env" / "bin"


def test_wheel_holds_every_file_that_runs_and_no_training_and_no_tests(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    tracked = subprocess.run(
        ["git", "ls-files", *SHIPPED, "clients/python/xpose_client"],
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    assert held == {name.removeprefix("clients/python/") for name in tracked if not name.endswith("/README.md")}


def test_wheel_is_never_uploaded_and_says_what_the_weights_are_for(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        text = archive.read(metadata).decode()
        terms = archive.read("engines/weights/LICENSE").decode()
    assert "Classifier: Private :: Do Not Upload" in text
    assert "Requires-Python: <3.13,>=3.11" in text
    assert not re.search(r"^Requires-Dist: xpose", text, re.MULTILINE)
    assert "for research use only" in terms


def test_installed_command_runs_with_its_configs_and_weights_in_any_folder(installed: Path, tmp_path: Path) -> None:
    source = "testsrc://?frames=3&categories=person&size=320x240"
    poses = tmp_path / "poses.jsonl"
    command = ("run", "--source", source, "--prompt", "person", "--config", "offline", "--poses", poses)
    run(installed / "xpose-stream", *command, "--set", "engine.backend=eager", folder=tmp_path)
    messages = [json.loads(line) for line in poses.read_text().splitlines()]
    assert [message["frame"] for message in messages] == [0, 1, 2]
    where = "import pipeline, engines, xpose_client; print(pipeline.__file__, engines.__file__, xpose_client.__file__)"
    paths = run(installed / "python", "-c", where, folder=tmp_path).stdout.split()
    assert all(path.startswith(str(installed.parent)) for path in paths)


def test_installed_command_calls_itself_by_its_name(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "Usage: xpose-stream" in run(installed / "xpose-stream", "--help", folder=tmp_path).stdout
    command = ("run", "--source", "testsrc://?frames=1", "--model", "swin-t")
    monkeypatch.setenv("XPOSE_WEIGHTS", str(tmp_path / "no weights here"))
    refused = run(installed / "xpose-stream", *command, folder=tmp_path, status=2).stderr
    assert "`xpose-stream fetch-weights`" in refused
    assert "run_pipeline.py" not in refused
