"""Everything that only a GPU can tell, in one run of under ten minutes: the kernel, and the whole network.

    python -m benchmarks.gpu

Needs PyTorch built for CUDA (2.11 or later), numpy and NVRTC, which comes with PyTorch or the CUDA toolkit. Rows go to
benchmarks/results/gpu.json. Without a GPU the file says so and has no rows: nothing here is ever estimated.

The kernel: against the plain form in float32, and against the same grid sampling in float16. Its floor is the time in
which this GPU's second-level cache can hand out the bytes gathered, or its memory the bytes that must move once,
whichever is longer; both bandwidths are those of copies timed in the same run. The network: Swin-T at 800 x 1344 with
random weights, in float16 as the engines place it, one class and 17 keypoints.
"""

import statistics
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks._record import record
from engines.kernels import ms_deform_attn
from engines.kernels.reference import ms_deform_attn_reference
from engines.precision import place
from engines.xpose import XPose, XPoseConfig

LEVELS = ((100, 168), (50, 84), (25, 42), (13, 21))
HEADS, DEPTH, POINTS = 8, 32, 4
INPUT_HW = (800, 1344)
KEYPOINTS = 17
REPEATS = 30
CALLS_PER_GRAPH = 20


def event_ms(run: Callable[[], object], repeats: int = REPEATS) -> list[float]:
    """Time `run` on the GPU's own clock, after three runs to warm up."""
    taken = []
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    for repeat in range(repeats + 3):
        start.record()
        run()
        end.record()
        end.synchronize()
        if repeat >= 3:
            taken.append(start.elapsed_time(end))
    return taken


