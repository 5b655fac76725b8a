"""What the command line starts beside a pipeline."""

import re
import socket
import threading
from collections.abc import Generator
from pathlib import Path
from unittest import mock
from urllib.request import urlopen

import pytest

from pipeline.cli import main
from tests.pipeline.fakes import FakeEngine
from tests.pipeline.service.watched import FACTS

pytestmark = [pytest.mark.timeout(60), pytest.mark.usefixtures("fake_engine")]

SOURCE = "testsrc://?frames=5&size=160x120"


@pytest.fixture
def fake_engine() -> Generator[FakeEngine]:
    engine = FakeEngine(delay_s=0.05)
    with (
        mock.patch("engines.engine.Engine", return_value=engine) as made,
        mock.patch("pipeline.service.operations.describe", return_value=FACTS),
    ):
        engine.made = made  # type: ignore[attr-defined]
        yield engine


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["run", "--source", SOURCE, *arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_run_says_where_the_monitor_is_and_ends_it_with_the_pipeline(
    caplog: pytest.LogCaptureFixture, fake_engine: FakeEngine
) -> None:
    answers: list[bytes] = []

    def look(images: int) -> None:
        address = re.search(r"monitor: (http://127\.0\.0\.1:\d+/)", caplog.text)
        if address and not answers:
            with urlopen(address[1] + "healthz", timeout=20) as answer:
                answers.append(answer.read())

    fake_engine.on_submit = look
    with caplog.at_level("INFO"):
        assert call("--monitor", "127.0.0.1:0") == 0
    assert answers == [b"alive\n"]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("monitor")]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--monitor", "0.0.0.0:0"), "--monitor 0.0.0.0:0: others on the network could reach it, so it needs"),
        (("--monitor", "nowhere"), "--monitor nowhere: give HOST:PORT"),
        (("--monitor", "0.0.0.0:0", "--monitor-token-file", "/nonexistent"), "/nonexistent: cannot be read"),
    ],
)
def test_monitor_that_cannot_be_is_one_sentence_and_no_engine_is_loaded(
    arguments: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str], fake_engine: FakeEngine
) -> None:
    assert call(*arguments) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert sentence in line
    assert not fake_engine.made.called  # type: ignore[attr-defined]


def test_address_that_is_taken_ends_the_run_before_an_engine_is_loaded(
    capsys: pytest.CaptureFixture[str], fake_engine: FakeEngine
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert call("--monitor", f"127.0.0.1:{taken.getsockname()[1]}") == 2
    assert "cannot listen there" in capsys.readouterr().err
    assert not fake_engine.made.called  # type: ignore[attr-defined]


def test_systemd_hears_of_the_start_the_watchdog_and_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake_engine: FakeEngine
) -> None:
    fake_engine.delay_s = 0.2
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "400000")
        assert call() == 0
        manager.settimeout(20)
        lines = [manager.recv(100).decode()]
        while lines[-1] != "STOPPING=1":
            lines.append(manager.recv(100).decode())
    assert lines[0] == "READY=1"
    assert lines.count("READY=1") == 1
    assert "WATCHDOG=1" in lines
