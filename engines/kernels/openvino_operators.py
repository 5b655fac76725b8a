"""The compiled CPU kernels as operators of OpenVINO, which else runs attention from dozens of small operators.

The library is compiled on first use against the headers that OpenVINO's package holds, and kept like that of
`engines.kernels.cpu`. Where that cannot be done, networks are exported in their standard form and run slower.
"""

import ctypes
import functools
import logging
import subprocess
from pathlib import Path

from engines.kernels.compiler import build_library, find_compiler, reason_of

_LOG = logging.getLogger(__name__)
_SOURCES = (
    "openvino_operators.cpp",
    "deform_attn_cpu.cpp",
    "window_attn_cpu.cpp",
    "attention_cpu.h",
    "deform_attn.h",
    "lanes.h",
)
_LIBRARIES = ("libopenvino.so.*", "libopenvino_onnx_frontend.so.*", "libtbb.so.*")
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp-simd", "-Wno-psabi")


@functools.cache
def operators_library(package: Path, version: str) -> Path | None:
    """Return the library that defines the operators; None, with a warning in the log, where it cannot be compiled.

    The library stays loaded until the process ends: compiled networks hold its code.

    Args:
        package: folder of the package `openvino`, which must have been imported.
        version: of OpenVINO.
    """
    compiler = find_compiler()
    if compiler is None:
        _LOG.warning(
            "no C++ compiler found (g++, clang++ or $CXX): OpenVINO runs attention in its standard, slower form"
        )
        return None
    try:
        flags = (*_FLAGS, f'-DXPOSE_OPENVINO="{version}"', *_link_flags(package))
        sources = [Path(__file__).resolve().parent / name for name in _SOURCES]
        path = build_library("openvino_operators", compiler, sources, flags)
        ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError) as error:
        reason = reason_of(error)
        _LOG.warning("OpenVINO runs attention in its standard, slower form: %s gave: %s", compiler, reason)
        return None
    return path


def _link_flags(package: Path) -> list[str]:
    """Raises FileNotFoundError: the package lacks a library."""
    libraries = []
    for pattern in _LIBRARIES:
        found = sorted((package / "libs").glob(pattern))
        if not found:
            raise FileNotFoundError(f"{package / 'libs'} has no {pattern}")
        libraries.append(str(found[0]))
    return [f"-I{package / 'include'}", *libraries, f"-Wl,-rpath,{package / 'libs'}"]
