"""Real Ray clusters in one machine: several nodes, each a process group that can be killed. Small on purpose."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from engines.prompts import PromptClass
from pipeline.config import PipelineConfig
from pipeline.fleet.cameras import MakeEngine, WorkerSettings
from pipeline.fleet.config import FleetConfig
from pipeline.fleet.directory import FleetEntry, ask
from pipeline.fleet.ray_cluster import connected
from pipeline.fleet.supervisor import Fleet
from pipeline.outputs.publisher import PublishConfig
from pipeline.service.operations import EngineFacts
from tests.pipeline.fakes import MUG
from tests.pipeline.service.running import FACTS

OBJECT_STORE_BYTES = 80 << 20
_TOKEN = secrets.token_hex(16)  # Ray keeps the first one that a process has

on_ray = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning"),
]


@contextmanager
def cluster_of(monkeypatch: pytest.MonkeyPatch, nodes: int) -> Iterator[Any]:
    """A cluster protected by a token, with a head that takes no work and `nodes` of one CPU each."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    monkeypatch.setenv("RAY_worker_niceness", "0")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", _TOKEN)
    utilities = pytest.importorskip("ray.cluster_utils")
    head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    made = utilities.Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(nodes):
            add_node(made)
        yield made
    finally:
        made.shutdown()


def add_node(cluster: Any) -> Any:
    """Add a node of one CPU."""
    return cluster.add_node(num_cpus=1, object_store_memory=OBJECT_STORE_BYTES)


def facts_of(engine: object) -> EngineFacts:
    """What the control socket says of a stand-in."""
    return FACTS


@contextmanager
def fleet_of(
    address: str,
    config: FleetConfig,
    make_engine: MakeEngine,
    path: Path | None = None,
    prompts: tuple[PromptClass, ...] = (MUG,),
) -> Iterator[Running]:
    """A fleet of a cluster, supervised by a thread of its own until the end of the context."""
    running = Running()

    def supervise() -> None:
        try:
            with connected(address) as ray:
                settings = PipelineConfig(publish=PublishConfig(beat_s=0.2, without_keys=True))
                fleet = Fleet(
                    ray,
                    config,
                    lambda proxy: WorkerSettings(settings, prompts, proxy, make_engine, facts_of),
                    PublishConfig("tcp://127.0.0.1:*"),
                    path,
                )
                running.endpoint, running.directory = fleet.endpoint, fleet.directory
                running.begun.set()
                fleet.run(running.stop.is_set)
        except BaseException as error:
            running.error = error
        finally:
            running.begun.set()

    thread = threading.Thread(target=supervise, name="fleet")
    thread.start()
    try:
        assert running.begun.wait(180)
        if running.error is not None:
            raise running.error
        yield running
    finally:
        running.stop.set()
        thread.join(60)
        assert not thread.is_alive()


@dataclass
class Running:
    """A fleet that runs."""

    endpoint: str = ""
    directory: str = ""
    error: BaseException | None = None
    begun: threading.Event = field(default_factory=threading.Event)
    stop: threading.Event = field(default_factory=threading.Event)

    def until(self, holds: Callable[[FleetEntry], bool], within_s: float = 180.0) -> FleetEntry:
        """Ask the directory until `holds`; fail after `within_s`."""
        deadline_s = time.monotonic() + within_s
        while not holds(found := ask(self.directory, 10)):
            assert time.monotonic() < deadline_s, found
            assert self.error is None, self.error
            time.sleep(0.1)
        return found
