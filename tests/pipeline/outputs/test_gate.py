"""Keys on the publisher: who gets messages, who is cut off, and who gets in later."""

import logging
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import zmq

from pipeline.config import PipelineConfig
from pipeline.errors import ConfigError
from pipeline.keys import ServerKeys, make_keys, revoke
from pipeline.outputs.endpoints import is_local
from pipeline.outputs.publisher import PublishConfig, Publisher
from tests.clients.python.made import pose
from xpose_client import PoseSubscriber

pytestmark = pytest.mark.timeout(60)

END_S = 20.0


class Publishing:
    """A publisher with keys on a thread of its own, one message each 10 ms."""

    def __init__(self, keys: ServerKeys, endpoint: str = "tcp://127.0.0.1:*") -> None:
        self.endpoint = ""
        self._keys, self._wanted = keys, endpoint
        self._ready, self._end = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        with Publisher(PublishConfig(self._wanted, linger_s=0.0), self._keys) as publisher:
            self.endpoint = publisher.endpoint
            self._ready.set()
            seq = 0
            while not self._end.wait(0.01):
                publisher.serve_late_joiners()
                publisher.publish(pose(seq))
                seq += 1

    def __enter__(self) -> "Publishing":
        self._thread.start()
        assert self._ready.wait(END_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(END_S)
        assert not self._thread.is_alive()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_keys(tmp_path / "keys", ["robot", "wall"])
    return tmp_path / "keys"


@contextmanager
def bare(endpoint: str, **curve: str) -> Iterator[zmq.Socket[bytes]]:
    """A subscriber with any keys, or none."""
    with zmq.Context() as context, context.socket(zmq.SUB) as subscriber:
        subscriber.linger = 0
        subscriber.subscribe(b"")
        for option, key in curve.items():
            setattr(subscriber, option, key.encode())
        subscriber.connect(endpoint)
        yield subscriber


def hears(subscriber: PoseSubscriber, timeout_s: float = END_S) -> bool:
    """Whether a message comes that was not waiting."""
    while subscriber.receive(0) is not None:
        pass
    return subscriber.receive(timeout_s) is not None


def until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + END_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


@pytest.mark.parametrize("kind", ["tcp", "ipc"])
def test_allowed_clients_get_messages(folder: Path, tmp_path: Path, kind: str) -> None:
    endpoint = "tcp://127.0.0.1:*" if kind == "tcp" else f"ipc://{tmp_path}/poses"
    with Publishing(ServerKeys(folder), endpoint) as publishing:
        for name in ("robot", "wall"):
            with PoseSubscriber(publishing.endpoint, keys=folder / f"{name}.key") as subscriber:
                assert hears(subscriber)


def test_client_without_the_right_key_gets_nothing_and_is_counted(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_keys(tmp_path / "other", ["robot"])
    keys = ServerKeys(folder)
    stranger, stranger_secret = (key.decode() for key in zmq.curve_keypair())
    with Publishing(keys) as publishing, PoseSubscriber(publishing.endpoint, keys=folder / "robot.key") as friend:
        endpoint = publishing.endpoint
        for wrong in (
            {},
            {"curve_serverkey": keys.pair.public, "curve_publickey": stranger, "curve_secretkey": stranger_secret},
            {"curve_serverkey": stranger, "curve_publickey": stranger, "curve_secretkey": stranger_secret},
        ):
            before = keys.refused
            with bare(endpoint, **wrong) as subscriber:
                until(lambda before=before: keys.refused > before)  # type: ignore[misc]
                assert not subscriber.poll(200)
        with PoseSubscriber(endpoint, keys=tmp_path / "other" / "robot.key") as subscriber:
            assert subscriber.receive(0.3) is None
        assert hears(friend)
    warnings = [record for record in caplog.records if "refused a client" in record.message]
    assert len(warnings) == 1
    assert warnings[0].levelno == logging.WARNING


def test_client_whose_key_is_taken_away_is_cut_off_at_once_and_the_others_miss_nothing(folder: Path) -> None:
    with (
        Publishing(ServerKeys(folder)) as publishing,
        PoseSubscriber(publishing.endpoint, keys=folder / "robot.key") as robot,
        PoseSubscriber(publishing.endpoint, keys=folder / "wall.key") as wall,
    ):
        assert hears(robot)
        assert hears(wall)
        revoke(folder, ["robot"])
        deadline_s = time.monotonic() + END_S
        while hears(robot, 1.0):
            assert time.monotonic() < deadline_s, "the client still gets messages"
        assert not hears(robot, 1.0)
        assert hears(wall)
        assert (wall.missed, wall.restarts) == (0, 0)


def test_client_whose_key_is_added_later_gets_in(folder: Path, tmp_path: Path) -> None:
    make_keys(folder, ["late"])
    late = tmp_path / "late.key"
    late.write_bytes((folder / "late.key").read_bytes())
    late.chmod(0o600)
    line = next(line for line in (folder / "allowed_clients").read_text().splitlines() if line.startswith("late "))
    revoke(folder, ["late"])
    keys = ServerKeys(folder)
    with Publishing(keys) as publishing, PoseSubscriber(publishing.endpoint, keys=late) as subscriber:
        until(lambda: keys.refused > 0)
        assert subscriber.receive(0.1) is None
        with (folder / "allowed_clients").open("a") as file:
            file.write(f"{line}\n")
        assert subscriber.receive(END_S) is not None


def test_client_that_comes_and_goes_can_come_again(folder: Path) -> None:
    with Publishing(ServerKeys(folder)) as publishing:
        for _ in range(5):
            with PoseSubscriber(publishing.endpoint, keys=folder / "robot.key") as subscriber:
                assert hears(subscriber)


def test_gate_leaves_no_thread_behind(folder: Path) -> None:
    with Publishing(ServerKeys(folder)):
        assert [thread for thread in threading.enumerate() if thread.name == "gate of publisher"]
    assert not [thread for thread in threading.enumerate() if thread.name == "gate of publisher"]


def test_publisher_that_cannot_bind_leaves_no_thread_behind(folder: Path) -> None:
    keys = ServerKeys(folder)
    with Publishing(keys) as publishing:
        with pytest.raises(Exception, match="another program uses this address"):
            Publisher(PublishConfig(publishing.endpoint), keys)
        assert sum(thread.name == "gate of publisher" for thread in threading.enumerate()) == 1


def test_socket_file_of_the_publisher_is_for_the_owner_alone(tmp_path: Path) -> None:
    with Publisher(PublishConfig(f"ipc://{tmp_path}/poses")):
        assert stat.S_IMODE((tmp_path / "poses").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("endpoint", "local"),
    [
        ("tcp://127.0.0.1:5555", True),
        ("tcp://127.8.8.8:*", True),
        ("tcp://localhost:5555", True),
        ("tcp://[::1]:5555", True),
        ("ipc:///tmp/poses", True),
        ("tcp://*:5555", False),
        ("tcp://0.0.0.0:5555", False),
        ("tcp://[::]:5555", False),
        ("tcp://192.168.1.5:5555", False),
        ("tcp://eth0:5555", False),
        ("tcp://localhost.example:5555", False),
    ],
)
def test_publisher_that_others_can_reach_needs_keys_or_insistence(endpoint: str, local: bool) -> None:
    assert is_local(endpoint) == local
    if local:
        PipelineConfig(publish=PublishConfig(endpoint))
    else:
        with pytest.raises(ConfigError, match=r"keys FOLDER --client NAME` and give --keys .*without_keys=true"):
            PipelineConfig(publish=PublishConfig(endpoint))
    PipelineConfig(publish=PublishConfig(endpoint, without_keys=True))
