"""Compile C++ libraries once with the machine's own compiler and keep them in the user's cache folder.

A library's file name is a hash of its sources, the compiler and the processor.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from engines.folders import cache_root

_TIMEOUT_S = 120.0


def cache_folder() -> Path:
    """Return the folder of compiled kernels: $XDG_CACHE_HOME/xpose-stream/kernels, by default under ~/.cache."""
    return cache_root() / "kernels"


def _processor() -> str:
    """Return what `-march=native` depends on: the instruction sets, or else the machine's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))


def find_compiler() -> str | None:
    """Return the path of the C++ compiler: $CXX, or else g++, clang++ or c++; None if there is none."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "c++"]
    return next((path for name in names if (path := shutil.which(name))), None)


def build_library(name: str, compiler: str, sources: Sequence[Path], flags: Sequence[str]) -> Path:
    """Return a library from the cache; the first call compiles it. Several processes may do this at the same time.

    Args:
        name: the file name begins with it.
        compiler: path of a C++ compiler.
        sources: files that end in ".cpp" are compiled; the others are headers that these include.
        flags: compiler flags, with the libraries to link.
    Raises:
        OSError: the cache cannot be written. subprocess.SubprocessError: the compiler failed or hung.
    """
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True, timeout=_TIMEOUT_S).stdout
    key = hashlib.sha256(b"\0".join([*(path.read_bytes() for path in sources), version]))
    key.update("\0".join([*flags, _processor()]).encode())
    target = cache_folder() / f"{name}-{key.hexdigest()[:24]}.so"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / target.name
        units = [str(path) for path in sources if path.suffix == ".cpp"]
        command = [compiler, "-fPIC", "-shared", "-o", str(made), *units, *flags]
        subprocess.run(command, capture_output=True, check=True, timeout=_TIMEOUT_S)
        made.replace(target)
    return target


def reason_of(error: OSError | subprocess.SubprocessError) -> str:
    """Return the compiler's message, or else the error itself."""
    return (getattr(error, "stderr", None) or b"").decode(errors="replace").strip() or str(error)
