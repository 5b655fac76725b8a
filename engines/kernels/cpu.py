"""Compiled CPU kernels of deformable attention and of window attention, called through ctypes.

Importing this module compiles nothing. It defines the operator of window attention, because a loaded exported program
looks the operator up by name. The first call compiles the kernels with the machine's own C++ compiler, which takes a
few seconds, and keeps the library in the user's cache folder under a hash of the sources, the compiler and the
processor. Without a compiler, `available()` is False and the log says so once.

Shape suffixes: as in `engines.kernels.reference`; those of windows as in `engines.xpose.swin`; R is 2 or 4.
"""

import ctypes
import functools
import logging
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from engines.kernels.compiler import build_library, find_compiler, reason_of
from engines.kernels.onnx_form import expands_operators

_LOG = logging.getLogger(__name__)
_SOURCES = ("deform_attn_cpu.cpp", "window_attn_cpu.cpp", "attention_cpu.h", "deform_attn.h", "lanes.h")
_FLAGS = (
    "-std=c++17",
    "-O3",
    "-march=native",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fopenmp",
    "-Wno-psabi",
)
_MAX_SAMPLES = 64  # kMaxSamples in deform_attn_cpu.cpp
_DEPTHS = (16, 32, 64)
_WINDOW = 4  # kWindow in window_attn_cpu.cpp
_WINDOW_DEPTHS = (12, 24)
_SERIAL_ROWS = 1 << 14  # with fewer sampled rows, waking other threads costs more time than they save


class _Shape(ctypes.Structure):
    """`struct XposeDeformShape` of attention_cpu.h."""

    _fields_ = (
        ("batch", ctypes.c_int64),
        ("queries", ctypes.c_int64),
        ("tokens", ctypes.c_int64),
        ("heads", ctypes.c_int32),
        ("depth", ctypes.c_int32),
        ("levels", ctypes.c_int32),
        ("points", ctypes.c_int32),
        ("reference_size", ctypes.c_int32),
        ("threads", ctypes.c_int32),
        ("sizes_L2", ctypes.c_void_p),
    )


