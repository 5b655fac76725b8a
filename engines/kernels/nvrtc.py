"""Compiles this package's CUDA sources with NVRTC, called through its C interface: no nvcc, no build step, no GPU.

NVRTC and CUDA's headers come with every CUDA build of PyTorch; elsewhere with the packages nvidia-cuda-nvrtc and
nvidia-cuda-runtime. They are looked for on first use.
"""

import ctypes
import functools
import importlib.util
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from engines.errors import BackendError

HERE = Path(__file__).resolve().parent
INSTALL = "pip install 'xpose-stream[gpu]'"
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_REGISTERS = re.compile(r"Used (\d+) registers")


@dataclass(frozen=True)
class Compiled:
    """`code` is a cubin or the text of a PTX module; the counts are ptxas's own, per thread, and None for PTX."""

    code: bytes
    registers: int | None
    stack_bytes: int | None
    spill_bytes: int | None


def _cuda_roots() -> Iterator[Path]:
    """Where CUDA may be: the folders of NVIDIA's Python packages, then an installed toolkit."""
    found = importlib.util.find_spec("nvidia")
    for folder in list(found.submodule_search_locations or ()) if found else []:
        yield from sorted((path for path in Path(folder).iterdir() if path.is_dir()), reverse=True)
    yield Path(os.environ.get("CUDA_HOME") or "/usr/local/cuda")


def include_folders() -> tuple[str, str]:
    """Return the folders of this package's headers and of CUDA's (`cuda_fp16.h`).

    Raises:
        BackendError: CUDA's headers are not installed.
    """
    for root in _cuda_roots():
        if (root / "include" / "cuda_fp16.h").exists():
            return str(HERE), str(root / "include")
    raise BackendError(f"CUDA's headers (cuda_fp16.h) are missing: {INSTALL}")


@functools.cache
def _library() -> ctypes.CDLL:
    """Load NVRTC and declare the functions used.

    Raises:
        BackendError: it is not installed.
    """
    paths = [path for root in _cuda_roots() for lib in ("lib", "lib64") for path in (root / lib).glob("libnvrtc.so.*")]
    names = [str(path) for path in paths if path.suffix in (".12", ".13")]
    for name in [*names, "libnvrtc.so.13", "libnvrtc.so.12"]:
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        program, text = ctypes.c_void_p, ctypes.c_char_p
        library.nvrtcGetErrorString.restype = text
        library.nvrtcCreateProgram.argtypes = [ctypes.POINTER(program), text, text, ctypes.c_int, text, text]
        library.nvrtcCompileProgram.argtypes = [program, ctypes.c_int, ctypes.POINTER(text)]
        for result in ("ProgramLog", "CUBIN", "PTX"):
            getattr(library, f"nvrtcGet{result}Size").argtypes = [program, ctypes.POINTER(ctypes.c_size_t)]
            getattr(library, f"nvrtcGet{result}").argtypes = [program, text]
        library.nvrtcDestroyProgram.argtypes = [ctypes.POINTER(program)]
        return library
    raise BackendError(f"NVRTC (libnvrtc.so.13 or .12) is missing: {INSTALL}")


def _check(library: ctypes.CDLL, status: int) -> None:
    if status:
        raise BackendError(f"NVRTC failed: {library.nvrtcGetErrorString(status).decode()}")


def _result(library: ctypes.CDLL, program: ctypes.c_void_p, name: str) -> bytes:
    size = ctypes.c_size_t()
    _check(library, getattr(library, f"nvrtcGet{name}Size")(program, ctypes.byref(size)))
    buffer = ctypes.create_string_buffer(size.value)
    _check(library, getattr(library, f"nvrtcGet{name}")(program, buffer))
    return buffer.raw


def compile_source(
    name: str, macros: Mapping[str, object], capability: tuple[int, int], target: Literal["cubin", "ptx"] = "cubin"
) -> Compiled:
    """Compile one `.cu` file of this folder for one compute capability.

    Args:
        name: file name; macros: the shape that is compiled in; capability: (major, minor), for instance (9, 0).
    Raises:
        BackendError: NVRTC or the headers are missing, or NVRTC refuses the source; its log is in the message.
    """
    library = _library()
    arch = f"{'sm' if target == 'cubin' else 'compute'}_{capability[0]}{capability[1]}"
    options = [f"--gpu-architecture={arch}", "--std=c++17", *(f"-I{folder}" for folder in include_folders())]
    options += [f"-D{key}={value}" for key, value in macros.items()]
    if target == "cubin":
        options.append("--ptxas-options=-v")
    program = ctypes.c_void_p()
    source = (HERE / name).read_bytes()
    _check(library, library.nvrtcCreateProgram(ctypes.byref(program), source, name.encode(), 0, None, None))
    try:
        array = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        status = library.nvrtcCompileProgram(program, len(options), array)
        log = _result(library, program, "ProgramLog").rstrip(b"\0").decode(errors="replace")
        if status:
            raise BackendError(f"NVRTC does not compile {name} for {arch}: {log.strip()}")
        code = _result(library, program, target.upper())
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))
    stack, registers = _STACK.search(log), _REGISTERS.search(log)
    return Compiled(
        code,
        registers=int(registers[1]) if registers else None,
        stack_bytes=int(stack[1]) if stack else None,
        spill_bytes=int(stack[2]) + int(stack[3]) if stack else None,
    )
