"""Deformable attention on NVIDIA GPUs: a kernel compiled by NVRTC, loaded and launched through PyTorch.

Value type, heads, channels, levels and points are compile-time constants, so that every loop unrolls. Batch, queries,
tokens and level sizes are arguments of the launch, so a new prompt or a new image size needs no compilation. Compiled
kernels are kept on disk (`nvrtc.cubin`). The TensorRT plugin embeds the same kernel. Importing this module does
nothing.

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
BLOCKS_PER_PROCESSOR = 3
"""Blocks that one multiprocessor should hold at once. This bounds the registers of a thread: 80 for 3 blocks, 64 for 4.
With 64 registers, more variants spill. Without a bound the compiler uses up to 255, and then too few threads run at
once to hide the latency of reads."""
LOAD_BYTES = 16
"""One thread computes this many bytes of the output."""
MAX_LEVELS = 5
"""kMaxLevels in the source."""
VALUE_CODES = {torch.float32: 32, torch.float16: 16, torch.bfloat16: 17}
"""Value of the macro XPOSE_VALUE for each dtype."""


@dataclass(frozen=True)
class Variant:
    """What is compiled in."""

    dtype: torch.dtype
    heads: int
    depth: int
    levels: int
    points: int
    reference_size: int
    blocks_per_processor: int = BLOCKS_PER_PROCESSOR

    @property
    def lanes(self) -> int:
        """Threads that share one query of one head."""
        return self.depth * self.dtype.itemsize // LOAD_BYTES

    def macros(self) -> dict[str, object]:
        """Return what `deform_attn_thread.h` and `deform_attn.cu` need."""
        return {
            "XPOSE_VALUE": VALUE_CODES[self.dtype],
            "XPOSE_HEADS": self.heads,
            "XPOSE_DEPTH": self.depth,
            "XPOSE_LEVELS": self.levels,
            "XPOSE_POINTS": self.points,
            "XPOSE_REFERENCE": self.reference_size,
            "XPOSE_BLOCK": BLOCK_THREADS,
            "XPOSE_BLOCKS_PER_PROCESSOR": self.blocks_per_processor,
        }


@dataclass(frozen=True)
class Launch:
    """One launch; `sizes` holds the height and the width of each level in turn, in cells."""

    variant: Variant
    batch: int
    queries: int
    tokens: int
    sizes: tuple[int, ...]

    @property
    def grid(self) -> tuple[int, int, int]:
        """Blocks: x covers the threads of one image, y the images."""
        threads = self.queries * self.variant.heads * self.variant.lanes
        return -(-threads // BLOCK_THREADS), self.batch, 1

    @property
    def numbers(self) -> tuple[int, ...]:
        """The kernel's int arguments, which come between its inputs and its output."""
        absent = (0,) * (2 * MAX_LEVELS - len(self.sizes))
        return self.queries, self.tokens, *self.sizes, *absent


def launch_of(
    dtype: torch.dtype,
    value_BSMD: Sequence[int],
    reference_BQLR: Sequence[int],
    offsets_BQMLP2: Sequence[int],
    sizes: Sequence[int],
) -> Launch:
    """Describe the launch from the value's dtype and the shapes of the tensors."""
    batch, tokens, heads, depth = value_BSMD
    _, queries, _, levels, points, _ = offsets_BQMLP2
    variant = Variant(dtype, heads, depth, levels, points, reference_BQLR[3])
    return Launch(variant, batch, queries, tokens, tuple(sizes))


def takes(dtype: torch.dtype, depth: int, levels: int, tokens: int) -> bool:
    """Whether the kernel can be compiled for these sizes.

    A head must have 2^n times 16 bytes, at most 512, because the threads that share it are lanes of one warp. At least
    three tokens must exist, because a thread reads tokens in pairs, also where a level has only one column.
    """
    lanes, rest = divmod(depth * dtype.itemsize, LOAD_BYTES)
    return dtype in VALUE_CODES and rest == 0 and lanes in (1, 2, 4, 8, 16, 32) and levels <= MAX_LEVELS and tokens > 2


def available(value_BSMD: Tensor, offsets_BQMLP2: Tensor) -> bool:
    """Whether the CUDA kernel takes these tensors; it does not look for NVRTC."""
    _, tokens, _, depth = value_BSMD.shape
    return value_BSMD.is_cuda and takes(value_BSMD.dtype, depth, offsets_BQMLP2.shape[3], tokens)


@functools.cache
def _kernel(device_index: int, variant: Variant) -> Callable[..., None]:
    from torch.cuda._utils import _cuda_load_module

    with torch.cuda.device(device_index):
        capability = torch.cuda.get_device_capability(device_index)
        code = nvrtc.cubin(SOURCE, variant.macros(), capability)
        kernel: Callable[..., None] = getattr(_cuda_load_module(code), KERNEL)
    return kernel


def forward(
    value_BSMD: Tensor, sizes: Sequence[int], reference_BQLR: Tensor, offsets_BQMLP2: Tensor, logits_BQMLP: Tensor
) -> Tensor:
    """Return out_BQC in the dtype of the value, queued on the current stream.

    Raises:
        BackendError: NVRTC is missing or refuses the source.
    """
    value = value_BSMD.detach().contiguous()
    others = [t.detach().float().contiguous() for t in (reference_BQLR, offsets_BQMLP2, logits_BQMLP)]
    launch = launch_of(value.dtype, value.shape, reference_BQLR.shape, offsets_BQMLP2.shape, sizes)
    out_BQC = value.new_empty((launch.batch, launch.queries, launch.variant.heads * launch.variant.depth))
    if out_BQC.numel() == 0:
        return out_BQC
    if any(tensor.data_ptr() % LOAD_BYTES for tensor in (value, *others)):  # views may start anywhere
        value, *others = (tensor.clone() for tensor in (value, *others))
    reference, offsets, logits = others
    run(launch, value, reference, offsets, logits, out_BQC)
    return out_BQC


def run(
    launch: Launch,
    value_BSMD: Tensor,
    reference_BQLR: Tensor,
    offsets_BQMLP2: Tensor,
    logits_BQMLP: Tensor,
    out_BQC: Tensor,
) -> None:
    """Queue one launch on the current stream; every tensor is contiguous and begins at a multiple of 16 bytes."""
    with torch.cuda.device(value_BSMD.device):
        _kernel(value_BSMD.device.index, launch.variant)(
            grid=launch.grid,
            block=(BLOCK_THREADS, 1, 1),
            args=[value_BSMD, reference_BQLR, offsets_BQMLP2, logits_BQMLP, *launch.numbers, out_BQC],
        )
