"""The measurements of `benchmarks.gpu`, one function per step. Each yields its rows as soon as they are known."""

import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from benchmarks._gpu_device import Device
from engines.backends import PendingPoses
from engines.backends.slots import IN_FLIGHT
from engines.kernels import cuda, ms_deform_attn
from engines.kernels.reference import ms_deform_attn_reference
from engines.precision import place
from engines.prompt_tensors import PromptTensors
from engines.xpose import XPose, XPoseConfig

Row = dict[str, object]


@dataclass(frozen=True)
class Sizes:
    """Sizes of the measurements. The published figures use the defaults.

    Attributes:
        levels: (height, width) of the pyramid of a Swin-T at `input_hw`, in cells.
        decoder_queries: 50 groups of 69 tokens.
        batches: images per call.
        aims_ms: for each batch, the time per frame that the forward should not exceed on an H200.
        copy_bytes: large enough to miss every cache.
        repeats: timed runs per row.
        calls_per_graph: kernel launches in one CUDA graph.
        networks: configurations by name.
        blocks_per_processor: launch bounds to compare.
        picture_hw: height and width of the pictures that go through the slots, px.
        slot_frames: number of these pictures.
    """

    input_hw: tuple[int, int] = (800, 1344)
    levels: tuple[tuple[int, int], ...] = ((100, 168), (50, 84), (25, 42), (13, 21))
    heads: int = 8
    depth: int = 32
    points: int = 4
    decoder_queries: int = 3450
    keypoints: int = 17
    batches: tuple[int, ...] = (1, 8)
    aims_ms: tuple[float, ...] = (8.0, 4.0)
    copy_bytes: int = 1 << 30
    repeats: int = 30
    calls_per_graph: int = 20
    networks: tuple[tuple[str, XPoseConfig], ...] = (("Swin-T", XPoseConfig.swin_t()), ("nano", XPoseConfig.nano()))
    blocks_per_processor: tuple[int, ...] = (2, 3, 4, 5)
    picture_hw: tuple[int, int] = (1080, 1920)
    slot_frames: int = 400


def timed(name: str, values_ms: list[float], **more: object) -> Row:
    """Return one row: the median and the distance between the quartiles."""
    low, median, high = statistics.quantiles(values_ms, n=4)
    return {"case": name, "median_ms": round(median, 4), "spread_ms": round(high - low, 4), **more}


