"""A worker of a fleet: a Ray actor that runs a pipeline of live cameras, with its own engine and publisher.

The fleet adds and removes its cameras. Each time that a camera is given to a worker, it gets a new, larger session
number. A worker may be disconnected while its cameras move to others. When it is connected again, it notices this from
the published states of its cameras: it subscribes to them, and stops a camera if a state has a newer session.
"""

from __future__ import annotations

import dataclasses
import importlib
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import zmq

from pipeline.fleet.proxy import listening_socket
from pipeline.flow.inference import Pending, PoseEngine
from pipeline.flow.pipeline import Pipeline
from pipeline.flow.threads import spare_loaded_objects
from pipeline.outputs.endpoints import is_local
from pipeline.service.control import ControlServer
from pipeline.service.operations import EngineFacts, Operations
from pipeline.sources import open_source
from xpose_client.errors import WireError
from xpose_client.messages import SEPARATOR, STATUS, StatusMessage, decode

if TYPE_CHECKING:
    from engines.config import EngineConfig
    from engines.prompts import PromptClass
    from pipeline.config import PipelineConfig

_log = logging.getLogger(__name__)

_LISTEN_S = 0.2
_MEASURE_S = 1.0
_STOP_S = 5.0
_PICTURE_HW3 = (480, 640, 3)

MakeEngine = Callable[["EngineConfig"], PoseEngine]


@dataclass(frozen=True)
class WorkerSettings:
    """What all workers of a fleet have in common.

    Attributes:
        pipeline: settings of the pipeline; the worker chooses its own port to publish on.
        prompts: classes to look for.
        proxy: ZeroMQ address of the proxy, where the messages of all cameras are published.
        make_engine: makes the engine; it must be picklable.
        describe: returns the facts of an engine for the control socket; it must be picklable.
    """

    pipeline: PipelineConfig
    prompts: tuple[PromptClass, ...]
    proxy: str
    make_engine: MakeEngine
    describe: Callable[[Any], EngineFacts]


@dataclass(frozen=True)
class WorkerFacts:
    """Facts about a worker, which it returns when it is ready.

    Attributes:
        host: address of its machine.
        node: Ray's id of its machine.
        endpoint: where it publishes.
        control: its control socket; "" if there are no keys and other machines could reach it.
        capacity_fps: frames per second that its engine sustains.
    """

    host: str
    node: str
    pid: int
    endpoint: str
    control: str
    capacity_fps: float


def engine_of(config: EngineConfig) -> PoseEngine:
    """Make the real engine."""
    from engines.engine import Engine

    return Engine(config)


