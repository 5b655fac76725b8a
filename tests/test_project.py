"""What holds for the project as a whole: directions of import, and imports that do nothing."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.support import REPOSITORY

PACKAGES = ("pipeline", "engines", "trackers", "training", "benchmarks", "xpose_client", "xpose_bridge")
ALLOWED = {
    "trackers": set(),
    "engines": set(),
    "pipeline": {"engines", "trackers", "xpose_client"},
    "training": {"engines", "pipeline.synthetic"},
    "clients/python/xpose_client": set(),
    "clients/ros2/xpose_bridge/xpose_bridge": {"xpose_client"},
}
# Inside pipeline: cli → {service, flow} → {sources, outputs} → frames.
PIPELINE_ALLOWED = {
    "sources": {"errors", "frames", "names", "recording", "synthetic"},
    "outputs": {"errors", "frames", "keys", "recording"},
    "flow": {"config", "errors", "frames", "keys", "recording", "sources", "outputs"},
    "service": {
        "config",
        "errors",
        "flow",
        "frames",
        "keys",
        "names",
        "options",
        "outputs",
        "prompting",
        "recording",
        "sources",
        "standard_output",
    },
    "fleet": {
        "config",
        "errors",
        "flow",
        "keys",
        "names",
        "options",
        "outputs",
        "service",
        "sources",
        "standard_output",
    },
    "synthetic": set(),
}
TRACKERS_LIBRARIES = {"numpy", "scipy", "filterpy"}


def imported_names(path: Path) -> set[str]:
    """Return the absolute dotted names that a file imports, at any depth of its code."""
    package = path.relative_to(REPOSITORY).with_suffix("").parts[:-1]
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module or "") if part)
            names.update(f"{module}.{alias.name}" for alias in node.names)
    return names


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_imports_go_in_the_allowed_direction_only(package: str) -> None:
    wrong = [
        f"{path.relative_to(REPOSITORY)} imports {name}"
        for path in sorted((REPOSITORY / package).rglob("*.py"))
        for name in sorted(imported_names(path))
        if name.split(".")[0] in PACKAGES
        and name.split(".")[0] != package.rpartition("/")[2]
        and not any(name == target or name.startswith(f"{target}.") for target in ALLOWED[package])
    ]
    assert not wrong


@pytest.mark.parametrize("folder", sorted(PIPELINE_ALLOWED))
def test_imports_inside_pipeline_go_in_one_direction(folder: str) -> None:
    wrong = [
        f"{path.relative_to(REPOSITORY)} imports {name}"
        for path in sorted((REPOSITORY / "pipeline" / folder).rglob("*.py"))
        for name in sorted(imported_names(path))
        if name.startswith("pipeline.") and name.split(".")[1] not in {folder, *PIPELINE_ALLOWED[folder]}
    ]
    assert not wrong


def test_client_needs_msgspec_and_pyzmq_only() -> None:
    paths = (REPOSITORY / "clients" / "python" / "xpose_client").rglob("*.py")
    roots = {name.split(".")[0] for path in paths for name in imported_names(path)}
    assert roots - {"msgspec", "zmq", "xpose_client"} <= set(sys.stdlib_module_names)


def test_trackers_need_no_library_beyond_numpy_scipy_and_filterpy() -> None:
    paths = (REPOSITORY / "trackers").rglob("*.py")
    roots = {name.split(".")[0] for path in paths for name in imported_names(path)}
    assert roots - TRACKERS_LIBRARIES - {"trackers"} <= set(sys.stdlib_module_names)


@pytest.mark.parametrize("module", ["xpose_client.subscriber", "xpose_client.messages", "trackers"])
def test_module_imports_without_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, timeout=60, check=False).returncode == 0


@pytest.mark.parametrize("setting", ["engine.thraeds=1", "engine.device=foo"])
def test_wrong_setting_is_reported_without_torch(setting: str) -> None:
    code = (
        "import sys\nfrom pipeline.cli import main\n"
        "try:\n    main(sys.argv[1:])\nfinally:\n    print('torch' in sys.modules)\n"
    )
    command = [sys.executable, "-c", code, "run", "--source", "testsrc://", "--set", setting]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2, ended.stderr
    assert ended.stdout == "False\n"
    assert ended.stderr.startswith(f"error: --set {setting}: ")
    assert len(ended.stderr.splitlines()) == 1


def test_importing_everything_asks_for_no_optional_library() -> None:
    """The packages import where TensorRT, cuda-core and the training extras are not installed."""
    optional = [
        "mcap",
        "foxglove_schemas_protobuf",
        "google.protobuf",
        "tensorrt",
        "torch_tensorrt",
        "cuda",
        "tensorboard",
        "faster_coco_eval",
        "matplotlib",
        "trackeval",
    ]
    modules = [
        ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")
        for package in ("pipeline", "engines", "trackers")
        for path in sorted((REPOSITORY / package).rglob("*.py"))
    ]
    code = (
        f"import sys, importlib\nfor name in {optional!r}: sys.modules[name] = None\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, timeout=120, check=False).returncode == 0


def test_every_dependency_of_the_application_is_imported_by_it() -> None:
    modules = {"opencv-python": "cv2", "pillow": "PIL", "pyzmq": "zmq"}
    modules["websockets"] = "uvicorn"  # which speaks WebSocket with it
    declared = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    packages = [re.split(r"[=<>]", requirement)[0] for requirement in declared]
    paths = [
        path
        for folder in ("pipeline", "engines", "trackers", "clients/python/xpose_client")
        for path in (REPOSITORY / folder).rglob("*.py")
    ]
    imported = {name.split(".")[0] for path in paths for name in imported_names(path)}
    imported |= {name for path in paths for name in re.findall(r'import_module\("(\w+)"\)', path.read_text())}
    assert [name for name in packages if modules.get(name, name.replace("-", "_")) not in imported] == []
