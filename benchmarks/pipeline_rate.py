"""The whole pipeline with a real engine: a 640 x 480 file, decode to publish, frames per second.

    python -m benchmarks.pipeline_rate [--frames 300] [--threads 2] [--backends eager,openvino] [--weights FILE]
        [--sizes 256x320,256x256]

The file is encoded here from the synthetic scenes; prompts are one class with 17 keypoints. The rate counts from the
first frame's decoding to the last one's publishing; the goal for nano on two cores is 15.
"""

import argparse
import itertools
import statistics
import tempfile
import time
from contextlib import closing
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

GOAL = 15.0


def rate(config: EngineConfig, clip: Path, frames: int, repeats: int) -> dict[str, object]:
    """Run the pipeline over `clip`, several times; returns a row."""
    prompts = parse_prompt("person", max_classes=config.max_classes, max_keypoints=config.max_keypoints)
    settings = PipelineConfig(engine=config, publish=PublishConfig(endpoint="tcp://127.0.0.1:*"))
    rates = []
    with closing(Engine(settings.engine_of_pipeline)) as engine:
        for _ in range(repeats):
            pipeline = Pipeline(settings)
            pipeline.add(str(clip))
            started = time.perf_counter()
            published = pipeline.run(engine, prompts).published
            rates.append(frames / (time.perf_counter() - started))
            if published != frames:
                raise RuntimeError(f"{published} of {frames} frames were published")
        return {
            "model": config.model,
            "backend": engine.backend_name,
            "precision": engine.precision,
            "input_hw": engine.input_hw,
            "threads": config.threads,
            "batch": engine.batch,
            "frames_per_s_median": round(statistics.median(rates), 1),
            "frames_per_s_min": round(min(rates), 1),
            "frames_per_s_max": round(max(rates), 1),
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
        for backend, size in itertools.product(options.backends.split(","), options.sizes.split(",")):
            size_hw = parse_size(size) if size else None
            config = EngineConfig(backend=backend, weights=options.weights, size=size_hw, threads=options.threads)
            rows.append(rate(config, clip, options.frames, options.repeats))
            print(rows[-1])
    print(record("pipeline_rate", rows))


if __name__ == "__main__":
    main()
