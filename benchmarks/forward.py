"""Time of one forward pass of Swin-T on a CPU, compared with the time of its matrix products.

One class, 17 keypoints, 800 x 1333, batch 1, seeded random weights and pixels. Times differ between machines, so each
is also given as a multiple of a reference time that is measured in the same run: float32 matrix products with the 588
GFLOP of the network. The original takes 5.7 times this reference in float32 (measured elsewhere, on 2 threads of an
AVX-512 CPU).

    python -m benchmarks.forward [--threads 2] [--repeats 3] [--height 800] [--width 1333]
"""

import argparse
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks._record import record
from engines.checkpoint import load_weights
from engines.precision import place
from engines.xpose import XPose, XPoseOutput
from engines.xpose.selection import top_queries

NETWORK_GFLOP = 588.0  # of 2 x MAC at 800 x 1333, all exact savings
YARDSTICK_SIDE = 4096
ORIGINAL_FLOAT32_YARDSTICKS = 5.7
KEYPOINTS = 17
SELECTION = "engines.xpose.model.top_queries"
CLEAR_REFERENCES = Path("/proc/self/clear_refs")


def yardstick_s() -> float:
    """Time float32 matrix products and scale them to the network's."""
    left, right = torch.randn(YARDSTICK_SIDE, YARDSTICK_SIDE), torch.randn(YARDSTICK_SIDE, YARDSTICK_SIDE)
    started = time.perf_counter()
    torch.mm(left, right)
    return (time.perf_counter() - started) * NETWORK_GFLOP / (2 * YARDSTICK_SIDE**3 / 1e9)


def peak_memory_gib() -> float:
    """Largest resident memory since `forget_peak_memory`, or of the whole process where Linux cannot forget it."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def resident_gib() -> float:
    """Resident memory now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() / 2**30


def inputs(height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Smooth seeded pixels, one class, 17 keypoints."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randn(1, 3, max(height // 16, 1), max(width // 16, 1), generator=generator)
    pixels = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return pixels, torch.randn(1, 1, 512, generator=generator), torch.randn(1, KEYPOINTS, 512, generator=generator)


@contextmanager
def sampling(kernel: str) -> Iterator[None]:
    """Run deformable attention by plain PyTorch or by the compiled kernel."""
    with ExitStack() as stack:
        if kernel == "plain":
            stack.enter_context(patch("engines.kernels.operator.cpu.available", return_value=False))
        yield


def measure(forward: Callable[[], XPoseOutput], repeats: int) -> dict[str, float]:
    """Time the yardstick and the forward in turn; medians, and the spread from fastest to slowest."""
    forward()
    pairs = []
    for _ in range(repeats):
        yardstick = yardstick_s()
        started = time.perf_counter()
        forward()
        pairs.append((yardstick, time.perf_counter() - started))
    yardstick, seconds = (statistics.median(column) for column in zip(*pairs, strict=True))
    return {
        "median_s": round(seconds, 3),
        "fastest_s": round(min(pair[1] for pair in pairs), 3),
        "slowest_s": round(max(pair[1] for pair in pairs), 3),
        "yardstick_s": round(yardstick, 3),
        "yardsticks": round(seconds / yardstick, 3),
        "of_the_original_float32": round(seconds / yardstick / ORIGINAL_FLOAT32_YARDSTICKS, 3),
    }


def with_ranks(model: XPose, arguments: tuple[Tensor, Tensor, Tensor], chosen: list[Tensor]) -> XPoseOutput:
    """Run with the selections in `chosen`, or note them there if it is empty."""
    replay = iter(list(chosen))

    def choose(scores_BQ: Tensor, count: int) -> Tensor:
        index_BQ = next(replay, None)
        if index_BQ is None:
            index_BQ = top_queries(scores_BQ, count)
            chosen.append(index_BQ)
        return index_BQ

    with patch(SELECTION, choose):
        output = model(*arguments)
    assert isinstance(output, XPoseOutput)
    return output


def drift_px(rough: XPoseOutput, exact: XPoseOutput, height: int, width: int) -> dict[str, float]:
    """Distance between the keypoints of two runs of the same ranks, in pixels of the input."""
    scale = torch.tensor([width, height])
    distance = ((rough.keypoints_BGK2 - exact.keypoints_BGK2) * scale).norm(dim=-1).flatten()
    return {
        "drift_median_px": round(float(distance.median()), 4),
        "drift_p99_px": round(float(distance.quantile(0.99)), 4),
        "drift_max_px": round(float(distance.max()), 4),
    }


def main() -> None:
    """Measure float32 and bfloat16, each with plain and with compiled sampling, and record the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--height", type=int, default=800)
    parser.add_argument("--width", type=int, default=1333)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    network = load_weights("swin-t", "random")[0]
    arguments = inputs(options.height, options.width)
    before_gib = resident_gib()
    chosen: list[Tensor] = []
    rows: list[dict[str, object]] = []
    with torch.inference_mode():
        exact = with_ranks(network, arguments, chosen)
        for precision in ("fp32", "bf16"):
            model = place(network, precision)
            for kernel in ("plain", "compiled"):
                with sampling(kernel):
                    times = measure(lambda model=model: model(*arguments), options.repeats)  # type: ignore[misc]
                    drift = drift_px(with_ranks(model, arguments, chosen), exact, options.height, options.width)
                row: dict[str, object] = {
                    "precision": precision,
                    "sampling": kernel,
                    "height": options.height,
                    "width": options.width,
                    "threads": options.threads,
                    **times,
                    **drift,
                    "resident_before_gib": round(before_gib, 2),
                    "peak_gib": round(peak_memory_gib(), 2),
                }
                print(row, flush=True)
                rows.append(row)
    print(record("forward", rows))


if __name__ == "__main__":
    main()
