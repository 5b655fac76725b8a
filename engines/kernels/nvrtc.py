"""Compile this package's CUDA sources with NVRTC, through its C interface: no nvcc, no build step, no GPU needed.

NVRTC and CUDA's headers come with every CUDA build of PyTorch, and with the packages nvidia-cuda-nvrtc and
nvidia-cuda-runtime. They are looked up on first use. `cubin` keeps what it compiles in the user's cache folder.
"""

import ctypes
import functools
import hashlib
import importlib.util
import logging
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from engines.errors import BackendError
from engines.kernels.compiler import cache_folder

_LOG = logging.getLogger(__name__)

HERE = Path(__file__).resolve().parent
INSTALL = "pip install 'xpose-stream[gpu]'"
_HASH_BYTES = 32
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_REGISTERS = re.compile(r"Used (\d+) registers")


@dataclass(frozen=True)
class Compiled:
    """A cubin or the text of a PTX module. The counts come from ptxas, per thread; they are None for PTX."""

    code: bytes
    registers: int | None
    stack_bytes: int | None
    spill_bytes: int | None


def _cuda_roots() -> Iterator[Path]:
    """Folders that may hold CUDA: those of NVIDIA's Python packages, then an installed toolkit."""
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


def version() -> str:
    """Return NVRTC's version, such as "13.0".

    Raises:
        BackendError: it is not installed.
    """
    major, minor = ctypes.c_int(), ctypes.c_int()
    _check(_library(), _library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
    return f"{major.value}.{minor.value}"


def _check(library: ctypes.CDLL, status: int) -> None:
    if status:
        raise BackendError(f"NVRTC: {library.nvrtcGetErrorString(status).decode()}")


def _result(library: ctypes.CDLL, program: ctypes.c_void_p, name: str) -> bytes:
    """Return one of NVRTC's results: ProgramLog, CUBIN or PTX."""
    size = ctypes.c_size_t()
    _check(library, getattr(library, f"nvrtcGet{name}Size")(program, ctypes.byref(size)))
    buffer = ctypes.create_string_buffer(size.value)
    _check(library, getattr(library, f"nvrtcGet{name}")(program, buffer))
    return buffer.raw


def _options(macros: Mapping[str, object], arch: str) -> list[str]:
    return [f"--gpu-architecture={arch}", "--std=c++17", *(f"-D{key}={value}" for key, value in macros.items())]


def compile_source(
    name: str, macros: Mapping[str, object], capability: tuple[int, int], target: Literal["cubin", "ptx"] = "cubin"
) -> Compiled:
    """Compile one `.cu` file of this folder for one compute capability.

    Args:
        name: file name.
        macros: names and values of the preprocessor macros.
        capability: (major, minor), for instance (9, 0).
        target: "cubin" for one GPU, or "ptx" for the driver to finish.
    Raises:
        BackendError: NVRTC or the headers are missing, or NVRTC refuses the source; its log is in the message.
    """
    library = _library()
    arch = f"{'sm' if target == 'cubin' else 'compute'}_{capability[0]}{capability[1]}"
    options = [*_options(macros, arch), *(f"-I{folder}" for folder in include_folders())]
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


def cubin(name: str, macros: Mapping[str, object], capability: tuple[int, int]) -> bytes:
    """Return a compiled kernel from the cache folder; compile it the first time.

    The file's name is a hash of the source, this folder's headers, the options and NVRTC's version. The file begins
    with the SHA-256 of the code, so a damaged file is noticed and compiled again. If the folder cannot be written, the
    code is compiled in every process, and the log says so.

    Raises:
        BackendError: as `compile_source`.
    """
    path = cache_folder() / f"{Path(name).stem}-{_key(name, macros, capability)}.cubin"
    try:
        kept = path.read_bytes()
    except OSError:
        kept = b""
    digest, code = kept[:_HASH_BYTES], kept[_HASH_BYTES:]
    if code and hashlib.sha256(code).digest() == digest:
        return code
    code = compile_source(name, macros, capability).code
    try:
        _write_whole(path, hashlib.sha256(code).digest() + code)
    except OSError as error:
        _LOG.warning("%s cannot be written, so every process compiles %s again: %s", path, name, error)
    return code


def _key(name: str, macros: Mapping[str, object], capability: tuple[int, int]) -> str:
    key = hashlib.sha256()
    for path in (HERE / name, *sorted(HERE.glob("*.h"))):
        key.update(path.read_bytes() + b"\0")
    key.update("\0".join([version(), *_options(macros, f"sm_{capability[0]}{capability[1]}")]).encode())
    return key.hexdigest()[:24]


def _write_whole(path: Path, content: bytes) -> None:
    """Write to a temporary file and rename it, so that no process reads an incomplete file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        made.write_bytes(content)
        made.replace(path)
