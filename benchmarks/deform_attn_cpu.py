"""Deformable attention on the CPU: the compiled form compared with the plain grid-sample form.

    python -m benchmarks.deform_attn_cpu

Sizes: the encoder and the decoder's keypoint layers of Swin-T at 800 x 1333, and of the nano model at 256 x 256. Rows
go to benchmarks/results/deform_attn_cpu.json: median and interquartile spread of each form by the wall clock, median
processor time of all threads (which depends less on other programs), and the ratios of the medians.
"""

import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from benchmarks._record import record
from engines.kernels import ms_deform_attn
from engines.kernels.reference import ms_deform_attn_reference

THREADS = 2
SWIN_T_LEVELS = ((100, 167), (50, 84), (25, 42), (13, 21))
NANO_LEVELS = ((32, 32), (16, 16), (8, 8), (4, 4))


@dataclass(frozen=True)
class Size:
    name: str
    levels_L2: tuple[tuple[int, int], ...]
    heads: int
    batch: int = 1
    queries: int | None = None  # None: one per token, at the token's own centre, as in the encoder


SIZES = (
    Size("Swin-T encoder, 22,223 queries", SWIN_T_LEVELS, heads=8),
    Size("Swin-T decoder, 3,450 queries", SWIN_T_LEVELS, heads=8, queries=3450),
    Size("nano encoder, batch 8", NANO_LEVELS, heads=4, batch=8),
    Size("nano decoder, 288 queries", NANO_LEVELS, heads=4, queries=288),
)


def inputs(size: Size, dtype: torch.dtype) -> tuple[Tensor, tuple[tuple[int, int], ...], Tensor, Tensor, Tensor]:
    """Return the operator's arguments: offsets of about three cells, or of about one box."""
    draw = torch.Generator().manual_seed(0)
    levels, tokens = len(size.levels_L2), sum(height * width for height, width in size.levels_L2)
    if size.queries is None:
        centres = [
            torch.cartesian_prod((torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width).flip(-1)
            for height, width in size.levels_L2
        ]
        reference = torch.cat(centres)[None, :, None].expand(size.batch, -1, levels, -1).contiguous()
    else:
        reference = torch.rand(size.batch, size.queries, 1, 4, generator=draw).expand(-1, -1, levels, -1).contiguous()
    queries = reference.shape[1]
    return (
        torch.randn(size.batch, tokens, size.heads, 32, generator=draw).to(dtype),
        size.levels_L2,
        reference,
        torch.randn(size.batch, queries, size.heads, levels, 4, 2, generator=draw) * 3,
        torch.randn(size.batch, queries, size.heads, levels, 4, generator=draw),
    )


@dataclass(frozen=True)
class Times:
    wall_ms: list[float]
    processor_ms: list[float]


def times(forms: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, Times]:
    """Time the forms in turn, after one run of each to warm up."""
    taken = {name: Times([], []) for name in forms}
    for repeat in range(repeats + 1):
        for name, form in forms.items():
            wall_s, processor_s = time.perf_counter(), time.process_time()
            form()
            if repeat:
                taken[name].wall_ms.append((time.perf_counter() - wall_s) * 1e3)
                taken[name].processor_ms.append((time.process_time() - processor_s) * 1e3)
    return taken


def gradients(form: Callable[..., Tensor], arguments: tuple[object, ...]) -> object:
    """Run one form forward and backward, to all four tensors."""
    leaves = [item.detach().requires_grad_() if isinstance(item, Tensor) else item for item in arguments]
    return torch.autograd.grad(form(*leaves).sum(), [item for item in leaves if isinstance(item, Tensor)])


def row(name: str, taken: Mapping[str, Times]) -> dict[str, object]:
    """Return one result: medians, spreads and the ratios."""
    found: dict[str, object] = {"case": name, "threads": THREADS, "load_average": round(os.getloadavg()[0], 1)}
    wall, processor = {}, {}
    for form, values in taken.items():
        low, wall[form], high = statistics.quantiles(values.wall_ms, n=4)
        processor[form] = statistics.median(values.processor_ms)
        found |= {f"{form}_ms": round(wall[form], 3), f"{form}_spread_ms": round(high - low, 3)}
        found[f"{form}_processor_ms"] = round(processor[form], 3)
    found["ratio"] = round(wall["plain"] / wall["compiled"], 2)
    found["processor_ratio"] = round(processor["plain"] / processor["compiled"], 2)
    return found


def main() -> None:
    torch.set_num_threads(THREADS)
    rows = []
    for size in SIZES:
        for dtype in (torch.float32, torch.bfloat16):
            arguments = inputs(size, dtype)
            plain, compiled = partial(ms_deform_attn_reference, *arguments), partial(ms_deform_attn, *arguments)
            with torch.no_grad():
                taken = times({"plain": plain, "compiled": compiled}, repeats=5)
            rows.append(row(f"{size.name}, forward, {dtype}".replace("torch.", ""), taken))
            print(rows[-1], flush=True)
        single = inputs(size, torch.float32)
        both = {"plain": partial(gradients, ms_deform_attn_reference, single)}
        both["compiled"] = partial(gradients, ms_deform_attn, single)
        rows.append(row(f"{size.name}, forward and backward, float32", times(both, repeats=3)))
        print(rows[-1], flush=True)
    print(record("deform_attn_cpu", rows))


if __name__ == "__main__":
    main()
