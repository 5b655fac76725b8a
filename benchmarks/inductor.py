"""AOTInductor against eager PyTorch on this machine, side by side, on the same inputs.

One class with 17 keypoints, batch 1, seeded random weights (times do not depend on them).

    python -m benchmarks.inductor [--models nano,swin-t] [--threads 2] [--repeats 5]
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks._record import record
from engines.backends.inductor import compile_program, load_package
from engines.checkpoint import load_weights
from engines.export import Detector, DetectorInputs, EngineShape, example_inputs, export

SIZES = {"swin-t": (800, 1344)}


def seconds_of(run: Callable[[], object]) -> float:
    """Time one call."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def compare(name: str, precision: str, repeats: int) -> dict[str, object]:
    """Compile one network and time both forms in turn; returns a row."""
    model = load_weights(name, "random")[0].eval()
    shape = EngineShape(SIZES.get(name, model.config.input_hw), batch=1, max_classes=1, max_keypoints=17)
    inputs: DetectorInputs = example_inputs(model, shape)
    program = export(model, shape, precision)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        package = Path(folder) / "engine.pt2"
        compile_s = seconds_of(lambda: compile_program(program, package))
        compiled, eager = load_package(package), Detector(model)
        runs = (lambda: eager(*inputs), lambda: compiled(list(inputs)))
        for run in runs:
            run()
        pairs = [tuple(map(seconds_of, runs)) for _ in range(repeats)]
    eager_s, compiled_s = (statistics.median(column) for column in zip(*pairs, strict=True))
    return {
        "model": name,
        "precision": precision,
        "input_hw": shape.input_hw,
        "threads": torch.get_num_threads(),
        "compile_s": round(compile_s, 1),
        "eager_ms": round(eager_s * 1e3, 1),
        "inductor_ms": round(compiled_s * 1e3, 1),
        "inductor_spread_ms": round((max(pair[1] for pair in pairs) - min(pair[1] for pair in pairs)) * 1e3, 1),
        "eager_over_inductor": round(eager_s / compiled_s, 2),
    }


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="nano,swin-t")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for name in options.models.split(","):
        for precision in ("fp32", "bf16"):
            rows.append(compare(name, precision, options.repeats))
            print(rows[-1])
    print(record("inductor", rows))


if __name__ == "__main__":
    main()
