"""Cost and size of a recording, and the rate of `replay`.

    python -m benchmarks.recording [--seconds 30] [--minutes 10]

Another process plays a camera of 1080p30 in H.264, about 4 Mbit/s, over TCP. It is recorded while an engine that takes
no time finds one person in every picture. The cost is CPU time: that of the recorder's thread, and the time that the
decoding and publishing threads spend on the recording. The run is repeated without a recording, to compare the dropped
frames.

The rate of `replay --rate 0` is measured at the publisher, on a recording of ten minutes of this camera with its
messages.

The goals are 3 % of a core and no dropped frame; 1.02 times the packets plus messages; 20,000 messages/s.
"""

import argparse
import functools
import itertools
import multiprocessing
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import av
import numpy as np

from benchmarks._record import record
from benchmarks.chaos.run import free_port
from engines.detections import Detections
from engines.nv12 import Image
from engines.prompts import PromptClass, parse_prompt
from pipeline.config import PipelineConfig
from pipeline.flow.pipeline import Pipeline
from pipeline.outputs.publisher import PublishConfig
from pipeline.outputs.recording import Recorder
from pipeline.recording import VIDEO
from pipeline.service.replay import Replay
from pipeline.sources.recording_file import RecordingFile
from pipeline.sources.tap import StreamTap
from xpose_client.messages import SKELETONS

WIDTH, HEIGHT, RATE = 1920, 1080, 30
BITS_PER_S = 4_000_000
CLIP_S = 5
GOAL_CORE = 0.03
GOAL_SIZE = 1.02
GOAL_MESSAGES_PER_S = 20_000

P = ParamSpec("P")
R = TypeVar("R")


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--minutes", type=float, default=10.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        clip = make_clip(Path(folder) / "clip.mp4")
        rows = [
            *cost_and_size(clip, Path(folder), options.seconds),
            replay_rate(Path(folder) / "cost.mcap", Path(folder), options.minutes),
        ]
    for row in rows:
        print(row)
    print(record("recording", rows))


