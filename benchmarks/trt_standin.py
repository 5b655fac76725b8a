"""Differences between PyTorch and whole networks that were converted for TensorRT and computed by the stand-in.

    python -m benchmarks.trt_standin [--networks nano random swin-t] [--precisions fp32 fp16 bf16] [--random 20]
        [--swin-t-size 800 1344] [--record]

TensorRT's builder was not available, so no engine is built here. torch-tensorrt's converters and ours run with
`tests/trt_standin`, which checks TensorRT's documented rules and computes every layer. Each row has the engine's errors
relative to float32 PyTorch. In half precision, it also has the errors of PyTorch with half precision in the same
places. Swin-T at 800 x 1344 needs about 10 GiB of memory and several minutes.
"""

import argparse
from typing import Any

from benchmarks._record import record


def rows_of(network: str, precision: str, count: int, swin_t_hw: tuple[int, int]) -> list[dict[str, Any]]:
    """Convert one kind of network in its own process."""
    from tests.trt_standin import run_offline

    arguments = [network, precision]
    if network == "random":
        arguments += ["1", str(1 + count)]
    elif network == "swin-t":
        arguments += map(str, swin_t_hw)
    found = run_offline("tests.trt_standin.networks", *arguments, timeout_s=3 * 3600)
    if network == "nano":
        found = found[precision]
    return [{"network": network, **row} for row in (found if isinstance(found, list) else [found])]


def main() -> None:
    """Convert, compute, print; record on request."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--networks", nargs="+", choices=("nano", "random", "swin-t"), default=["nano", "random", "swin-t"]
    )
    parser.add_argument("--precisions", nargs="+", choices=("fp32", "fp16", "bf16"), default=["fp32", "fp16"])
    parser.add_argument("--random", type=int, default=20, help="how many random networks")
    parser.add_argument("--swin-t-size", nargs=2, type=int, default=(800, 1344), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    rows = []
    for network in options.networks:
        for precision in options.precisions:
            for row in rows_of(network, precision, options.random, tuple(options.swin_t_size)):
                rows.append(row)
                print(row, flush=True)
            if options.record:  # what is known is kept, whatever comes after
                print(record("trt_standin", rows))


if __name__ == "__main__":
    main()
