"""Engines for CPUs, side by side in one run: eager PyTorch, OpenVINO, and AOTInductor, which we do not ship.

    python -m benchmarks.cpu_engines [--model nano] [--weights FILE] [--size 256x320] [--threads 2] [--repeats 20]
        [--engines eager,openvino,openvino-bf16,inductor]

One class with 17 keypoints. For each engine: seconds until it is ready (export, compilation), milliseconds of one frame
with all threads, frames per second with as many frames in flight as the engine runs at the same time, and processor
milliseconds per frame, which depend least on other work on the machine. Frames are 640 x 480; the time to scale them
into the input is included. The engines take turns, so that a slow moment of the machine affects all of them.
AOTInductor runs one frame at a time here.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks._record import record
from engines.backends import Backend, FinishedPoses, PendingPoses
from engines.backends.compiled import EncodedPrompts, raw_poses
from engines.backends.eager import EagerBackend
from engines.backends.openvino import OpenVinoBackend, operators
from engines.checkpoint import load_weights
from engines.export import EngineShape, export
from engines.onnx_export import export_onnx
from engines.preprocess import letterbox_batch, parse_size
from engines.prompt_tensors import PromptTensors
from engines.xpose import XPose

CPU = torch.device("cpu")
FRAMES = 8  # of one measurement of throughput


class InductorBackend:
    """The exported program, compiled ahead of time by PyTorch."""

    batch = in_flight = 1

    def __init__(self, model: XPose, shape: EngineShape, folder: Path) -> None:
        self.input_hw: tuple[int, int] | None = shape.input_hw
        package = str(folder / "engine.pt2")
        options = {"freezing": True}
        torch._inductor.aoti_compile_and_package(
            export(model, shape, "fp32"), package_path=package, inductor_configs=options
        )
        self._package = torch._inductor.aoti_load_package(package)
        self._prompts = EncodedPrompts(model, shape.max_classes, shape.max_keypoints)

    def set_prompts(self, prompts: PromptTensors) -> None:
        """Use these prompts from the next call of `submit` on."""
        self._prompts.set(prompts)

    @torch.inference_mode()
    def submit(self, images: Sequence[NDArray[np.uint8]]) -> FinishedPoses:
        """Run one RGB image [H, W, 3]."""
        assert self.input_hw is not None
        batch = letterbox_batch(images, self.input_hw)
        results = self._package(*self._prompts.get()._replace(pixels_B3HW=batch.pixels_B3HW(CPU).contiguous()))
        return FinishedPoses(raw_poses(results, batch.placements))

    def close(self) -> None:
        """Do nothing: there are no resources to free."""


@dataclass
class Measured:
    """One engine and its measurements."""

    backend: Backend
    ready_s: float
    latency_s: list[float] = field(default_factory=list)
    frames_per_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)

    def measure(self, image: NDArray[np.uint8]) -> None:
        """Time one frame alone, then `FRAMES` frames in flight."""
        started = time.perf_counter()
        self.backend.submit([image]).result()
        self.latency_s.append(time.perf_counter() - started)
        started, cpu_started = time.perf_counter(), time.process_time()
        pending: list[PendingPoses] = []
        for _ in range(FRAMES):
            if len(pending) == self.backend.in_flight:
                pending.pop(0).result()
            pending.append(self.backend.submit([image]))
        for item in pending:
            item.result()
        self.frames_per_s.append(FRAMES / (time.perf_counter() - started))
        self.cpu_s.append((time.process_time() - cpu_started) / FRAMES)

    def row(self, name: str) -> dict[str, object]:
        """Medians and spreads."""
        return {
            "engine": name,
            "in_flight": self.backend.in_flight,
            "ready_s": round(self.ready_s, 1),
            "latency_ms_median": round(statistics.median(self.latency_s) * 1e3, 1),
            "latency_ms_min": round(min(self.latency_s) * 1e3, 1),
            "latency_ms_max": round(max(self.latency_s) * 1e3, 1),
            "frames_per_s_median": round(statistics.median(self.frames_per_s), 1),
            "frames_per_s_min": round(min(self.frames_per_s), 1),
            "frames_per_s_max": round(max(self.frames_per_s), 1),
            "cpu_ms_per_frame": round(statistics.median(self.cpu_s) * 1e3, 1),
        }


def makers(model: XPose, shape: EngineShape, folder: Path) -> dict[str, Callable[[], Backend]]:
    """Return a function for each engine that makes it, without anything cached from an earlier run."""

    def openvino(precision: str) -> Backend:
        path = folder / precision / "engine.onnx"
        path.parent.mkdir()
        path.write_bytes(export_onnx(model, shape.input_hw, whole_operators=operators() is not None))
        return OpenVinoBackend(path, model, shape, precision)

    return {
        "eager": lambda: EagerBackend(model, shape.input_hw, 1, "fp32", CPU),
        "openvino": lambda: openvino("fp32"),
        "openvino-bf16": lambda: openvino("bf16"),
        "inductor": lambda: InductorBackend(model, shape, folder),
    }


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--weights", default="")
    parser.add_argument("--size", default="")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--engines", default="eager,openvino,openvino-bf16")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = load_weights(options.model, options.weights)[0].eval().requires_grad_(False)
    input_hw = parse_size(options.size) if options.size else model.config.input_hw
    shape = EngineShape(input_hw, batch=1, max_classes=1, max_keypoints=17)
    generator = torch.Generator().manual_seed(0)
    prompts = PromptTensors(
        objects_C512=torch.randn(1, 512, generator=generator),
        object_valid_C=torch.ones(1, dtype=torch.bool),
        keypoints_CK512=torch.randn(1, 17, 512, generator=generator),
        keypoint_valid_CK=torch.ones(1, 17, dtype=torch.bool),
    )
    image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    measured: dict[str, Measured] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.engines.split(","):
            started = time.perf_counter()
            backend = makers(model, shape, Path(folder))[name]()
            measured[name] = Measured(backend, time.perf_counter() - started)
            backend.set_prompts(prompts)
            backend.submit([image]).result()  # the first call of each is slower
        for _ in range(options.repeats):
            for engine in measured.values():
                engine.measure(image)
    facts = {"model": options.model, "input_hw": input_hw, "threads": options.threads, "repeats": options.repeats}
    rows = [{**facts, **engine.row(name)} for name, engine in measured.items()]
    for row in rows:
        print(row)
    print(record("cpu_engines", rows))
    for engine in measured.values():
        engine.backend.close()


if __name__ == "__main__":
    main()