class CameraWorker:
    """The actor. Ray calls its methods on several threads.

    Args:
        host: address under which other machines reach this machine; "" asks Ray.
        node: Ray's id of this machine; "" asks Ray.
    """

    def __init__(self, settings: WorkerSettings, host: str = "", node: str = "") -> None:
        self._settings = settings
        self._host = host = host or str(_ray().util.get_node_ip_address())
        self._node = node or str(_ray().get_runtime_context().get_node_id())
        self._lock = threading.Lock()
        self._sessions: dict[str, int] = {}
        self._newest: dict[str, int] = {}  # also of cameras that were removed: calls may overtake each other
        self._facts: WorkerFacts | None = None
        self._opened = ExitStack()
        self._pipeline: Pipeline
        self._stopped = threading.Event()
        self._listener = threading.Thread(target=self._listen, name="newer sessions", daemon=True)

    def start(self) -> WorkerFacts:
        """Load the engine, measure it and start the pipeline; return the facts. A second call returns them again.

        Raises:
            ConfigError: other machines can reach this one, and there are no keys.
            Errors of the engine, such as absent weights.
        """
        with self._lock:
            if self._facts is None:
                self._facts = self._started()
            return self._facts

    def _started(self) -> WorkerFacts:
        settings, config = self._settings, self._own_config()
        self._pipeline = pipeline = Pipeline(config, hold=True)
        engine = settings.make_engine(config.engine_of_pipeline)
        capacity_fps = measure_fps(engine, settings.prompts)
        spare_loaded_objects()
        pipeline.start(engine, settings.prompts)
        control = ""
        if config.control.endpoint:
            server = self._opened.enter_context(ControlServer(config.control, pipeline.keys))
            server.serve(Operations(pipeline, settings.describe(engine)))
            control = server.endpoint
        self._listener.start()
        return WorkerFacts(self._host, self._node, os.getpid(), pipeline.endpoint, control, capacity_fps)

    def _own_config(self) -> PipelineConfig:
        """The settings with addresses of this machine."""
        config, endpoint = self._settings.pipeline, f"tcp://{_bracketed(self._host)}:*"
        safe = config.keys.folder or is_local(endpoint)
        return dataclasses.replace(
            config,
            publish=dataclasses.replace(config.publish, endpoint=endpoint),
            control=dataclasses.replace(config.control, endpoint=endpoint if safe else ""),
        )

    def run(self) -> None:
        """Wait until the pipeline has been stopped.

        Raises:
            The error that ended the pipeline.
        """
        while not self._pipeline.wait(1.0):
            pass
        self._pipeline.finish()

    def add(self, name: str, address: str, session: int) -> None:
        """Run a camera. If it runs here already with an older session, it is replaced.

        Raises:
            SourceError: the address cannot be used on this machine.
        """
        source = open_source(address, dataclasses.replace(self._settings.pipeline.source, name=name))
        with self._lock:
            if session > self._newest.get(name, 0):
                if name in self._sessions:
                    self._stop(name)
                self._pipeline.add(source, session)
                self._sessions[name] = self._newest[name] = session

    def remove(self, name: str, session: int) -> None:
        """Stop a camera, unless it runs here with a newer session."""
        with self._lock:
            self._newest[name] = max(session, self._newest.get(name, 0))
            if self._sessions.get(name, session + 1) <= session:
                self._stop(name)

    def cameras(self) -> dict[str, int]:
        """Return the session of each camera that runs here."""
        with self._lock:
            return dict(self._sessions)

    def stop(self) -> None:
        """End the pipeline. It publishes that its cameras have ended."""
        self._stopped.set()
        self._opened.close()
        self._pipeline.stop()
        self._pipeline.wait(_STOP_S)
        self._listener.join(_STOP_S)

    def _listen(self) -> None:
        """Stop each camera for which a state with a newer session is received."""
        settings = self._settings
        with zmq.Context() as context, listening_socket(context, settings.pipeline.keys.folder) as socket:
            socket.connect(settings.proxy)
            heard: set[str] = set()
            while not self._stopped.is_set():
                names = set(self.cameras())
                for name in names - heard:
                    socket.subscribe(_topic(name))
                for name in heard - names:
                    socket.unsubscribe(_topic(name))
                heard = names
                if socket.poll(round(_LISTEN_S * 1000)):
                    try:
                        message = decode(socket.recv())
                    except WireError:
                        continue  # of a program that has nothing to do with the fleet
                    if isinstance(message, StatusMessage):
                        self._leave(message.source, message.session)

    def _leave(self, name: str, session: int) -> None:
        with self._lock:
            own = self._sessions.get(name)
            if own is not None and session > own:
                _log.warning("%s: runs elsewhere with session %d, newer than %d; stopped here", name, session, own)
                self._newest[name] = session
                self._stop(name)

    def _stop(self, name: str) -> None:
        del self._sessions[name]
        self._pipeline.remove(name)


def measure_fps(engine: PoseEngine, prompts: Sequence[PromptClass], duration_s: float = _MEASURE_S) -> float:
    """Return how many pictures per second an engine sustains with these prompts and all its calls in flight.

    The pictures are noise of 640 x 480 px. The first call, which may compile, is not counted.
    """
    engine.set_prompts(prompts)
    picture_HW3 = np.random.default_rng(0).integers(0, 256, _PICTURE_HW3, np.uint8)
    pictures = [picture_HW3] * engine.batch
    engine.submit(pictures).result()
    pending: deque[Pending] = deque()
    done, begun_s = 0, time.perf_counter()
    while (elapsed_s := time.perf_counter() - begun_s) < duration_s or not done:
        while len(pending) < engine.in_flight:
            pending.append(engine.submit(pictures))
        done += len(pending.popleft().result())
    for call in pending:
        call.result()
    return done / elapsed_s


def _ray() -> Any:
    return importlib.import_module("ray")


def _topic(name: str) -> bytes:
    return STATUS.encode() + name.encode() + SEPARATOR


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
