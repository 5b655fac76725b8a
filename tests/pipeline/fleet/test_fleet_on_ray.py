"""A fleet on a real Ray cluster of several nodes in one machine; small and slow, so part of `make test-slow`."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.chaos.run import Camera, free_port, has_gstreamer, running
from engines.config import EngineConfig
from engines.prompts import parse_prompt
from pipeline.errors import ConfigError
from pipeline.fleet.cameras import engine_of
from pipeline.fleet.config import FleetConfig, read_fleet
from pipeline.fleet.directory import FleetEntry, ask
from tests.pipeline.fakes import FakeEngine
from tests.pipeline.fleet.clusters import add_node, cluster_of, fleet_of, on_ray
from tests.support import REPOSITORY, lacks
from xpose_client.messages import PoseMessage
from xpose_client.subscriber import PoseSubscriber

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
    with cluster_of(monkeypatch, 2) as cluster, fleet_of(cluster.address, read_fleet(file), fake_engine, file) as fleet:
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
    if victim == "process":
        os.kill(pid, signal.SIGKILL)
        return
    (node,) = (node for node in cluster.worker_nodes if node.node_id == node_id)
    cluster.remove_node(node, allow_graceful=False)


def test_error_of_the_engine_ends_the_fleet(monkeypatch: pytest.MonkeyPatch) -> None:
    config = FleetConfig(cameras={"a": OFF}, directory="tcp://127.0.0.1:*")
    with cluster_of(monkeypatch, 1) as cluster, fleet_of(cluster.address, config, refuse) as fleet:
        deadline_s = time.monotonic() + 180
        while fleet.error is None:
            assert time.monotonic() < deadline_s
            time.sleep(0.1)
        assert "no weights" in str(fleet.error)


def test_real_camera_moves_between_nodes_while_a_subscriber_listens_and_the_old_worker_stops_when_it_is_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The old worker is cut off by stopping its process, so that it comes back with its camera."""
    if not has_gstreamer():
        lacks("no RTSP server: install gir1.2-gst-rtsp-server-1.0, python3-gi and GStreamer's plugins")
    camera = Camera()
    config = FleetConfig(cameras={"door": camera.address}, directory="tcp://127.0.0.1:*", workers=2)
    person = parse_prompt("person", max_classes=8, max_keypoints=68)
    with (
        running([camera]),
        cluster_of(monkeypatch, 2) as cluster,
        fleet_of(cluster.address, config, engine_of, prompts=person) as fleet,
        PoseSubscriber(fleet.endpoint) as subscriber,
    ):
        before = heard_of(subscriber, 0, 200)
        found = fleet.until(lambda found: all(worker.state == "ready" for worker in found.workers))
        (old,) = (worker for worker in found.workers if worker.number == found.cameras[0].worker)
        os.kill(old.pid, signal.SIGSTOP)
        cut_s = time.monotonic()
        try:
            after = heard_of(subscriber, before.session, 60)
            took_s = time.monotonic() - cut_s
        finally:
            os.kill(old.pid, signal.SIGCONT)
        print(f"moved in {took_s:.1f} s")
        assert took_s < 10
        assert after.session > before.session
        assert subscriber.skeleton(after) is not None, "keypoint names came with the move"
        with PoseSubscriber(old.endpoint) as beside:
            deadline_s = time.monotonic() + 30
            while beside.state("door") not in ("ended", "silent"):
                assert time.monotonic() < deadline_s, f"the old worker still says {beside.state('door')}"
                time.sleep(0.1)
        for _ in range(5):
            received = subscriber.receive(30)
            assert received is not None
            assert received.message.session == after.session, "the worker that came back was heard"
        with PoseSubscriber(fleet.endpoint) as late:
            joined = late.receive(30)
            assert joined is not None
            assert late.skeleton(joined.message) is not None
            assert late.state("door") in ("live", "late")


def heard_of(subscriber: PoseSubscriber, session: int, within_s: float) -> PoseMessage:
    """The first pose of a session after `session`."""
    deadline_s = time.monotonic() + within_s
    while (left_s := deadline_s - time.monotonic()) > 0:
        received = subscriber.receive(left_s)
        if received is not None and received.message.session > session:
            return received.message
    raise AssertionError(f"no pose of a later session within {within_s} s")


def test_fleet_whose_cluster_is_gone_ends_and_is_rebuilt_from_its_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "fleet.toml"
    directory = f"tcp://127.0.0.1:{free_port()}"
    file.write_text(f'directory = "{directory}"\nsilence_s = 2\n[cameras]\na = "{OFF}a"\nb = "{OFF}b"\n')
    sessions = []
    for gone in (True, False):
        with cluster_of(monkeypatch, 1) as cluster:
            command = [sys.executable, "-m", "tests.pipeline.fleet.fleet_process", cluster.address, str(file)]
            process = subprocess.Popen(
                command, cwd=REPOSITORY, env=os.environ | {"PYTHONPATH": "clients/python"}, stderr=subprocess.DEVNULL
            )
            try:
                sessions.append({camera.session for camera in settled_at(directory, "ab").cameras})
                if gone:
                    cluster.head_node.kill_all_processes(check_alive=False, allow_graceful=False)
                    assert process.wait(120) != 0
            finally:
                process.kill()
                process.wait()
    assert min(sessions[1]) > max(sessions[0])


def settled_at(directory: str, names: str) -> FleetEntry:
    deadline_s = time.monotonic() + 180
    while time.monotonic() < deadline_s:
        try:
            found = ask(directory, 2)
        except ConfigError:
            continue  # it is starting
        if settled(names, found):
            return found
        time.sleep(0.2)
    raise AssertionError("the fleet does not settle")
