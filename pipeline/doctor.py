"""Reports what this machine has, and what this means for the pipeline."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

_CPU_FLAGS = {
    "avx2": "256-bit vectors",
    "avx512f": "512-bit vectors",
    "avx512_bf16": "fast bfloat16",
    "amx_bf16": "very fast bfloat16 matrix products",
}
_DECODERS = ("h264", "hevc", "av1", "vp9", "mjpeg", "mpeg4")


@dataclass(frozen=True)
class Finding:
    """One row of the report: what was examined, what was found, and what this means."""

    what: str
    found: str
    follows: str


def findings() -> list[Finding]:
    """Examine everything that affects how the pipeline runs here."""
    looks: Sequence[Callable[[], Finding]] = (
        _cpu,
        _cpu_flags,
        _memory,
        _compiler,
        _torch,
        _openvino,
        _gpu,
        _tensorrt,
        _codecs,
        _weights,
    )
    return [look() for look in looks]


def print_report(console: Console) -> None:
    """Print the findings as a table."""
    from rich.table import Table

    table = Table(show_edge=False, pad_edge=False)
    for column in ("what", "found", "what follows"):
        table.add_column(column, overflow="fold")
    for finding in findings():
        table.add_row(finding.what, finding.found, finding.follows)
    console.print(table)


def _cpu() -> Finding:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    name = next((line.partition(":")[2].strip() for line in cpuinfo() if line.startswith("model name")), "")
    return Finding(
        "processor",
        f"{name or platform.machine()}, {usable} usable cores, Python {platform.python_version()}",
        "inference uses all of them; --set engine.threads=N uses fewer",
    )


def _cpu_flags() -> Finding:
    flags = next((set(line.partition(":")[2].split()) for line in cpuinfo() if line.startswith("flags")), set())
    present = [name for name in _CPU_FLAGS if name in flags]
    fast = {"avx512_bf16", "amx_bf16"} & set(present)
    return Finding(
        "vector units",
        ", ".join(f"{name} ({_CPU_FLAGS[name]})" for name in present) or "none that matters",
        "bf16 pays on this processor" if fast else "keep engine.precision at auto or fp32",
    )


def _memory() -> Finding:
    total_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return Finding(
        "memory", f"{total_gib:.1f} GiB", "enough" if total_gib >= 4 else "may be too little for swin-t and swin-l"
    )


def _compiler() -> Finding:
    compiler = next((found for name in ("c++", "g++", "clang++") if (found := shutil.which(name))), None)
    if compiler:
        return Finding("C++ compiler", compiler, "the fast CPU kernel is compiled on first use")
    return Finding("C++ compiler", "none", "the plain CPU kernel is used; install g++ for the fast one")


def _torch() -> Finding:
    import torch

    return Finding("PyTorch", f"{torch.__version__}, {torch.get_num_threads()} threads", "the eager backend runs")


def _openvino() -> Finding:
    found = _version("openvino")
    if found is None:
        return Finding("OpenVINO", "none", "the processor runs plain PyTorch; pip install openvino for more speed")
    from engines.backends.openvino import is_fast_in_bfloat16
    from engines.errors import BackendError

    try:
        precision = "bf16, if it is close enough to PyTorch" if is_fast_in_bfloat16() else "fp32"
    except BackendError as error:
        return Finding("OpenVINO", found, str(error))
    return Finding("OpenVINO", found, f"compiled engines compute in {precision}; a small one is built on first use")


def _gpu() -> Finding:
    import torch

    if not torch.cuda.is_available():
        return Finding("NVIDIA GPU", "none that PyTorch sees", "inference runs on the processor")
    name, capability = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
    memory_gib = torch.cuda.get_device_properties(0).total_memory / 2**30
    return Finding(
        "NVIDIA GPU", f"{name}, sm_{capability[0]}{capability[1]}, {memory_gib:.0f} GiB", "inference runs on it"
    )


def _tensorrt() -> Finding:
    """Ask the functions that `run` and `build-engine` ask."""
    from engines.backends.tensorrt_api import import_tensorrt, import_torch_tensorrt
    from engines.errors import BackendError

    packages = ("tensorrt", "tensorrt_cu13_bindings", "tensorrt_cu13_libs", "torch_tensorrt")
    found = ", ".join(f"{name} {version}" for name in packages if (version := _version(name)))
    try:
        import_tensorrt()
    except BackendError as error:
        return Finding("TensorRT", found or "none", str(error))
    try:
        import_torch_tensorrt()
    except BackendError as error:
        return Finding("TensorRT", found, f"engines can run where there is a GPU, and not be built: {error}")
    if _version("tensorrt_cu13_libs") is None:
        return Finding("TensorRT", found, "its builder library is missing; pip install tensorrt")
    return Finding("TensorRT", found, "engines can be built and run where there is a GPU")


def _codecs() -> Finding:
    import av

    decoders = [name for name in _DECODERS if name in av.codecs_available]
    encoder = "libx264" in av.codecs_available
    return Finding(
        "codecs",
        f"PyAV {av.__version__}: decodes {', '.join(decoders)}; {'encodes' if encoder else 'does not encode'} H.264",
        "--video works" if encoder else "--video fails; pip install a PyAV that has libx264",
    )


def _weights() -> Finding:
    from engines.checkpoint import default_weights

    present = [name for name in ("nano", "swin-t") if default_weights(name).is_file()]
    if not present:
        return Finding("weights", "none", "run the command fetch-weights, or try with --weights random")
    sizes = ", ".join(f"{name} ({default_weights(name).stat().st_size / 2**20:.0f} MiB)" for name in present)
    return Finding("weights", sizes, " and ".join(f"--model {name}" for name in present))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def cpuinfo() -> list[str]:
    """Return the lines of Linux's description of the processors; none elsewhere."""
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []
