"""A running pipeline of fakes with its monitor, and small clients of HTTP and WebSocket."""

from __future__ import annotations

import dataclasses
import http.client
import json
import socket
import struct
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from websockets.sync.client import ClientConnection, connect

from engines.prompts import PromptClass
from pipeline.config import PipelineConfig
from pipeline.flow.pipeline import Pipeline
from pipeline.frames import Frame, now_ns
from pipeline.service.access import MonitorConfig, listen, read_token
from pipeline.service.monitor import Monitor
from pipeline.service.operations import EngineFacts, Operations
from pipeline.sources import Source
from pipeline.sources.status import SourceStatus
from tests.pipeline.fakes import MUG, FakeEngine, FakeSource
from tests.pipeline.flow.running import END_S
from xpose_client.control_messages import EngineState

LOCAL = "127.0.0.1:0"
PATIENCE_S = 30.0
FACTS = EngineFacts(
    EngineState("nano", "", "eager", "cpu", "fp32", None, 1, 1, 8, 68), {"person": "person", "dog": "animal_in_AP10K"}
)


class Camera(FakeSource):
    """A live source of 320 x 240 px whose picture changes; it can be late or lost.

    Attributes:
        lost: while True no picture comes.
        age_s: how old its pictures are.
    """

    def __init__(self, name: str = "camera", interval_s: float = 0.03) -> None:
        super().__init__(1_000_000, name, live=True, interval_s=interval_s)
        self.status = SourceStatus(silence_s=1.0)
        self.lost = False
        self.age_s = 0.0
        rng = np.random.default_rng(0)
        self._noise_HW3 = rng.integers(0, 60, (240, 320, 3), dtype=np.uint8)

    def __iter__(self) -> Generator[Frame]:
        for index in range(self.count):
            if self._stopped.wait(self._interval_s):
                return
            if self.lost:
                self.status.failed(f"{self.name}: nothing listens on port 554; check that the camera is on")
                continue
            unix_ns, monotonic_ns = now_ns()
            age_ns = round(self.age_s * 1e9)
            pixels_HW3 = self._noise_HW3 + np.uint8(80 + index % 60)
            pixels_HW3[:, index * 4 % 320 :][:, :40] = (200, 60, 40)
            frame = Frame(
                self.name,
                index,
                pixels_HW3,
                index / 30,
                unix_ns - age_ns,
                monotonic_ns - age_ns,
                "receipt",
                lag_s=0.012,
            )
            self.status.connected()
            self.status.picture(frame)
            yield frame


@dataclass
class Watched:
    """A pipeline that runs, what can be done with it, and its monitor."""

    pipeline: Pipeline
    operations: Operations
    monitor: Monitor
    host: str = field(init=False)

    def __post_init__(self) -> None:
        self.host = self.monitor.address.removeprefix("http://").rstrip("/")

    def request(
        self, path: str, method: str = "GET", headers: Mapping[str, str] | None = None, body: Any = None
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        """Send a request as curl would; a body that is no text or bytes goes as JSON."""
        given = {"Host": self.host, **(headers or {})}
        if body is not None and not isinstance(body, str | bytes):
            body, given = json.dumps(body), {"Content-Type": "application/json", **given}
        with closing(http.client.HTTPConnection(self.host.rpartition(":")[0], self.port, timeout=PATIENCE_S)) as caller:
            caller.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in given.items():
                caller.putheader(name, value)
            if body is not None:
                caller.putheader("Content-Length", str(len(body)))
            caller.endheaders(body.encode() if isinstance(body, str) else body)
            answer = caller.getresponse()
            return answer.status, answer.headers, answer.read()

    def raw(self, data: bytes, timeout_s: float = PATIENCE_S) -> bytes:
        """Send bytes and return all that comes back until the monitor closes; what is there after the time-out."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout_s) as caller:
            received = b""
            try:
                caller.sendall(data)
                while part := caller.recv(65536):
                    received += part
            except OSError:
                pass
            return received

    @property
    def port(self) -> int:
        return int(self.host.rpartition(":")[2])

    def live(self, **options: Any) -> ClientConnection:
        """Open the page's WebSocket."""
        return connect(
            f"ws://{self.host}/live", additional_headers=options.pop("headers", {}), compression=None, max_size=None,
            open_timeout=PATIENCE_S, close_timeout=1, **options,
        )  # fmt: skip


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The head and the JPEG of a binary message."""
    (length,) = struct.unpack_from(">I", data)
    return json.loads(data[4 : 4 + length]), data[4 + length :]


def until(condition: Callable[[], Any], what: str = "it", patience_s: float = PATIENCE_S) -> Any:
    """Wait until the condition holds and return its value."""
    deadline_s = time.monotonic() + patience_s
    while not (value := condition()):
        assert time.monotonic() < deadline_s, f"{what} did not happen within {patience_s:g} s"
        time.sleep(0.01)
    return value


@contextmanager
def watched(
    *sources: Source,
    engine: FakeEngine | None = None,
    prompts: tuple[PromptClass, ...] = (MUG,),
    config: PipelineConfig | None = None,
    **monitor: Any,
) -> Generator[Watched]:
    """Run a pipeline of these sources with a monitor of these settings."""
    settings = MonitorConfig(**{"address": LOCAL, **monitor})
    config = dataclasses.replace(config or PipelineConfig(), monitor=settings)
    pipeline = Pipeline(config, hold=True)
    for source in sources:
        pipeline.add(source)
    listening = listen(settings.address)
    pipeline.start(engine or FakeEngine(), prompts)
    try:
        operations = Operations(pipeline, FACTS)
        token = read_token(Path(settings.token_file)) if settings.token_file else None
        with Monitor(pipeline, operations, listening, token) as running:
            yield Watched(pipeline, operations, running)
    finally:
        pipeline.stop()
        assert pipeline.wait(END_S), "the pipeline hangs"
        pipeline.finish()