def make_clip(path: Path) -> Path:
    """Write a clip of a moving texture with grain, without B-frames and with one key frame per second."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (HEIGHT // 30, WIDTH // 30, 3), np.uint8)
    still_HW3 = np.kron(coarse, np.ones((30, 30, 1), np.uint8)).astype(np.int16)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"preset": "ultrafast", "bf": "0", "g": str(RATE)})
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = WIDTH, HEIGHT, "yuv420p", BITS_PER_S
        for index in range(CLIP_S * RATE):
            grain_HW1 = rng.integers(-4, 5, (HEIGHT, WIDTH, 1), np.int16)
            pixels = np.clip(np.roll(still_HW3, 2 * index, axis=1) + grain_HW1, 0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def play(clip: str, port: int, seconds: float) -> None:
    """Play the clip again and again, in real time, to the client that connects."""
    with (
        suppress(ConnectionError),  # the one who connected leaves when it has enough
        av.open(f"tcp://127.0.0.1:{port}?listen=1", "w", format="mpegts") as output,
        av.open(clip) as once,
    ):
        source = once.streams.video[0]
        packets = [(bytes(packet), packet.is_keyframe) for packet in once.demux(source) if packet.size]
        stream = output.add_stream_from_template(source)
        parameters = av.bitstream.BitStreamFilterContext("h264_mp4toannexb", source)
        begun_s = time.monotonic()
        for index, (data, is_keyframe) in zip(range(round(seconds * RATE)), itertools.cycle(packets), strict=False):
            packet = av.Packet(data)
            packet.pts = packet.dts = index
            packet.time_base, packet.is_keyframe = Fraction(1, RATE), is_keyframe
            for converted in parameters.filter(packet):
                converted.stream = stream
                output.mux(converted)
            time.sleep(max(0.0, begun_s + index / RATE - time.monotonic()))


class OnePerson:
    """An engine that takes no time and finds one moving person."""

    batch = in_flight = 1
    on_gpu = takes_nv12 = False

    def __init__(self) -> None:
        self._prompts: tuple[PromptClass, ...] = ()
        self._count = 0

    def set_prompts(self, classes: Sequence[PromptClass]) -> int:
        """Take the prompts."""
        self._prompts = tuple(classes)
        return 1

    def set_thresholds(self, score_threshold: float, nms_iou: float) -> None:
        """This engine has no thresholds."""

    def submit(self, images: Sequence[Image]) -> "Found":
        """Return the detections of the images."""
        self._count += 1
        keypoints_NK2 = np.full((1, 17, 2), 300 + self._count % 100, np.float32)
        keypoints_NK2 += np.arange(34, dtype=np.float32).reshape(1, 17, 2)
        boxes_N4 = np.array([[300, 300, 500, 500]], np.float32)
        scores_N, class_N = np.full(1, 0.9, np.float32), np.zeros(1, np.int64)
        return Found([Detections(boxes_N4, scores_N, class_N, keypoints_NK2, 1, self._prompts)] * len(images))


@dataclass(frozen=True)
class Found:
    """Detections that are available without waiting."""

    detections: list[Detections]

    def result(self) -> list[Detections]:
        """Return them."""
        return self.detections


class Meter:
    """CPU time that other threads spend in some methods."""

    def __init__(self) -> None:
        self.spent_s = 0.0

    def timed(self, method: Callable[P, R]) -> Callable[P, R]:
        """Return the method with its CPU time measured."""

        @functools.wraps(method)
        def measured(*args: P.args, **kwargs: P.kwargs) -> R:
            begun_s = time.thread_time()
            try:
                return method(*args, **kwargs)
            finally:
                self.spent_s += time.thread_time() - begun_s

        return measured


def cost_and_size(clip: Path, folder: Path, seconds: float) -> list[dict[str, object]]:
    """Run with and without a recording; return the rows of cost and size."""
    meter = Meter()
    for owner, name in ((StreamTap, "packet"), (StreamTap, "frame"), (Recorder, "tracked"), (Recorder, "message")):
        setattr(owner, name, meter.timed(getattr(owner, name)))
    path = folder / "cost.mcap"
    with_it, cpu_s = run(clip, seconds, path)
    spent_s = meter.spent_s
    without, _ = run(clip, seconds, None)
    size, content = path.stat().st_size, sum(len(message.data) for message in RecordingFile(path).messages())
    return [
        {
            "what": f"recording one camera of {WIDTH} x {HEIGHT}, {RATE} frames/s, H.264",
            "seconds": seconds,
            "core_of_recorder": round(cpu_s / seconds, 4),
            "core_of_other_threads": round(spent_s / seconds, 4),
            "core": round((cpu_s + spent_s) / seconds, 4),
            "goal_core": GOAL_CORE,
            "drops": with_it,
            "drops_without_recording": without,
        },
        {
            "what": "size of the file over packets plus messages",
            "file_bytes": size,
            "packets_and_messages_bytes": content,
            "ratio": round(size / content, 4),
            "goal_ratio": GOAL_SIZE,
        },
    ]


def run(clip: Path, seconds: float, path: Path | None) -> tuple[dict[str, int], float]:
    """Run a pipeline on the camera; return the drops, and the CPU time of the recorder's thread."""
    port = free_port()
    camera = multiprocessing.get_context("spawn").Process(
        target=play, args=(str(clip), port, seconds + 20), daemon=True
    )
    camera.start()
    pipeline = Pipeline(PipelineConfig(), record=path)
    name = pipeline.add(f"tcp://127.0.0.1:{port}")
    pipeline.start(OnePerson(), parse_prompt("person", max_classes=8, max_keypoints=68))
    while pipeline.metrics.frames_out("publish") < RATE:
        time.sleep(0.05)
    before = dict(pipeline.metrics.drops(name))
    begun_s = _recorder_cpu_s()
    time.sleep(seconds)
    cpu_s = _recorder_cpu_s() - begun_s
    drops = {reason: count - before.get(reason, 0) for reason, count in pipeline.metrics.drops(name).items()}
    report = pipeline.recordings.report
    if report is not None and report.dropped:
        drops["not recorded"] = sum(report.dropped.values())
    pipeline.stop()
    while not pipeline.wait(1.0):
        pass
    pipeline.finish()
    camera.terminate()
    camera.join()
    return drops, cpu_s


def _recorder_cpu_s() -> float:
    """CPU time of the recorder's thread; 0 if there is none."""
    for thread in threading.enumerate():
        if thread.name == "record" and thread.ident is not None:
            return time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
    return 0.0


def replay_rate(short: Path, folder: Path, minutes: float) -> dict[str, object]:
    """Repeat a short recording until it is long enough, and publish its messages as fast as possible."""
    from pipeline.outputs.recording_part import Part

    read = [(message, message.log_ns) for message in RecordingFile(short).messages()]
    first = next(index for index, (message, _) in enumerate(read) if message.topic.startswith(VIDEO))
    messages = [item for index, item in enumerate(read) if index >= first or item[0].topic.startswith(SKELETONS)]
    length_ns = messages[-1][1] - messages[0][1] + 1_000_000_000 // RATE
    part: Any = Part(folder / "long.mcap", {})
    for round_number in range(max(1, round(minutes * 60e9 / length_ns))):
        for index, (message, log_ns) in enumerate(messages):
            part.write(message.topic, message.data, log_ns + round_number * length_ns, 0, message.sequence)
            if index % 75 == 0:  # as often as a recorder flushes
                part.flush()
    part.finish()
    config = PublishConfig(endpoint="tcp://127.0.0.1:*")
    results = [Replay(folder / "long.mcap", config, rate=0).run() for _ in range(3)]
    rates = sorted(result.messages / result.duration_s for result in results)
    return {
        "what": "replay --rate 0, one track, counted at the publisher",
        "recording_minutes": round(minutes, 1),
        "recording_megabytes": round((folder / "long.mcap").stat().st_size / 1e6),
        "messages": results[0].messages,
        "messages_per_s": round(rates[1]),
        "slowest": round(rates[0]),
        "goal_messages_per_s": GOAL_MESSAGES_PER_S,
    }


if __name__ == "__main__":
    main()
