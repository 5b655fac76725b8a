"""Run the pipeline on cameras with faults, and compare the times in its messages with the true times.

The engine is a stand-in: it reads the time code of each picture, takes a fixed time, and returns one object whose first
raw keypoint carries the code (`x = 10 + thousands / 1000`, `y = 10 + rest / 1000`, px). So the message of a frame
carries its true time through the tracker, the publisher and ZeroMQ.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.chaos.timecode import read, true_unix_ns
from engines.detections import Detections
from engines.nv12 import Image
from engines.prompts import PromptClass
from engines.skeletons import Skeleton
from pipeline.config import PipelineConfig, load_config
from pipeline.flow.pipeline import Pipeline
from pipeline.frames import Frame
from pipeline.sources.addresses import parse_address
from pipeline.sources.base import SourceConfig
from pipeline.sources.live import LiveSource
from xpose_client.messages import PoseMessage
from xpose_client.subscriber import PoseSubscriber

SYSTEM_PYTHON = "/usr/bin/python3"
_GSTREAMER = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import GstRtspServer"
_CODE = PromptClass("code", Skeleton("code", ("time", "rest"), edges=()))


def has_gstreamer() -> bool:
    """Whether the system's Python has GStreamer's RTSP server."""
    return (
        Path(SYSTEM_PYTHON).exists()
        and not subprocess.run([SYSTEM_PYTHON, "-c", _GSTREAMER], capture_output=True).returncode
    )


def free_port() -> int:
    """Return a TCP port that is not in use now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Process:
    """A helper process that prints "ready" and can be killed and started again.

    Args:
        arguments: its command line.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        self._arguments = list(arguments)
        self.ready_ns = 0
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start it and wait until it is ready."""
        self._process = subprocess.Popen(
            self._arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            raise RuntimeError(f"did not start: {' '.join(self._arguments)}")
        self.ready_ns = time.monotonic_ns()

    def command(self, line: str) -> None:
        """Write a line to its standard input."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def kill(self) -> None:
        """End the process at once. It may have ended already."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            for pipe in (self._process.stdin, self._process.stdout):
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()  # type: ignore[union-attr]
            self._process = None


class Camera:
    """A camera behind a faulty link.

    Args:
        fps: pictures a second.
        faults: options of `rtp_camera`; None for GStreamer's server, which sends sender reports.
        direct: connect without the link, for UDP.
        slices: of each picture of GStreamer's server.
    """

    def __init__(
        self, fps: int = 15, faults: Sequence[str] | None = None, *, direct: bool = False, slices: int = 1
    ) -> None:
        port, link_port = free_port(), free_port()
        here = Path(__file__).parent
        if faults is None:
            arguments = [SYSTEM_PYTHON, str(here / "gst_camera.py"), str(port), str(fps), str(slices)]
        else:
            arguments = [sys.executable, "-m", "benchmarks.chaos.rtp_camera", str(port), "--fps", str(fps), *faults]
        self.fps = fps
        self.server = Process(arguments)
        self.link = Process([sys.executable, "-m", "benchmarks.chaos.link", str(link_port), str(port)])
        self.address = f"rtsp://127.0.0.1:{port if direct else link_port}/live"

    def do(self, command: str) -> None:
        """Carry out "kill", "start", or a command of the link."""
        if command == "kill":
            self.server.kill()
        elif command == "start":
            self.server.start()
        else:
            self.link.command(command)


@dataclass(frozen=True)
class _Answer:
    """Results that are ready at a given time."""

    results: list[Detections]
    ready_s: float

    def result(self) -> list[Detections]:
        time.sleep(max(0.0, self.ready_s - time.monotonic()))
        return self.results


class CodeEngine:
    """The stand-in engine: reads the time code.

    Args:
        delay_s: time that one picture takes.
    """

    batch = 1
    in_flight = 1
    on_gpu = takes_nv12 = False

    def __init__(self, delay_s: float) -> None:
        self._delay_s = delay_s
        self._nothing = Detections.empty((_CODE,), 1)

    def set_prompts(self, classes: Sequence[PromptClass]) -> int:
        """Do nothing: the class is fixed."""
        return 1

    def set_thresholds(self, score_threshold: float, nms_iou: float) -> None:
        """Do nothing: the detections are fixed."""

    def submit(self, images: Sequence[Image]) -> _Answer:
        """Find one object in each picture with a code, nothing in the others."""
        ready_s = time.monotonic() + self._delay_s * len(images)
        return _Answer([self._seen(read(image)) for image in images if isinstance(image, np.ndarray)], ready_s)

    def _seen(self, code_ms: int | None) -> Detections:
        if code_ms is None:
            return self._nothing
        thousands, rest = divmod(code_ms, 1000)
        keypoints_NK2 = np.array([[(10 + thousands / 1000, 10 + rest / 1000), (90, 90)]], np.float32)
        box_N4, score_N = np.array([(0, 0, 100, 100)], np.float32), np.array([0.9], np.float32)
        return Detections(box_N4, score_N, np.zeros(1, np.int64), keypoints_NK2, 1, (_CODE,))


class WatchedSource(LiveSource):
    """A live source that notes (index, moment in ns, age in s) of each frame as it leaves the decoder."""

    def __init__(self, address: str, config: SourceConfig) -> None:
        super().__init__(parse_address(address), config)
        self.decoded: list[tuple[int, int, float]] = []

    def __iter__(self) -> Generator[Frame]:
        with contextlib.closing(super().__iter__()) as frames:
            for frame in frames:
                self.decoded.append((frame.index, time.monotonic_ns(), frame.age_s))
                yield frame


@dataclass(frozen=True)
class Heard:
    """What the benchmark keeps of a message that the subscriber received.

    Attributes:
        source: its source.
        frame: index of its frame.
        pts_s: its time in the stream.
        capture_clock: the clock of its capture time.
        claimed_age_s: age at publishing by the message's own times.
        true_age_s: age at publishing by the picture's time code; None where it could not be read.
        sent_ns: moment of publishing on the monotonic clock.
        received_ns: moment of receipt on the same clock.
    """

    source: str
    frame: int
    pts_s: float | None
    capture_clock: str
    claimed_age_s: float
    true_age_s: float | None
    sent_ns: int
    received_ns: int


def hear(message: PoseMessage) -> Heard:
    """Return the facts to keep of a message, at its receipt."""
    captured_ns = _captured_ns(message)
    return Heard(
        source=message.source,
        frame=message.frame,
        pts_s=message.pts_s,
        capture_clock=message.capture_clock,
        claimed_age_s=(message.publish_unix_ns - message.capture_unix_ns) / 1e9,
        true_age_s=None if captured_ns is None else (message.publish_unix_ns - captured_ns) / 1e9,
        sent_ns=message.capture_monotonic_ns + message.publish_unix_ns - message.capture_unix_ns,
        received_ns=time.monotonic_ns(),
    )


def _captured_ns(message: PoseMessage) -> int | None:
    for track in message.tracks:
        x, y = track.keypoints_raw[0]
        if x is not None and y is not None:
            code_ms = round((x - 10) * 1000) * 1000 + round((y - 10) * 1000)
            return true_unix_ns(code_ms, message.publish_unix_ns)
    return None


class Run:
    """One run of the pipeline; use it in `with`.

    Args:
        cameras: sources of the run; their servers and links must run, or be started later.
        settings: `section.key=value`, as on the command line.
        engine_s: time of one inference.

    Attributes:
        heard: the messages so far.
    """

    def __init__(self, cameras: Sequence[Camera], settings: Sequence[str] = (), engine_s: float = 0.02) -> None:
        self.cameras = cameras
        self.engine_s = engine_s
        self.heard: list[Heard] = []
        self.endpoint = f"tcp://127.0.0.1:{free_port()}"
        self.config: PipelineConfig = load_config(None, [*settings, f'publish.endpoint="{self.endpoint}"'], {}, batch=1)
        self.sources = [WatchedSource(camera.address, self.config.source) for camera in cameras]
        self._pipeline = Pipeline(self.config)
        for source in self.sources:
            self._pipeline.add(source)
        self._over = threading.Event()
        self._listener = threading.Thread(target=self._listen, name="subscriber", daemon=True)

    @property
    def budget_s(self) -> float:
        """The age budget."""
        return self.config.flow.age_budget_s

    def __enter__(self) -> Run:
        self._listener.start()
        self._pipeline.start(CodeEngine(self.engine_s), (_CODE,))
        self.started_ns = time.monotonic_ns()
        return self

    def __exit__(self, *_: object) -> None:
        self._pipeline.stop()
        while not self._pipeline.wait(1.0):
            pass
        self._pipeline.finish()
        self._over.set()
        self._listener.join(10)

    def of(self, camera: int) -> list[Heard]:
        """The messages of one camera."""
        name = self.sources[camera].name
        return [item for item in self.heard if item.source == name]

    def _listen(self) -> None:
        with PoseSubscriber(self.endpoint) as subscriber:
            while not self._over.is_set():
                received = subscriber.receive(0.2)
                if received is not None:
                    self.heard.append(hear(received.message))


@contextlib.contextmanager
def running(cameras: Sequence[Camera], *, absent: Sequence[int] = ()) -> Iterator[None]:
    """Start the links and servers of the cameras, except the servers in `absent`; end all of them afterwards."""
    try:
        for number, camera in enumerate(cameras):
            camera.link.start()
            if number not in absent:
                camera.server.start()
        yield
    finally:
        for camera in cameras:
            camera.link.kill()
            camera.server.kill()


@dataclass
class Verdict:
    """The result of a run; times in seconds.

    Attributes:
        messages: messages of the camera.
        younger_s: published capture time minus true capture time, of each message.
        claimed_beyond_budget: messages that exceeded the budget by their own times.
        truly_beyond_budget: messages whose true age exceeded the budget by more than 0.25 s.
        share: frames that were published, as a share of those that the engine could take within the budget.
        recovery_s: from the camera's return to its first message that is less than a second old; None without one.
    """

    messages: int
    younger_s: list[float] = field(default_factory=list)
    claimed_beyond_budget: int = 0
    truly_beyond_budget: int = 0
    share: float = 0.0
    recovery_s: float | None = None


def judge(run: Run, camera: int = 0, *, recovered_ns: int | None = None, after_s: float = 0.0) -> Verdict:
    """Compare the messages of one camera with the truth, from `after_s` after the start on."""
    heard = [item for item in run.of(camera) if item.sent_ns - run.started_ns >= after_s * 1e9]
    verdict = Verdict(len(heard))
    for item in heard:
        true_age_s = item.true_age_s
        verdict.claimed_beyond_budget += item.claimed_age_s > run.budget_s
        if true_age_s is not None:
            verdict.younger_s.append(true_age_s - item.claimed_age_s)
            verdict.truly_beyond_budget += true_age_s > run.budget_s + 0.25
    verdict.share = _share(run, camera)
    if recovered_ns is not None:
        verdict.recovery_s = next(
            (
                (item.received_ns - recovered_ns) / 1e9
                for item in heard
                if item.received_ns > recovered_ns and item.true_age_s is not None and item.true_age_s < 1.0
            ),
            None,
        )
    return verdict


def _share(run: Run, camera: int) -> float:
    """Published frames by frames that the engine could have taken: within the budget, and not while it was busy."""
    published = {item.frame for item in run.of(camera)}
    could = done = 0
    free_ns = 0
    for index, at_ns, age_s in run.sources[camera].decoded:
        if age_s > run.budget_s - 0.3:
            continue
        done += index in published
        if at_ns >= free_ns:
            could += 1
            free_ns = at_ns + round(run.engine_s * 1.2e9)
    return min(1.0, done / could) if could else 1.0
