"""Libraries that the machine's own C++ compiler makes once, kept in the user's cache folder.

A library lies there under a hash of its sources, the compiler and the processor.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

_TIMEOUT_S = 120.0


def cache_folder() -> Path:
    """Where compiled kernels are kept: $XDG_CACHE_HOME/xpose-stream/kernels, by default under ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "xpose-stream" / "kernels"


def _processor() -> str:
    """What `-march=native` depends on: the instruction sets, or at least the machine's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))


def find_compiler() -> str | None:
    """Path of the C++ compiler: $CXX, or else g++, clang++ or c++."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "c++"]
    return next((path for name in names if (path := shutil.which(name))), None)


def build_library(name: str, compiler: str, sources: Sequence[Path], flags: Sequence[str]) -> Path:
    """Compile into the cache unless it is there already, so that two processes at once both end with a whole file.

    Args:
        name: what the file's name begins with.
        compiler: path of a C++ compiler.
        sources: those that end in ".cpp" are compiled, the others are what they include.
        flags: for the compiler; libraries to link among them.
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
    """What the compiler said, or else the error itself."""
    return (getattr(error, "stderr", None) or b"").decode(errors="replace").strip() or str(error)