class _WindowShape(ctypes.Structure):
    """`struct XposeWindowShape` of attention_cpu.h."""

    _fields_ = (
        ("batch", ctypes.c_int64),
        ("height", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("first_row", ctypes.c_int64),
        ("last_row", ctypes.c_int64),
        ("heads", ctypes.c_int32),
        ("depth", ctypes.c_int32),
        ("shift", ctypes.c_int32),
        ("threads", ctypes.c_int32),
    )


@functools.cache
def _library() -> ctypes.CDLL | None:
    compiler = find_compiler()
    if compiler is None:
        _LOG.warning("no C++ compiler found (g++, clang++ or $CXX): attention runs in plain PyTorch, which is slower")
        return None
    try:
        sources = [Path(__file__).resolve().parent / name for name in _SOURCES]
        library = ctypes.CDLL(str(build_library("attention_cpu", compiler, sources, _FLAGS)))
    except (OSError, subprocess.SubprocessError) as error:
        reason = reason_of(error)
        _LOG.warning("attention runs in plain PyTorch, which is slower: %s cannot compile it: %s", compiler, reason)
        return None
    pointer, shape = ctypes.c_void_p, ctypes.POINTER(_Shape)
    for name, tensors in (("forward_float32", 5), ("forward_bfloat16", 5), ("backward_float32", 9)):
        function = getattr(library, f"xpose_{name}")
        function.argtypes, function.restype = [shape, *[pointer] * tensors], None
    library.xpose_window_attention.argtypes = [ctypes.POINTER(_WindowShape), *[pointer] * 3]
    library.xpose_window_attention.restype = None
    return library


def available(value_BSMD: Tensor, offsets_BQMLP2: Tensor) -> bool:
    """Whether the compiled kernel takes these tensors. The first call compiles it."""
    levels, points = offsets_BQMLP2.shape[3:5]
    return (
        value_BSMD.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and levels * points <= _MAX_SAMPLES
        and value_BSMD.shape[-1] in _DEPTHS
        and _library() is not None
    )


def _loaded() -> ctypes.CDLL:
    library = _library()
    assert library is not None, "callers ask available() first"
    return library


def _shape(value_BSMD: Tensor, sizes: Sequence[int], reference_BQLR: Tensor, offsets_BQMLP2: Tensor) -> _Shape:
    batch, tokens, heads, depth = value_BSMD.shape
    queries, levels, points = offsets_BQMLP2.shape[1], offsets_BQMLP2.shape[3], offsets_BQMLP2.shape[4]
    rows = batch * queries * heads * levels * points * 4
    sizes_array = (ctypes.c_int32 * len(sizes))(*sizes)
    shape = _Shape(batch, queries, tokens, heads, depth, levels, points, reference_BQLR.shape[-1])
    shape.threads = 1 if rows < _SERIAL_ROWS else torch.get_num_threads()
    shape.sizes_L2 = ctypes.addressof(sizes_array)
    shape.keep_alive = sizes_array  # the address above must outlive the call
    return shape


def _plain(tensor: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    return tensor.detach().to(dtype).contiguous()


def forward(
    value_BSMD: Tensor, sizes: Sequence[int], reference_BQLR: Tensor, offsets_BQMLP2: Tensor, logits_BQMLP: Tensor
) -> Tensor:
    """Return out_BQC in the dtype of the value.

    `sizes` holds the height and the width of each level in turn, in cells.
    """
    batch, _, heads, depth = value_BSMD.shape
    dtype = torch.bfloat16 if value_BSMD.dtype == torch.bfloat16 else torch.float32
    function = _loaded().xpose_forward_bfloat16 if dtype == torch.bfloat16 else _loaded().xpose_forward_float32
    inputs = [_plain(value_BSMD, dtype), *map(_plain, (reference_BQLR, offsets_BQMLP2, logits_BQMLP))]
    out_BQC = torch.empty((batch, offsets_BQMLP2.shape[1], heads * depth), dtype=dtype)
    shape = _shape(value_BSMD, sizes, reference_BQLR, offsets_BQMLP2)
    function(ctypes.byref(shape), *(tensor.data_ptr() for tensor in (*inputs, out_BQC)))
    return out_BQC.to(value_BSMD.dtype)


def backward(
    grad_out_BQC: Tensor,
    value_BSMD: Tensor,
    sizes: Sequence[int],
    reference_BQLR: Tensor,
    offsets_BQMLP2: Tensor,
    logits_BQMLP: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients with respect to value, reference, offsets and logits, each in the dtype of its tensor."""
    tensors = (value_BSMD, reference_BQLR, offsets_BQMLP2, logits_BQMLP)
    inputs = [_plain(tensor) for tensor in (grad_out_BQC, *tensors)]
    made = (torch.empty_like, torch.zeros_like, torch.empty_like, torch.empty_like)
    grads = [make(tensor) for make, tensor in zip(made, inputs[1:], strict=True)]
    shape = _shape(value_BSMD, sizes, reference_BQLR, offsets_BQMLP2)
    _loaded().xpose_backward_float32(ctypes.byref(shape), *(tensor.data_ptr() for tensor in (*inputs, *grads)))
    value, reference, offsets, logits = (g.to(t.dtype) for g, t in zip(grads, tensors, strict=True))
    return value, reference, offsets, logits


def window_attention_available(weight: Tensor, depth: int, window: int) -> bool:
    """Whether the compiled kernel of window attention can follow the linear map with this weight.

    The kernel has no gradient. A program that is exported on a CPU calls it by name.

    Args:
        weight: weight of the linear map that makes queries, keys and values.
        depth: channels of a head.
        window: tokens along a side.
    """
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and window == _WINDOW
        and depth in _WINDOW_DEPTHS
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_dynamo_compiling()
        and not expands_operators()
        and _library() is not None
    )


@torch.library.custom_op("xpose::window_attention", mutates_args=(), device_types="cpu")
def window_attention(qkv_BHWC: Tensor, bias_MTT: Tensor, shift: int) -> Tensor:
    """Attend inside shifted windows of 4 x 4 tokens; H and W are multiples of 4.

    Args:
        qkv_BHWC: queries, keys and values side by side, at the places of their tokens in the image.
        bias_MTT: added to the scores of each (query, key).
        shift: by how many tokens the windows move right and down; they wrap around the edges.
    Returns:
        out_BHWC with a third of the channels.
    """
    batch, height, width, channels = qkv_BHWC.shape
    heads = bias_MTT.shape[0]
    rows = batch * (height // _WINDOW)
    depth, threads = channels // (3 * heads), torch.get_num_threads()
    shape = _WindowShape(batch, height, width, 0, rows, heads, depth, shift, threads)
    inputs = [_plain(qkv_BHWC), _plain(bias_MTT)]
    out_BHWC = torch.empty((batch, height, width, channels // 3))
    _loaded().xpose_window_attention(ctypes.byref(shape), *(tensor.data_ptr() for tensor in (*inputs, out_BHWC)))
    return out_BHWC


@window_attention.register_fake
def _(qkv_BHWC: Tensor, bias_MTT: Tensor, shift: int) -> Tensor:
    return qkv_BHWC.new_empty((*qkv_BHWC.shape[:3], qkv_BHWC.shape[3] // 3))
