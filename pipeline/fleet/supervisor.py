"""A fleet: cameras on the workers of a Ray cluster, one proxy for all subscribers, and a directory.

Ray starts the workers, starts them again elsewhere if their process or machine dies, and transports the calls. Which
worker runs which camera is decided here (`spread`), within seconds. A worker counts as alive if the states of its
cameras come at their beat through the proxy, as for any subscriber. So every kind of failure is noticed: of a process,
of a machine, or of the network. The file of the fleet lists its cameras. It is read again when it changes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import zmq

from pipeline.errors import ConfigError, PipelineError
from pipeline.fleet.cameras import CameraWorker, WorkerFacts, WorkerSettings
from pipeline.fleet.config import FleetConfig, read_fleet
from pipeline.fleet.directory import CameraEntry, Directory, FleetEntry, WorkerEntry
from pipeline.fleet.proxy import Proxy, listening_socket
from pipeline.fleet.spread import Spread, Stay
from pipeline.keys import ServerKeys
from pipeline.outputs.publisher import PublishConfig
from pipeline.sources.addresses import parse_address
from xpose_client.errors import WireError
from xpose_client.messages import STATUS, StatusMessage, decode

_log = logging.getLogger(__name__)

_TICK_S = 0.1
_LONG_TICK_S = 1.0  # after a longer tick, this process was delayed and could not receive messages
_GATHER_S = 10.0  # longest wait, after the first worker is ready, for the others before cameras are given out
_STOP_S = 5.0
_THREADS = 4  # of a worker's calls: `run` takes one for ever

_UNKNOWN = WorkerFacts("", "", 0, "", "", 0.0)

Answer = Callable[[Any, Exception | None], None]


@dataclass
class _Worker:
    """A worker as the fleet sees it."""

    number: int
    actor: Any
    state: str = "starting"
    facts: WorkerFacts | None = None
    error: str | None = None


class Fleet:
    """Runs a fleet until it is told to stop. Belongs to the thread that makes it.

    Args:
        ray: the module, connected to a cluster.
        path: the fleet's file, which is read again when it changes; None to keep `config`.
        make_settings: makes the workers' settings from the address of the proxy.
        publish: settings of the proxy's publisher.
        keys: key folder; "" for no keys.

    Attributes:
        endpoint: the address for subscribers.
        directory: the address of the directory.

    Raises:
        ConfigError: other machines can reach an address, and there are no keys.
        PublishError: an address cannot be bound.
        KeyFileError: the keys cannot be used.
    """

    def __init__(
        self,
        ray: Any,
        config: FleetConfig,
        make_settings: Callable[[str], WorkerSettings],
        publish: PublishConfig,
        path: Path | None = None,
        keys: str = "",
    ) -> None:
        self._ray = ray
        self._config = config
        self._path = path
        self._read_ns = _modified_ns(path)
        self._calls: dict[Any, Answer] = {}
        self._spread = Spread(config.silence_s)
        self._spread.set_cameras(config.by_name)
        self._directory = Directory(config.directory, ServerKeys(keys) if keys else None)
        self.directory = self._directory.endpoint
        try:
            self._proxy = Proxy(publish, keys)
        except BaseException:
            self._directory.close()
            raise
        self.endpoint = self._proxy.endpoint
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._states = listening_socket(self._context, keys)
        self._states.subscribe(STATUS)
        self._states.connect(_reached_from(self.endpoint, "127.0.0.1"))
        self._gather_until_s: float | None = None
        self._workers = self._make_workers(make_settings(_reached_from(self.endpoint, ray.util.get_node_ip_address())))
        for worker in self._workers:
            self._start(worker)

    def _make_workers(self, settings: WorkerSettings) -> list[_Worker]:
        actor = self._ray.remote(CameraWorker).options(
            num_cpus=self._config.cpus,
            num_gpus=self._config.gpus,
            max_restarts=-1,
            max_task_retries=-1,
            max_concurrency=_THREADS,
            scheduling_strategy="SPREAD",
        )
        return [_Worker(number, actor.remote(settings)) for number in range(self._config.workers)]

    def run(self, stopped: Callable[[], bool]) -> None:
        """Supervise until `stopped` returns True, then end everything.

        Raises:
            The error of the workers, if none of them can start.
        """
        try:
            before_s = time.monotonic()
            while not stopped():
                self._hear()
                now_s = time.monotonic()
                if now_s - before_s > _LONG_TICK_S:
                    self._spread.excuse(now_s - before_s)
                before_s = now_s
                self._collect()
                self._reload()
                if self._proxy.revive():
                    _log.warning("the proxy died and was started again")
                    self._spread.excuse(self._config.silence_s)
                for number in self._spread.silent(now_s):
                    self._lose(self._workers[number], f"not heard for {self._config.silence_s:g} s")
                self._proxy.follow(
                    (worker.facts.endpoint for worker in self._workers if worker.facts is not None), self._spread.stays
                )
                self._place(now_s)
        finally:
            self._close()

    def entry(self) -> FleetEntry:
        """Return the state of all cameras and workers."""
        cameras = [self._camera_entry(name, stay) for name, stay in self._spread.stays.items()]
        workers = [self._worker_entry(worker, worker.facts or _UNKNOWN) for worker in self._workers]
        return FleetEntry(self.endpoint, cameras, workers)

    def _worker_entry(self, worker: _Worker, facts: WorkerFacts) -> WorkerEntry:
        return WorkerEntry(
            worker.number,
            worker.state,
            facts.host,
            facts.node,
            facts.pid,
            facts.endpoint,
            facts.control,
            round(facts.capacity_fps, 1),
            self._spread.load_fps(worker.number),
            worker.error,
        )

    def _camera_entry(self, name: str, stay: Stay) -> CameraEntry:
        facts = None if stay.worker is None else self._workers[stay.worker].facts
        status = stay.status
        state = "waiting" if stay.worker is None else "starting" if status is None else status.state
        error = stay.error or (status.last_error if status else None)
        rate = status.frame_rate if status else 0.0
        return CameraEntry(
            name, stay.worker, stay.session, state, rate, facts.endpoint if facts else "", stay.moves, error
        )

    def _hear(self) -> None:
        """Wait for at most one tick; take the states that have come, and answer a question."""
        poller = zmq.Poller()
        poller.register(self._states, zmq.POLLIN)
        poller.register(self._directory.socket, zmq.POLLIN)
        poller.poll(round(_TICK_S * 1000))
        while self._states.poll(0):
            try:
                message = decode(self._states.recv())
            except WireError as error:
                _log.warning("the proxy forwarded bytes that are not a message: %s", error)
                continue
            if isinstance(message, StatusMessage):
                self._spread.heard(message, time.monotonic())
        self._directory.answer(self.entry)

    def _call(self, method: Any, *arguments: Any, answer: Answer, retries: int = 0) -> None:
        self._calls[method.options(max_task_retries=retries).remote(*arguments)] = answer

    def _collect(self) -> None:
        """Take the answers of the workers."""
        if not self._calls:
            return
        done, _ = self._ray.wait(list(self._calls), num_returns=len(self._calls), timeout=0)
        for reference in done:
            answer = self._calls.pop(reference)
            try:
                value, error = self._ray.get(reference), None
            except self._ray.exceptions.RayTaskError as failure:
                value, error = None, failure.cause
            except self._ray.exceptions.RayError as failure:
                value, error = None, failure
            answer(value, error)

    def _start(self, worker: _Worker) -> None:
        """Call `start` of a worker. Ray repeats the call while it starts the process again."""
        self._call(worker.actor.start, answer=partial(self._started, worker), retries=-1)

    def _started(self, worker: _Worker, facts: WorkerFacts | None, error: Exception | None) -> None:
        if error is not None or facts is None:
            worker.state, worker.error = "failed", str(error)
            _log.warning("worker %d cannot start: %s", worker.number, error)
            if all(other.state == "failed" for other in self._workers):
                raise error if error is not None else PipelineError("no worker can start")
            return
        if worker.facts != facts:
            self._call(worker.actor.run, answer=partial(self._ended, worker, facts.pid))
        worker.state, worker.facts, worker.error = "ready", facts, None
        _log.info("worker %d on %s: %.0f frames/s", worker.number, facts.host, facts.capacity_fps)
        if self._gather_until_s is None:
            self._gather_until_s = time.monotonic() + _GATHER_S
        self._spread.worker_ready(worker.number, facts.capacity_fps)

    def _ended(self, worker: _Worker, pid: int, _: None, error: Exception | None) -> None:
        """Handle a worker whose process died or whose pipeline failed."""
        if worker.facts is None or worker.facts.pid != pid:
            return
        worker.facts = None
        if not isinstance(error, self._ray.exceptions.RayError):
            self._ray.kill(worker.actor, no_restart=False)
        self._lose(worker, str(error).splitlines()[0])

    def _lose(self, worker: _Worker, reason: str) -> None:
        _log.warning("worker %d: %s; its cameras go to others", worker.number, reason)
        worker.state, worker.error = "silent", reason
        self._spread.worker_lost(worker.number)
        self._start(worker)

    def _place(self, now_s: float) -> None:
        starting = any(worker.state == "starting" for worker in self._workers)
        if self._gather_until_s is None or (starting and now_s < self._gather_until_s):
            return
        for move in self._spread.place(now_s):
            stay = move.stay
            assert stay.worker is not None
            _log.info("%s: goes to worker %d", move.name, stay.worker)
            if move.old is not None:
                self._remove(move.name, move.old, stay.session)
            self._call(
                self._workers[stay.worker].actor.add,
                move.name,
                stay.camera.address,
                stay.session,
                answer=partial(self._added, move.name, stay, stay.session),
            )

    def _added(self, name: str, stay: Stay, session: int, _: None, error: Exception | None) -> None:
        if error is not None and not isinstance(error, self._ray.exceptions.RayError) and stay.session == session:
            stay.error = str(error)
            _log.warning("%s: %s", name, error)

    def _remove(self, name: str, number: int, session: int) -> None:
        self._call(self._workers[number].actor.remove, name, session, answer=lambda value, error: None)

    def _reload(self) -> None:
        """Read the fleet's file again if it has changed. A file with an error changes nothing."""
        modified_ns = _modified_ns(self._path)
        if self._path is None or modified_ns in (0, self._read_ns):
            return
        self._read_ns = modified_ns
        try:
            config = read_fleet(self._path)
        except ConfigError as error:
            _log.warning("%s; the fleet continues with the previous file", error)
            return
        for name, stay in self._spread.set_cameras(config.by_name).items():
            _log.info("%s: removed from %s", name, parse_address(stay.camera.address).label)
            if stay.worker is not None:
                self._remove(name, stay.worker, stay.session)
        self._config = config

    def _close(self) -> None:
        """Stop the workers, so that they publish that their cameras have ended; then end the proxy."""
        stops = [worker.actor.stop.options(max_task_retries=0).remote() for worker in self._workers if worker.facts]
        if stops:
            self._ray.wait(stops, num_returns=len(stops), timeout=_STOP_S)
        for worker in self._workers:
            self._ray.kill(worker.actor)
        self._context.destroy(linger=0)
        self._proxy.close()
        self._directory.close()


def _modified_ns(path: Path | None) -> int:
    try:
        return 0 if path is None else path.stat().st_mtime_ns
    except OSError:
        return 0


def _reached_from(endpoint: str, host: str) -> str:
    """Return the address to connect to, for an address that is bound on all interfaces."""
    return endpoint.replace("//0.0.0.0:", f"//{host}:").replace("//*:", f"//{host}:").replace("//[::]:", f"//{host}:")
