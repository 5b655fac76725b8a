"""The CUDA form of deformable attention: compiled by NVRTC for one shape, loaded and launched through PyTorch.

The shape is compiled in, so that every loop unrolls; a process compiles each shape that it meets once (about a second).
The TensorRT plugin embeds the same source compiled the same way. Nothing happens at import.

Shape suffixes as in `engines.kernels.reference`; R is 2 or 4.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engines.kernels import nvrtc

SOURCE = "deform_attn.cu"
KERNEL = "xpose_deform_attn"
BLOCK_THREADS = 256
LOAD_BYTES = 16  # one thread's share of a row of channels


@dataclass(frozen=True)
class Launch:
    """One shape of the kernel; `sizes` is height, width, height, width, … of the levels."""

    half: bool
    batch: int
    queries: int
    tokens: int
    heads: int
    depth: int
    points: int
    reference_size: int
    sizes: tuple[int, ...]

    @property
    def blocks(self) -> int:
        """How many blocks of BLOCK_THREADS cover one thread per 16 bytes of the output."""
        output_bytes = self.batch * self.queries * self.heads * self.depth * (2 if self.half else 4)
        return -(-output_bytes // (LOAD_BYTES * BLOCK_THREADS))

    def macros(self) -> dict[str, object]:
        """Return what `deform_attn_thread.h` and `deform_attn.cu` ask for."""
        return {
            "XPOSE_HALF": int(self.half),
            "XPOSE_BATCH": self.batch,
            "XPOSE_QUERIES": self.queries,
            "XPOSE_TOKENS": self.tokens,
            "XPOSE_HEADS": self.heads,
            "XPOSE_DEPTH": self.depth,
            "XPOSE_POINTS": self.points,
            "XPOSE_REFERENCE": self.reference_size,
            "XPOSE_LEVELS": len(self.sizes) // 2,
            "XPOSE_SIZES": "{" + ",".join(map(str, self.sizes)) + "}",
            "XPOSE_BLOCK": BLOCK_THREADS,
        }


def launch_of(
    half: bool,
    value_BSMD: Sequence[int],
    reference_BQLR: Sequence[int],
    offsets_BQMLP2: Sequence[int],
    sizes: Sequence[int],
) -> Launch:
    """Describe the launch from the shapes of the tensors."""
    batch, tokens, heads, depth = value_BSMD
    points, reference_size = offsets_BQMLP2[4], reference_BQLR[3]
    return Launch(half, batch, offsets_BQMLP2[1], tokens, heads, depth, points, reference_size, tuple(sizes))


def available(value_BSMD: Tensor) -> bool:
    """Whether the CUDA form takes this value: on a GPU, not float64, and with rows of whole 16 bytes."""
    bytes_each = 2 if value_BSMD.dtype == torch.float16 else 4
    return (
        value_BSMD.device.type == "cuda"
        and value_BSMD.dtype in (torch.float16, torch.bfloat16, torch.float32)
        and value_BSMD.shape[-1] * bytes_each % LOAD_BYTES == 0
    )


@functools.cache
def _kernel(device_index: int, launch: Launch) -> Callable[..., None]:
    from torch.cuda._utils import _cuda_load_module

    with torch.cuda.device(device_index):
        capability = torch.cuda.get_device_capability(device_index)
        code = nvrtc.compile_source(SOURCE, launch.macros(), capability).code
        kernel: Callable[..., None] = getattr(_cuda_load_module(code), KERNEL)
    return kernel


def forward(
    value_BSMD: Tensor, sizes: Sequence[int], reference_BQLR: Tensor, offsets_BQMLP2: Tensor, logits_BQMLP: Tensor
) -> Tensor:
    """Return out_BQC in the dtype of the value, queued on the current stream; bfloat16 runs as float32.

    Raises:
        BackendError: NVRTC is missing or refuses the source.
    """
    half = value_BSMD.dtype == torch.float16
    value = value_BSMD.detach().to(torch.float16 if half else torch.float32).contiguous()
    others = [t.detach().float().contiguous() for t in (reference_BQLR, offsets_BQMLP2, logits_BQMLP)]
    launch = launch_of(half, value.shape, reference_BQLR.shape, offsets_BQMLP2.shape, sizes)
    out_BQC = value.new_empty((launch.batch, launch.queries, launch.heads * launch.depth))
    if out_BQC.numel() == 0:
        return out_BQC.to(value_BSMD.dtype)
    if any(tensor.data_ptr() % LOAD_BYTES for tensor in (value, *others)):  # views may start anywhere
        value, *others = (tensor.clone() for tensor in (value, *others))
    with torch.cuda.device(value.device):
        _kernel(value.device.index, launch)(
            grid=(launch.blocks, 1, 1), block=(BLOCK_THREADS, 1, 1), args=[value, *others, out_BQC]
        )
    return out_BQC.to(value_BSMD.dtype)