def kernel_inputs(
    device: torch.device, sizes: Sizes, batch: int, queries: int | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return value, reference, offsets and logits in float32; `queries` None means one per token, as in the encoder."""
    draw = torch.Generator(device=device).manual_seed(0)
    tokens, levels = sum(height * width for height, width in sizes.levels), len(sizes.levels)
    random = partial(torch.randn, generator=draw, device=device)
    if queries is None:
        centres = [
            torch.cartesian_prod((torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width).flip(-1)
            for height, width in sizes.levels
        ]
        reference = torch.cat(centres)[None, :, None].expand(batch, -1, levels, -1).to(device)
    else:
        reference = torch.rand(batch, queries, 1, 4, generator=draw, device=device).expand(-1, -1, levels, -1)
    count = reference.shape[1]
    return (
        random(batch, tokens, sizes.heads, sizes.depth),
        reference.contiguous(),
        random(batch, count, sizes.heads, levels, sizes.points, 2) * 3,
        random(batch, count, sizes.heads, levels, sizes.points),
    )


def launch_step(device: Device, sizes: Sizes) -> Iterator[Row]:
    """Launch each kernel once, small: compute-sanitizer slows a launch down a hundred times."""
    from engines.kernels.letterbox import letterbox_into
    from engines.nv12 import BT709

    small = replace(sizes, levels=((5, 7), (3, 4)))
    for dtype in cuda.VALUE_CODES:
        for queries in (None, 9):
            value, *others = kernel_inputs(device.torch_device, small, 2, queries)
            ms_deform_attn(value.to(dtype), small.levels, *others)
    for dtype in (torch.float32, torch.float16):
        out_3HW = torch.empty(3, 32, 48, dtype=dtype, device=device.torch_device)
        letterbox_into(out_3HW, torch.zeros(30, 41, 3, dtype=torch.uint8, device=device.torch_device))
        letterbox_into(out_3HW, torch.zeros(45, 40, dtype=torch.uint8, device=device.torch_device), BT709)
    device.synchronize()
    yield {"case": "one small launch of each kernel", "finished": True}


def accuracy_step(device: Device, sizes: Sizes) -> Iterator[Row]:
    """Compare the kernel with the float64 reference.

    The largest error may be twice that of eager half precision, which rounds every input. The root mean square may be
    twice that of rounding the values alone.
    """
    for name, queries in (("encoder", None), ("decoder", sizes.decoder_queries)):
        value, *others = kernel_inputs(device.torch_device, sizes, 1, queries)
        exact = ms_deform_attn_reference(value.double(), sizes.levels, *(tensor.double() for tensor in others))
        for dtype in cuda.VALUE_CODES:
            typed, rounded = value.to(dtype), [tensor.to(dtype).float() for tensor in others]
            forms = (
                ms_deform_attn(typed, sizes.levels, *others),
                ms_deform_attn_reference(typed, sizes.levels, *rounded),
                ms_deform_attn_reference(typed, sizes.levels, *others),
            )
            errors = [form.double() - exact for form in forms]
            largest, largest_eager, _ = (float(error.abs().max()) for error in errors)
            rms, _, rms_plain = (float(error.square().mean().sqrt()) for error in errors)
            limit, rms_limit = max(2 * largest_eager, 1e-5), max(2 * rms_plain, 1e-6)
            yield {
                "case": f"kernel against float64, {name}, {_name(dtype)}",
                "largest_error": largest,
                "largest_limit": limit,
                "rms_error": rms,
                "rms_limit": rms_limit,
                "passed": largest <= limit and rms <= rms_limit,
            }


def kernel_step(device: Device, sizes: Sizes) -> Iterator[Row]:
    """Time the kernel, and compare it with grid sampling and with a lower bound from the bytes that it must move.

    The bound is the longer one of two times: that in which the GPU's second-level cache can deliver the gathered bytes,
    and that in which its memory can move the bytes that must be moved once. Both bandwidths are measured with copies in
    the same run; reads and writes are counted.
    """
    about = device.about()
    cache_gb_s = _copy_gb_per_s(device, sizes, int(str(about["l2_bytes"])) // 4)
    memory_gb_s = _copy_gb_per_s(device, sizes, sizes.copy_bytes)
    yield {"case": "copies", "cache_gb_s": round(cache_gb_s, 1), "memory_gb_s": round(memory_gb_s, 1), **about}
    shapes: list[tuple[str, int, int | None]] = [(f"encoder, batch {batch}", batch, None) for batch in sizes.batches]
    shapes.append((f"decoder, {sizes.decoder_queries} queries", 1, sizes.decoder_queries))
    for name, batch, queries in shapes:
        yield from _kernel_rows(device, sizes, name, kernel_inputs(device.torch_device, sizes, batch, queries),
                                cache_gb_s, memory_gb_s)  # fmt: skip
    yield from _bound_rows(device, sizes)


def _copy_gb_per_s(device: Device, sizes: Sizes, copied_bytes: int) -> float:
    source = torch.empty(copied_bytes, dtype=torch.uint8, device=device.torch_device)
    target = torch.empty_like(source)
    replay = device.captured(lambda: target.copy_(source), sizes.calls_per_graph)
    median_ms = statistics.median(device.time_ms(replay, sizes.repeats))
    return 2 * copied_bytes * sizes.calls_per_graph / median_ms / 1e6


def _per_call_ms(device: Device, sizes: Sizes, run: Callable[[], object]) -> list[float]:
    replay = device.captured(run, sizes.calls_per_graph)
    return [taken / sizes.calls_per_graph for taken in device.time_ms(replay, sizes.repeats)]


def _kernel_rows(
    device: Device,
    sizes: Sizes,
    name: str,
    inputs: tuple[Tensor, Tensor, Tensor, Tensor],
    cache_gb_s: float,
    memory_gb_s: float,
) -> Iterator[Row]:
    value, *others = inputs
    reference, offsets, logits = others
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        typed = value.to(dtype)
        out = ms_deform_attn(typed, sizes.levels, reference, offsets, logits)
        taken = _per_call_ms(device, sizes, partial(ms_deform_attn, typed, sizes.levels, reference, offsets, logits))
        gathered = offsets.numel() // 2 * 4 * sizes.depth * dtype.itemsize
        moved = sum(tensor.nbytes for tensor in (typed, *others, out))
        cache_ms, memory_ms = gathered / cache_gb_s / 1e6, moved / memory_gb_s / 1e6
        yield timed(
            f"kernel, {name}, {_name(dtype)}",
            taken,
            gathered_bytes=gathered,
            moved_bytes=moved,
            cache_bound_ms=round(cache_ms, 4),
            memory_bound_ms=round(memory_ms, 4),
            part_of_bound=round(max(cache_ms, memory_ms) / statistics.median(taken), 3),
        )
    for dtype in (torch.float16, torch.float32):
        sample = partial(
            ms_deform_attn_reference, value.to(dtype), sizes.levels, reference, offsets, logits, compute=dtype
        )
        yield timed(f"grid sampling, {name}, {_name(dtype)}", device.time_ms(sample, sizes.repeats))


def _bound_rows(device: Device, sizes: Sizes) -> Iterator[Row]:
    """Time the encoder's float16 kernel with other bounds on its registers."""
    value, reference, offsets, logits = kernel_inputs(device.torch_device, sizes, 1, None)
    value = value.half()
    flat = [cells for size in sizes.levels for cells in size]
    launch = cuda.launch_of(value.dtype, value.shape, reference.shape, offsets.shape, flat)
    out_BQC = value.new_empty(1, launch.queries, sizes.heads * sizes.depth)
    for blocks in sizes.blocks_per_processor:
        bounded = replace(launch, variant=replace(launch.variant, blocks_per_processor=blocks))
        run = partial(cuda.run, bounded, value, reference, offsets, logits, out_BQC)
        yield timed(f"kernel, encoder, float16, {blocks} blocks per processor", _per_call_ms(device, sizes, run))


def network_step(device: Device, sizes: Sizes) -> Iterator[Row]:
    """Time one forward in float16: eager, then replayed from a CUDA graph, per frame."""
    for name, config in sizes.networks:
        torch.manual_seed(0)
        model = place(XPose(config).eval(), "fp16").to(device.torch_device)
        for batch, aim_ms in zip(sizes.batches, sizes.aims_ms, strict=True):
            case = f"{name}, {sizes.input_hw[0]} x {sizes.input_hw[1]}, batch {batch}, float16"
            pixels = torch.randn(batch, 3, *sizes.input_hw, device=device.torch_device)
            prompts = model.encode_prompts(
                torch.randn(batch, 1, config.text_dim, device=device.torch_device),
                torch.randn(batch, sizes.keypoints, config.text_dim, device=device.torch_device),
            )
            run = partial(model.detect, pixels, prompts)
            eager = [taken / batch for taken in device.time_ms(run, max(sizes.repeats // 3, 2))]
            yield timed(f"{case}, eager, per frame", eager)
            replayed = [taken / batch for taken in device.time_ms(device.captured(run), sizes.repeats)]
            yield timed(f"{case}, CUDA graph, per frame", replayed, aim_ms=aim_ms,
                        aim_reached=statistics.median(replayed) <= aim_ms)  # fmt: skip


def slots_step(device: Device, sizes: Sizes) -> Iterator[Row]:
    """Count frames per second through the slots: pictures in host memory in, poses in host memory out."""
    height, width = sizes.picture_hw
    draw = np.random.default_rng(0)
    pictures = [draw.integers(0, 256, (height, width, 3), dtype=np.uint8) for _ in range(4)]
    for name, config in sizes.networks:
        torch.manual_seed(0)
        backend = device.slots_backend(XPose(config).eval(), sizes.input_hw, "fp16")
        backend.set_prompts(_random_prompts(config, sizes.keypoints))
        pending: deque[PendingPoses] = deque()
        taken_s = []
        begun = time.perf_counter()
        for frame in range(sizes.slot_frames):
            pending.append(backend.submit([pictures[frame % len(pictures)]]))
            if len(pending) == IN_FLIGHT:
                pending.popleft().result()
                now = time.perf_counter()
                taken_s.append(now - begun)
                begun = now
        while pending:
            pending.popleft().result()
        backend.close()
        steady_ms = [1e3 * taken for taken in taken_s[IN_FLIGHT:]]
        case = f"{name} through the slots, {height} x {width} pictures, input {sizes.input_hw[0]} x {sizes.input_hw[1]}"
        yield timed(f"{case}, float16, per frame", steady_ms,
                    frames_per_s=round(1e3 / statistics.fmean(steady_ms), 1), in_flight=IN_FLIGHT)  # fmt: skip


def _random_prompts(config: XPoseConfig, keypoints: int) -> PromptTensors:
    draw = torch.Generator().manual_seed(0)
    return PromptTensors(
        objects_C512=torch.randn(1, config.text_dim, generator=draw),
        object_valid_C=torch.ones(1, dtype=torch.bool),
        keypoints_CK512=torch.randn(1, keypoints, config.text_dim, generator=draw),
        keypoint_valid_CK=torch.ones(1, keypoints, dtype=torch.bool),
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
