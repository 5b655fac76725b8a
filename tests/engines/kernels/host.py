"""Runs the CUDA kernels' own sources on the host, where there is no GPU, compiled by the machine's C++ compiler.

`run_on_host` computes one launch of deformable attention. Libraries are compiled once per process and variant.
"""

import ctypes
import functools
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from engines.kernels import cuda, nvrtc
from tests.support import lacks

HERE = Path(__file__).resolve().parent
_FLAGS = ("-std=c++17", "-O1", "-ffp-contract=off", "-Wno-unknown-pragmas", "-shared", "-fPIC", f"-I{nvrtc.HERE}")


def build_host_library(source: str, macros: Mapping[str, object]) -> ctypes.CDLL:
    """Compile one of this folder's `.cpp` files with the kernel's macros; skip the test if there is no compiler."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        lacks("no C++ compiler: the host build of the CUDA headers needs one")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "kernel.so"
        defines = [f"-D{key}={value}" for key, value in macros.items()]
        subprocess.run([compiler, *_FLAGS, *defines, "-o", str(target), str(HERE / source)], check=True, timeout=60)
        return ctypes.CDLL(str(target))


@functools.cache
def host_library(variant: cuda.Variant) -> ctypes.CDLL:
    """Return the host build of one variant of the deformable attention kernel."""
    library = build_host_library("deform_attn_host.cpp", variant.macros())
    library.xpose_run.argtypes = [*[ctypes.c_void_p] * 6, ctypes.c_longlong, ctypes.c_longlong]
    library.xpose_run.restype = None
    return library


def run_on_host(
    launch: cuda.Launch,
    value: Tensor,
    reference: Tensor,
    offsets: Tensor,
    logits: Tensor,
    *,
    lanes: tuple[int, int] | None = None,
) -> Tensor:
    """Compute one launch of deformable attention with the CUDA kernel's arithmetic, rounding included.

    Args:
        launch: `cuda.launch_of` makes it from the shapes. Its dtype is the value's: float32, float16 or bfloat16.
        value, reference, offsets, logits: as in `engines.kernels.ms_deform_attn`. All but the value become float32.
        lanes: the first and last (exclusive) thread to run; None runs all.
    Returns:
        out_BQC in the dtype of the value. It starts as NaN, so what no thread writes shows.
    """
    variant = launch.variant
    assert value.dtype == variant.dtype
    inputs = [value.contiguous(), *(tensor.float().contiguous() for tensor in (reference, offsets, logits))]
    out_BQC = torch.full((launch.batch, launch.queries, variant.heads * variant.depth), torch.nan, dtype=value.dtype)
    first, last = lanes or (0, launch.batch * launch.queries * variant.heads * variant.lanes)
    numbers = (ctypes.c_int * len(launch.numbers))(*launch.numbers)
    pointers = [tensor.data_ptr() for tensor in inputs]
    host_library(variant).xpose_run(*pointers, ctypes.addressof(numbers), out_BQC.data_ptr(), first, last)
    return out_BQC
