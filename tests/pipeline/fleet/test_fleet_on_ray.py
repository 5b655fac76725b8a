"""A fleet on a real Ray cluster of several nodes in one machine; small and slow, so part of `make test-slow`."""

import time
from pathlib import Path
from typing import Any

import pytest

from engines.config import EngineConfig
from pipeline.fleet.config import FleetConfig, read_fleet
from pipeline.fleet.directory import FleetEntry
from tests.pipeline.fakes import FakeEngine
from tests.pipeline.fleet.clusters import add_node, cluster_of, fleet_of, on_ray

pytestmark = on_ray

OFF = "rtsp://127.0.0.1:9/"  # a camera that is off: its worker reports "connecting" at every beat


def fake_engine(config: EngineConfig) -> FakeEngine:
    return FakeEngine(delay_s=0.02)


def refuse(config: EngineConfig) -> FakeEngine:
    """Fail as an engine fails whose weights are absent."""
    raise ValueError("no weights")


def settled(names: str, found: FleetEntry) -> bool:
    cameras = {camera.name: camera for camera in found.cameras}
    return cameras.keys() == set(names) and all(camera.state == "connecting" for camera in cameras.values())


def write(path: Path, names: str) -> None:
    cameras = "".join(f'{name} = "{OFF}{name}"\n' for name in names)
    path.write_text(f'directory = "tcp://127.0.0.1:*"\nworkers = 2\nsilence_s = 2\n[cameras]\n{cameras}')


@pytest.mark.parametrize("victim", ["process", "node"])
def test_cameras_of_a_worker_that_dies_go_to_others_within_ten_seconds_and_nothing_else_is_touched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, victim: str
) -> None:
    file = tmp_path / "fleet.toml"
    write(file, "abcd")
    with cluster_of(monkeypatch, 2) as cluster, fleet_of(cluster, read_fleet(file), fake_engine, file) as fleet:
        before = fleet.until(lambda found: settled("abcd", found))
        assert {camera.worker for camera in before.cameras} == {0, 1}
        workers = {worker.number: worker for worker in before.workers}
        assert workers[0].node != workers[1].node
        assert all(20 < worker.capacity_fps < 60 for worker in before.workers)
        kill(cluster, workers[0].node, workers[0].pid, victim)
        killed_s = time.monotonic()
        after = fleet.until(lambda found: settled("abcd", found) and all(c.worker == 1 for c in found.cameras), 10)
        took_s = time.monotonic() - killed_s
        print(f"{victim}: {took_s:.1f} s")
        for old, new in zip(before.cameras, after.cameras, strict=True):
            assert (new.session > old.session) == (old.worker == 0)
            assert new.moves == (old.worker == 0)
        if victim == "node":
            add_node(cluster)
        fleet.until(lambda found: all(worker.state == "ready" for worker in found.workers))
        write(file, "bce")
        fleet.until(lambda found: settled("bce", found))


def kill(cluster: Any, node_id: str, pid: int, victim: str) -> None:
    import os
    import signal

    if victim == "process":
        os.kill(pid, signal.SIGKILL)
        return
    (node,) = (node for node in cluster.worker_nodes if node.node_id == node_id)
    cluster.remove_node(node, allow_graceful=False)


def test_error_of_the_engine_ends_the_fleet(monkeypatch: pytest.MonkeyPatch) -> None:
    config = FleetConfig(cameras={"a": OFF}, directory="tcp://127.0.0.1:*")
    with cluster_of(monkeypatch, 1) as cluster, fleet_of(cluster, config, refuse) as fleet:
        deadline_s = time.monotonic() + 180
        while fleet.error is None:
            assert time.monotonic() < deadline_s
            time.sleep(0.1)
        assert "no weights" in str(fleet.error)
