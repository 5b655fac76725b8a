"""All measurements that need a GPU, in one command of at most eight minutes.

    python -m benchmarks.gpu [--out FOLDER]

Needs PyTorch 2.11 or newer built for CUDA, numpy, OpenCV, pillow, pytest, and NVRTC, which comes with PyTorch or the
CUDA toolkit. The service's own packages (msgspec, pyzmq, av) are not needed. Rows go to benchmarks/results/gpu.json, or
to FOLDER; each is written as soon as it is known. Steps, in order:

    tests      the GPU tests, under REQUIRE_GPU=1
    sanitizer  one small launch of each kernel under compute-sanitizer, if that is installed
    accuracy   the deformable attention kernel against the float64 reference
    kernel     its time, compared with grid sampling and with the bytes that it must move
    network    Swin-T and nano forward at 800 x 1344 with random weights, one class and 17 keypoints, float16
    slots      frames per second through the slots, from 1080p pictures in host memory to poses in host memory

Each step runs in its own process, so that a failed launch does not affect the next step. A step that fails or takes too
long writes a row that says so. Without a GPU there are no rows: nothing is ever estimated.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch

from benchmarks import _gpu_steps as steps
from benchmarks._gpu_device import Device, Gpu
from benchmarks._record import REPOSITORY, RESULTS, record

TOTAL_S = 470.0
LIMITS_S = {"tests": 200.0, "sanitizer": 60.0, "accuracy": 60.0, "kernel": 90.0, "network": 150.0, "slots": 60.0}
MARKER = "ROW "
MEASURED: Mapping[str, Callable[[Device, steps.Sizes], Iterator[steps.Row]]] = {
    "launch": steps.launch_step,
    "accuracy": steps.accuracy_step,
    "kernel": steps.kernel_step,
    "network": steps.network_step,
    "slots": steps.slots_step,
}
GPU_TESTS_CONFIG = "[pytest]\nmarkers =\n    gpu: needs an NVIDIA GPU\n"
"""The project's own configuration needs plugins that the GPU's machine may lack, and makes warnings of another PyTorch
version errors."""


class Report:
    """Rows that are written to the file one by one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.rows: list[steps.Row] = []
        self.path = record("gpu", [], folder)

    def add(self, row: steps.Row) -> None:
        """Keep a row, print it and write the file again."""
        self.rows.append(row)
        print(json.dumps(row), flush=True)
        record("gpu", self.rows, self._folder)


def measure(name: str, device: Device, sizes: steps.Sizes) -> None:
    """Run one step in this process and print its rows for the parent process."""
    with torch.inference_mode():
        for row in MEASURED[name](device, sizes):
            print(MARKER + json.dumps(row), flush=True)


def gpu_tests() -> list[str]:
    """Paths of the test files that hold a test marked `gpu`."""
    tests = sorted((REPOSITORY / "tests").rglob("test_*.py"))
    return [str(path) for path in tests if "@pytest.mark.gpu" in path.read_text(encoding="utf-8")]


def command_of(name: str, scratch: Path) -> list[str] | None:
    """Return the command of a step; None if its tool is not installed."""
    python = [sys.executable, "-m"]
    if name == "tests":
        config = scratch / "pytest.ini"
        config.write_text(GPU_TESTS_CONFIG, encoding="utf-8")
        options = ["-c", str(config), "--rootdir", str(REPOSITORY), "--import-mode=importlib", "-p", "no:cacheprovider"]
        return [*python, "pytest", "-m", "gpu", "-q", "-rfE", *options, *gpu_tests()]
    if name == "sanitizer":
        tool = shutil.which("compute-sanitizer")
        launch = [*python, "benchmarks.gpu", "--step", "launch"]
        return None if tool is None else [tool, "--error-exitcode", "1", *launch]
    return [*python, "benchmarks.gpu", "--step", name]


def run_step(name: str, command: Sequence[str], limit_s: float, report: Report) -> None:
    """Run a step in a process, add its rows as they come, and add a row about the step itself."""
    begun = time.monotonic()
    environment = {**os.environ, "REQUIRE_GPU": "1", "PYTHONPATH": str(REPOSITORY)}
    timed_out = threading.Event()
    other: list[str] = []
    with subprocess.Popen(
        command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:

        def stop() -> None:
            timed_out.set()
            process.kill()

        timer = threading.Timer(limit_s, stop)
        timer.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith(MARKER):
                    report.add(json.loads(line.removeprefix(MARKER)))
                else:
                    other.append(line.rstrip())
            code = process.wait()
        finally:
            timer.cancel()
            process.kill()
    row: steps.Row = {"step": name, "seconds": round(time.monotonic() - begun, 1), "passed": code == 0}
    if timed_out.is_set():
        row["stopped_after_s"] = round(limit_s, 1)
    if name in ("tests", "sanitizer") or code != 0:
        row["output"] = other[-40:]
    report.add(row)


def run_all(report: Report, total_s: float = TOTAL_S) -> None:
    """Run every step within `total_s`. If no time is left for a step, a row says so."""
    deadline = time.monotonic() + total_s
    with tempfile.TemporaryDirectory() as scratch:
        for name, limit_s in LIMITS_S.items():
            command = command_of(name, Path(scratch))
            left_s = deadline - time.monotonic()
            if command is None:
                report.add({"step": name, "skipped": "compute-sanitizer is not installed"})
            elif left_s < 5:
                report.add({"step": name, "skipped": "no time left"})
            else:
                run_step(name, command, min(limit_s, left_s), report)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for gpu.json")
    parser.add_argument("--step", choices=MEASURED, help="run one step in this process and only print its rows")
    options = parser.parse_args(arguments)
    if options.step is not None:
        measure(options.step, Gpu(), steps.Sizes())
        return
    report = Report(options.out)
    if torch.cuda.is_available():
        run_all(report)
    else:
        print("no CUDA device: the rows stay empty")
    print(report.path)


if __name__ == "__main__":
    main()
