"""The CUDA kernel's threads, compiled for the host by the machine's C++ compiler and run one after the other."""

import ctypes
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
import torch
from torch import Tensor

from engines.kernels import cuda, nvrtc


@functools.cache
def host_library(launch: cuda.Launch) -> ctypes.CDLL:
    """Compile the threads of one launch, once per process; skip the test where there is no C++ compiler."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler: the host build of the CUDA header needs one")
    defines = [f"-D{key}={value}" for key, value in launch.macros().items()]
    source = Path(__file__).with_name("deform_attn_host.cpp")
    flags = ["-std=c++17", "-O1", "-Wno-unknown-pragmas", "-shared", "-fPIC", f"-I{nvrtc.HERE}"]
    with tempfile.TemporaryDirectory() as folder:  # a loaded library needs its file no more
        target = Path(folder) / "deform_attn_host.so"
        subprocess.run([compiler, *flags, *defines, "-o", str(target), str(source)], check=True, timeout=60)
        library = ctypes.CDLL(str(target))
    library.xpose_threads.restype = ctypes.c_longlong
    library.xpose_run.argtypes = [ctypes.c_void_p] * 5
    library.xpose_run_one.argtypes = [ctypes.c_longlong, *[ctypes.c_void_p] * 5]
    return library


def run_on_host(launch: cuda.Launch, value: Tensor, reference: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
    """Run every thread once and return the output, which starts as NaN, so that a gap shows.

    The value is float16 or float32, as `launch` says; the others are float32. All are made contiguous.
    """
    tensors = [tensor.contiguous() for tensor in (value, reference, offsets, logits)]
    out = torch.full((launch.batch, launch.queries, launch.heads * launch.depth), torch.nan, dtype=value.dtype)
    host_library(launch).xpose_run(*(tensor.data_ptr() for tensor in (*tensors, out)))
    return out
