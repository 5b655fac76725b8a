"""What systemd is told; a socket of the test stands for systemd's."""

import os
import socket
import time
from collections.abc import Generator
from pathlib import Path

import pytest

from pipeline.service.notify import Systemd

YES, NO = (lambda: True), (lambda: False)


@pytest.fixture
def manager(tmp_path: Path) -> Generator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiving:
        receiving.bind(str(tmp_path / "notify"))
        receiving.setblocking(False)
        yield receiving


def lines(manager: socket.socket) -> list[str]:
    found = []
    while True:
        try:
            found.append(manager.recv(1000).decode())
        except BlockingIOError:
            return found


def test_readiness_is_said_once_and_only_when_the_pipeline_is_ready(manager: socket.socket) -> None:
    systemd = Systemd({"NOTIFY_SOCKET": manager.getsockname()})
    systemd.update(ready=NO, healthy=YES)
    assert lines(manager) == []
    for _ in range(3):
        systemd.update(ready=YES, healthy=YES)
    systemd.stopping()
    assert lines(manager) == ["READY=1", "STOPPING=1"]


def test_watchdog_hears_of_a_healthy_pipeline_twice_per_period_and_nothing_of_a_stuck_one(
    manager: socket.socket,
) -> None:
    systemd = Systemd({"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "200000"})
    for _ in range(50):
        systemd.update(ready=NO, healthy=NO)
    assert lines(manager) == []
    begun_s = time.monotonic()
    while time.monotonic() - begun_s < 0.55:
        systemd.update(ready=NO, healthy=YES)
        time.sleep(0.005)
    assert 4 <= len(lines(manager)) <= 6


@pytest.mark.parametrize("pid", [os.getpid(), os.getpid() + 1])
def test_watchdog_of_another_process_is_none_of_ours(manager: socket.socket, pid: int) -> None:
    environment = {"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "1000", "WATCHDOG_PID": str(pid)}
    Systemd(environment).update(ready=NO, healthy=YES)
    assert lines(manager) == (["WATCHDOG=1"] if pid == os.getpid() else [])


def test_name_without_a_file_is_an_abstract_socket() -> None:
    name = f"xpose-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiving:
        receiving.bind(f"\0{name}")
        Systemd({"NOTIFY_SOCKET": f"@{name}"}).update(ready=YES, healthy=YES)
        assert receiving.recv(100) == b"READY=1"


@pytest.mark.parametrize("environment", [{}, {"NOTIFY_SOCKET": "/nonexistent/notify", "WATCHDOG_USEC": "x"}])
def test_without_systemd_nothing_happens(environment: dict[str, str]) -> None:
    systemd = Systemd(environment)
    systemd.update(ready=YES, healthy=YES)
    systemd.stopping()
