"""Stands in for TensorRT where there is neither a GPU nor TensorRT's builder, and computes what an engine would.

TensorRT's Python bindings, its lean runtime (with the real plugin registry) and torch-tensorrt are ordinary packages.
The builder library is not. `run_offline` starts a process in which a small C library (`nvinfer_shim.c`) defines the
builder's nine symbols, and in which `activate` makes `import tensorrt` and `import torch_tensorrt` work.

There, `tensorrt.Builder` is `network.Builder`. Its network takes the layers that our networks need, holds TensorRT's
documented rules (strong typing, ranks, broadcasting, types of indices, shapes of masks, limits of top-k), refuses
anything else, and computes each layer from its own attributes and weights. So torch-tensorrt's converters and ours run
as they would on a GPU, and their numbers can be compared with PyTorch's.

    layer.py      what all layers share; pointwise.py, movement.py, sums.py, plugin.py: the layers
    network.py    network, builder, engine, plan and runtime
    build.py      builds an exported program by `engines.tensorrt_build`
    networks.py   whole networks against PyTorch; layer_checks.py: single layers against numpy

What it cannot show: which kernels TensorRT picks, how fast they are, and what TensorRT refuses for a reason that its
documentation does not give.

Sources: docstrings of the TensorRT 11 bindings; TensorRT's operator reference,
https://docs.nvidia.com/deeplearning/tensorrt/latest/_static/operators/index.html.
"""

import functools
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.support import lacks

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
LIBRARIES = ("nvinfer", "nvonnxparser", "nvinfer_plugin")
PACKAGES = ("tensorrt_bindings", "tensorrt_lean_libs", "torch_tensorrt")
MARKER = "OFFLINE-RESULT "


@functools.cache
def _shim_folder() -> Path:
    """Compile the stand-ins once per process."""
    folder = Path(tempfile.mkdtemp(prefix="tensorrt-shim-"))
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        lacks("no C compiler: TensorRT's stand-ins need one")
    for name in LIBRARIES:
        soname = f"lib{name}.so.11"
        command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(folder / soname), str(HERE / "nvinfer_shim.c")]
        subprocess.run([*command, "-ldl", f"-Wl,-soname,{soname}"], check=True, timeout=60)
    return folder


def environment() -> dict[str, str]:
    """Return the variables that a process needs before it calls `activate`; skip where a package is missing."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        lacks(f"{', '.join(missing)} not installed: `make test` installs them")
    lean = importlib.util.find_spec("tensorrt_lean_libs")
    assert lean is not None
    assert lean.submodule_search_locations is not None
    return {
        **os.environ,
        "LD_LIBRARY_PATH": f"{_shim_folder()}:{os.environ.get('LD_LIBRARY_PATH', '')}",
        "TRT_LEAN_LIB": str(Path(lean.submodule_search_locations[0]) / "libnvinfer_lean.so.11"),
        "PYTHONPATH": str(REPOSITORY),
    }


def run_offline(module: str, *arguments: str, timeout_s: float = 1500.0) -> Any:
    """Run `python -m module arguments…` with TensorRT in place and return what it handed to `report`."""
    finished = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=REPOSITORY, env=environment(), capture_output=True, text=True, timeout=timeout_s,
    )  # fmt: skip
    lines = [line for line in finished.stdout.splitlines() if line.startswith(MARKER)]
    assert finished.returncode == 0, finished.stderr[-4000:] or finished.stdout[-4000:]
    assert lines, f"{module} reported nothing: {finished.stdout[-2000:]}"
    return json.loads(lines[-1].removeprefix(MARKER))


def report(result: object) -> None:
    """Hand a result, which must be JSON, to the `run_offline` that started this process."""
    print(MARKER + json.dumps(result), flush=True)
