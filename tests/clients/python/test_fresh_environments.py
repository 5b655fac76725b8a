"""The client's wheel, installed alone, under every Python from 3.9 on that this machine has."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

TESTS = Path(__file__).resolve().parent
REPOSITORY = TESTS.parents[2]
OLDEST_MINOR = 9
RUN_EVERYWHERE = ("test_states.py", "test_subscriber.py", "test_vectors.py", "test_wire.py")


def pythons() -> dict[str, Path]:
    """Return an interpreter for each minor version from 3.9 on: of pyenv, and of the path."""
    found: dict[str, Path] = {}
    for path in sorted(Path.home().glob(".pyenv/versions/3.*/bin/python3")):
        minor = re.match(r"3\.(\d+)", path.parents[1].name)
        if minor and int(minor[1]) >= OLDEST_MINOR:
            found[f"3.{minor[1]}"] = path
    for minor_number in range(OLDEST_MINOR, 30):
        on_path = shutil.which(f"python3.{minor_number}")
        if on_path:
            found.setdefault(f"3.{minor_number}", Path(on_path))
    found.setdefault(f"3.{sys.version_info.minor}", Path(sys.executable))
    return found


def run(*command: str | Path, timeout_s: float = 200) -> str:
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=timeout_s, check=False, cwd=REPOSITORY
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The client's wheel, built from a copy so that nothing is left in the repository."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = shutil.copytree(REPOSITORY / "clients" / "python", folder / "client", ignore=shutil.ignore_patterns("build"))
    build = ("wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder)
    run(sys.executable, "-m", "pip", *build, copy)
    (built,) = folder.glob("*.whl")
    return built


def test_wheel_holds_the_package_its_types_and_its_licence_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(next(name for name in names if name.endswith("METADATA"))).decode()
    assert {"xpose_client/__init__.py", "xpose_client/py.typed"} <= names
    assert any(name.endswith("LICENSE") for name in names)
    assert {name.split("/")[0].split("-")[0] for name in names} == {"xpose_client"}
    needed = re.findall(r"^Requires-Dist: (\w+)", metadata, re.MULTILINE)
    assert sorted(needed) == ["msgspec", "pyzmq"]
    assert "Requires-Python: >=3.9" in metadata


@pytest.mark.parametrize("version", sorted(pythons(), key=lambda version: int(version[2:])))
def test_client_alone_passes_its_tests(version: str, wheel: Path, tmp_path: Path) -> None:
    run(pythons()[version], "-m", "venv", tmp_path / "env")
    python = tmp_path / "env" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wheel, "pytest", "pytest-timeout")
    where = run(python, "-I", "-c", "import xpose_client; print(xpose_client.__file__)")
    assert str(tmp_path) in where
    absent = "import importlib.util as u; print([n for n in ('numpy', 'torch') if u.find_spec(n)])"
    assert run(python, "-I", "-c", absent).strip() == "[]"
    options = ("-c", "/dev/null", "--rootdir", TESTS, "--confcutdir", TESTS, "--import-mode=importlib")
    print(run(python, "-W", "error", "-m", "pytest", "-q", *options, "-p", "no:cacheprovider",
              *(TESTS / name for name in RUN_EVERYWHERE)))  # fmt: skip