def captured(run: Callable[[], object], calls: int = 1) -> torch.cuda.CUDAGraph:
    """Record `calls` calls into a CUDA graph, so that Python's launch overhead is not part of the time."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            run()
    return graph


def row(name: str, values_ms: list[float], **more: object) -> dict[str, object]:
    """Return one result: median and interquartile spread, printed as it comes."""
    low, median, high = statistics.quantiles(values_ms, n=4)
    found = {"case": name, "median_ms": round(median, 4), "spread_ms": round(high - low, 4), **more}
    print(found, flush=True)
    return found


def copy_gb_per_s(bytes_copied: int) -> float:
    """Bandwidth of copying within the GPU, reads and writes counted."""
    source = torch.empty(bytes_copied, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    graph = captured(lambda: target.copy_(source), CALLS_PER_GRAPH)
    return 2 * bytes_copied * CALLS_PER_GRAPH / statistics.median(event_ms(graph.replay)) / 1e6


def kernel_inputs(batch: int, queries: int | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return value, reference, offsets and logits in float32; `queries` None means one per token, as in the encoder."""
    draw = torch.Generator(device="cuda").manual_seed(0)
    tokens, levels = sum(height * width for height, width in LEVELS), len(LEVELS)
    if queries is None:
        centres = [
            torch.cartesian_prod((torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width).flip(-1)
            for height, width in LEVELS
        ]
        reference = torch.cat(centres)[None, :, None].expand(batch, -1, levels, -1).contiguous().cuda()
    else:
        reference = torch.rand(batch, queries, 1, 4, generator=draw, device="cuda").expand(-1, -1, levels, -1)
    count = reference.shape[1]
    random = partial(torch.randn, generator=draw, device="cuda")
    return (
        random(batch, tokens, HEADS, DEPTH),
        reference.contiguous(),
        random(batch, count, HEADS, levels, POINTS, 2) * 3,
        random(batch, count, HEADS, levels, POINTS),
    )


def kernel_rows(
    name: str, batch: int, queries: int | None, cache_gb_s: float, memory_gb_s: float
) -> list[dict[str, object]]:
    """Time our kernel in float16 and float32 beside both plain forms, with the errors against float64."""
    value, *others = kernel_inputs(batch, queries)
    reference, offsets, logits = others
    exact = ms_deform_attn_reference(value.double(), LEVELS, reference.double(), offsets.double(), logits.double())
    rows = []
    for dtype in (torch.float16, torch.float32):
        typed = value.to(dtype)
        out = ms_deform_attn(typed, LEVELS, reference, offsets, logits)
        graph = captured(partial(ms_deform_attn, typed, LEVELS, reference, offsets, logits), CALLS_PER_GRAPH)
        taken = [ms / CALLS_PER_GRAPH for ms in event_ms(graph.replay)]
        gathered = offsets.numel() // 2 * 4 * DEPTH * typed.element_size()
        moved = sum(tensor.numel() * tensor.element_size() for tensor in (typed, *others, out))
        floor_ms = max(gathered / cache_gb_s, moved / memory_gb_s) / 1e6
        error = float((out.double() - exact).abs().max())
        rows.append(
            row(
                f"kernel, {name}, {str(dtype).removeprefix('torch.')}",
                taken,
                gathered_bytes=gathered,
                moved_bytes=moved,
                floor_ms=round(floor_ms, 4),
                of_floor=round(floor_ms / statistics.median(taken), 3),
                largest_error=error,
            )
        )
    plain = {
        "plain form, float32": partial(ms_deform_attn_reference, value, LEVELS, reference, offsets, logits),
        "grid sampling, float16": partial(
            ms_deform_attn_reference, value.half(), LEVELS, reference, offsets, logits, compute=torch.float16
        ),
    }
    for form, run in plain.items():
        error = float((run().double() - exact).abs().max())
        rows.append(row(f"{form}, {name}", event_ms(run), largest_error=error))
    return rows


def network_rows(batch: int) -> list[dict[str, object]]:
    """Time one forward in float16: eager, then replayed from a CUDA graph, per frame."""
    torch.manual_seed(0)
    model = place(XPose(XPoseConfig.swin_t()).eval(), "fp16").cuda()
    pixels = torch.randn(batch, 3, *INPUT_HW, device="cuda")
    objects = torch.randn(batch, 1, 512, device="cuda")
    keypoints = torch.randn(batch, KEYPOINTS, 512, device="cuda")
    run = partial(model, pixels, objects, keypoints)
    eager = [ms / batch for ms in event_ms(run, repeats=10)]
    rows = [row(f"Swin-T 800 x 1344, batch {batch}, float16, eager, per frame", eager)]
    graph = captured(run)
    replayed = [ms / batch for ms in event_ms(graph.replay)]
    rows.append(row(f"Swin-T 800 x 1344, batch {batch}, float16, CUDA graph, per frame", replayed))
    return rows


@torch.inference_mode()
def measure() -> list[dict[str, object]]:
    """Run everything on the current GPU."""
    gpu = torch.cuda.get_device_properties(torch.cuda.current_device())
    cache_gb_s, memory_gb_s = copy_gb_per_s(gpu.L2_cache_size // 4), copy_gb_per_s(1 << 30)
    about: dict[str, object] = {"gpu": gpu.name, "cuda": torch.version.cuda, "l2_bytes": gpu.L2_cache_size}
    rows = [{"case": "copies", "cache_gb_s": round(cache_gb_s, 1), "memory_gb_s": round(memory_gb_s, 1), **about}]
    print(rows[0], flush=True)
    rows += kernel_rows("encoder, batch 1", 1, None, cache_gb_s, memory_gb_s)
    rows += kernel_rows("encoder, batch 8", 8, None, cache_gb_s, memory_gb_s)
    rows += kernel_rows("decoder, 3,450 queries", 1, 3450, cache_gb_s, memory_gb_s)
    return rows + network_rows(1) + network_rows(8)


def main() -> None:
    if torch.cuda.is_available():
        rows = measure()
    else:
        rows = []
        print("no CUDA device: the rows stay empty")
    print(record("gpu", rows))


if __name__ == "__main__":
    main()
