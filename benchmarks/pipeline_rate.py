"""Frame rate of the whole pipeline with a real engine, from decoding to publishing, on a 640 x 480 file.

    python -m benchmarks.pipeline_rate [--frames 300] [--threads 2] [--backends eager,openvino] [--weights FILE]
        [--sizes 256x320,256x256]

The file is encoded here from the synthetic scenes; the prompt is one class with 17 keypoints. The rate is measured from
the decoding of the first frame to the publishing of the last one. The engines take turns, so that a slow moment of the
machine affects all of them; ratios are relative to the first engine. The processor time depends least on other work on
the machine. The goal for nano is 1.8 times the rate of eager PyTorch, and 30 frames per second on two cores with
AVX-512.
"""

import argparse
import dataclasses
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks._record import record
from benchmarks.line import encode_clip
from engines.config import EngineConfig
from engines.engine import Engine
from engines.preprocess import parse_size
from engines.prompts import parse_prompt
from pipeline.config import PipelineConfig
from pipeline.flow.pipeline import Pipeline
from pipeline.outputs.publisher import PublishConfig

GOAL = 30.0


class Measured:
    """One engine and the results of its runs."""

    def __init__(self, config: EngineConfig) -> None:
        self.settings = PipelineConfig(engine=config, publish=PublishConfig(endpoint="tcp://127.0.0.1:*"))
        self.engine = Engine(self.settings.engine_of_pipeline)
        self.prompts = parse_prompt("person", max_classes=config.max_classes, max_keypoints=config.max_keypoints)
        self.frames_per_s: list[float] = []
        self.cpu_ms: list[float] = []

    def run(self, clip: Path, frames: int) -> None:
        """Run the pipeline over `clip` once."""
        pipeline = Pipeline(self.settings)
        pipeline.add(str(clip))
        started, cpu_started = time.perf_counter(), time.process_time()
        published = pipeline.run(self.engine, self.prompts).published
        self.frames_per_s.append(frames / (time.perf_counter() - started))
        self.cpu_ms.append((time.process_time() - cpu_started) / frames * 1e3)
        if published != frames:
            raise RuntimeError(f"{published} of {frames} frames were published")

    def row(self, first: "Measured") -> dict[str, object]:
        """Medians and spreads; the ratios are medians of the runs' pairs."""
        config = self.settings.engine
        rates = [mine / its for mine, its in zip(self.frames_per_s, first.frames_per_s, strict=True)]
        cpu = [its / mine for mine, its in zip(self.cpu_ms, first.cpu_ms, strict=True)]
        return {
            "model": config.model,
            "backend": self.engine.backend_name,
            "precision": self.engine.precision,
            "input_hw": self.engine.input_hw,
            "threads": config.threads,
            "batch": self.engine.batch,
            "frames_per_s_median": round(statistics.median(self.frames_per_s), 1),
            "frames_per_s_min": round(min(self.frames_per_s), 1),
            "frames_per_s_max": round(max(self.frames_per_s), 1),
            "cpu_ms_per_frame": round(statistics.median(self.cpu_ms), 1),
            "rate_over_first": round(statistics.median(rates), 2),
            "first_cpu_over_this": round(statistics.median(cpu), 2),
            "goal": GOAL,
        }


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--backends", default="eager,openvino")
    parser.add_argument("--weights", default="")
    parser.add_argument("--sizes", default="", help="heights x widths of the network's input; nothing: the model's own")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / "clip.mp4"
        encode_clip(clip, options.frames)
        for size in options.sizes.split(","):
            settings = EngineConfig(
                weights=options.weights, size=parse_size(size) if size else None, threads=options.threads
            )
            engines = [
                Measured(dataclasses.replace(settings, backend=backend)) for backend in options.backends.split(",")
            ]
            for _ in range(options.repeats):
                for measured in engines:
                    measured.run(clip, options.frames)
            for measured in engines:
                rows.append(measured.row(engines[0]))
                print(rows[-1])
                measured.engine.close()
    print(record("pipeline_rate", rows))


if __name__ == "__main__":
    main()
