"""The pipeline's own cost: a file through all stages with an engine that returns at once, compared with PyAV alone.

    python -m benchmarks.line [--frames 1500] [--repeats 5]

PyAV alone decodes the same file and resizes each frame to the engine's input. Both run in turns in one process; the
goal is 80 % of PyAV's rate. The file is 640 x 480 H.264, encoded here from the synthetic scenes.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import av

from benchmarks._record import record
from engines.detections import Detections
from engines.nv12 import Image
from engines.prompts import PromptClass, parse_prompt
from pipeline.config import PipelineConfig
from pipeline.flow.pipeline import Pipeline
from pipeline.sources import open_source

INPUT_PX = 320
GOAL = 0.80


class InstantEngine:
    """An engine that returns no detections, without any delay."""

    batch = in_flight = 1
    on_gpu = takes_nv12 = False

    def __init__(self) -> None:
        self._nothing = Detections.empty((), 1)

    def set_prompts(self, classes: Sequence[PromptClass]) -> int:
        self._nothing = Detections.empty(tuple(classes), 1)
        return 1

    def set_thresholds(self, score_threshold: float, nms_iou: float) -> None:
        """The detections are fixed."""

    def submit(self, images: Sequence[Image]) -> "Finished":
        return Finished([self._nothing] * len(images))


@dataclass(frozen=True)
class Finished:
    """Detections that are available without waiting."""

    detections: list[Detections]

    def result(self) -> list[Detections]:
        """Return them."""
        return self.detections


def main() -> None:
    """Measure both, print and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=1500)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / "clip.mp4"
        encode_clip(clip, options.frames)
        alone, line = [], []
        for _ in range(options.repeats):
            alone.append(timed(lambda: decode_and_resize(clip)))
            line.append(timed(lambda: run_line(clip, options.frames)))
    rows: list[dict[str, object]] = [
        {"what": "PyAV alone: decode, resize to 320 x 320", **rates(alone, options.frames)},
        {"what": "the pipeline: decode to publish, instant engine", **rates(line, options.frames)},
    ]
    share = statistics.median(before.wall_s / after.wall_s for before, after in zip(alone, line, strict=True))
    rows.append({"what": "line / PyAV alone, median of pairs", "share": round(share, 3), "goal": GOAL})
    for row in rows:
        print(row)
    print(record("line", rows))


def encode_clip(path: Path, frames: int) -> None:
    """Write `frames` frames as H.264: 60 drawn ones, repeated forwards and backwards, because drawing is slow."""
    drawn = [frame.rgb_HW3 for frame in open_source("testsrc://?frames=60&size=640x480")]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"preset": "fast", "crf": "23"})
        stream.width, stream.height, stream.pix_fmt = 640, 480, "yuv420p"
        for index in range(frames):
            place = index % 118
            rgb_HW3 = drawn[place if place < 60 else 118 - place]
            if rgb_HW3 is None:
                raise RuntimeError("the synthetic source gave no pixels")
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb_HW3, format="rgb24")))
        container.mux(stream.encode(None))


def decode_and_resize(clip: Path) -> None:
    """PyAV alone, with the decoder threads that the pipeline uses."""
    with av.open(str(clip)) as container:
        container.streams.video[0].thread_type = "AUTO"
        for picture in container.decode(video=0):
            picture.reformat(INPUT_PX, INPUT_PX, format="rgb24").to_ndarray()


def run_line(clip: Path, frames: int) -> None:
    """Run the whole pipeline, including publishing."""
    prompts = parse_prompt("person", max_classes=8, max_keypoints=68)
    pipeline = Pipeline(PipelineConfig())
    pipeline.add(str(clip))
    published = pipeline.run(InstantEngine(), prompts).published
    if published != frames:
        raise RuntimeError(f"{published} of {frames} frames were published")


@dataclass(frozen=True)
class Duration:
    """Wall-clock seconds, and processor seconds of all threads together."""

    wall_s: float
    cpu_s: float


def timed(action: Callable[[], None]) -> Duration:
    """Measure `action`."""
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    action()
    return Duration(time.perf_counter() - wall_s, time.process_time() - cpu_s)


def rates(runs: Sequence[Duration], frames: int) -> dict[str, object]:
    """Median and spread of frames per second, and the processor time of a frame."""
    per_second = [frames / run.wall_s for run in runs]
    return {
        "frames_per_s_median": round(statistics.median(per_second), 1),
        "frames_per_s_min": round(min(per_second), 1),
        "frames_per_s_max": round(max(per_second), 1),
        "cpu_ms_per_frame": round(1000 * statistics.median(run.cpu_s for run in runs) / frames, 3),
        "repeats": len(runs),
    }


if __name__ == "__main__":
    main()
