"""The C++ client, built as a user builds it, against the test vectors and beside the Python client on the same run."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq

from tests.clients.python.made import pose, skeleton, status
from tests.clients.python.sending import Sender
from tests.support import REPOSITORY
from xpose_client import Received, SourceState
from xpose_client.messages import Message, encode, to_json_line

pytestmark = pytest.mark.timeout(240)

VECTORS = json.loads((REPOSITORY / "clients" / "vectors.json").read_text(encoding="utf-8"))["vectors"]
NEEDED = {
    "a C++ compiler": "/usr/bin/c++",
    "cppzmq-dev": "/usr/include/zmq.hpp",
    "libmsgpack-cxx-dev": "/usr/include/msgpack.hpp",
}
WARNINGS = "-Wall -Wextra -Wpedantic -Wshadow -Wconversion -Werror"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`print`, compiled on the installed header; the example is compiled on the way, with warnings as errors."""
    absent = [name for name, path in NEEDED.items() if not Path(path).exists()]
    absent += [] if shutil.which("cmake") else ["cmake"]
    if absent:
        reason = f"not installed: {', '.join(absent)}"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    folder = tmp_path_factory.mktemp("cpp")
    root, client, tests = folder / "root", folder / "client", folder / "tests"
    flags = (f"-DCMAKE_INSTALL_PREFIX={root}", f"-DCMAKE_PREFIX_PATH={root}", f"-DCMAKE_CXX_FLAGS={WARNINGS}")
    cmake("-S", REPOSITORY / "clients" / "cpp", "-B", client, *flags)
    cmake("--build", client)
    cmake("--install", client)
    cmake("-S", Path(__file__).parent, "-B", tests, *flags)
    cmake("--build", tests)
    return tests / "print"


def cmake(*arguments: str | Path) -> None:
    command = ["cmake", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def sender() -> Iterator[Sender]:
    with Sender() as sender:
        yield sender


def test_every_vector_decodes_to_its_message_or_its_error(program: Path) -> None:
    lines = "".join(f"{vector['hex']}\n" for vector in VECTORS)
    printed = subprocess.run(
        [program, "vectors"], input=lines, capture_output=True, text=True, timeout=60, check=True
    ).stdout.splitlines()
    assert len(printed) == len(VECTORS)
    for vector, line in zip(VECTORS, printed, strict=True):
        assert json.loads(line) == (vector["error"] or vector["json"]), vector["name"]


def test_decoding_allocates_no_more_than_msgpack_does(program: Path) -> None:
    data = VECTORS[0]["hex"]
    done = subprocess.run(
        [program, "allocations"], input=f"{data}\n", capture_output=True, text=True, timeout=60, check=True
    )
    counts = json.loads(done.stdout)
    assert counts["decoder"] == counts["msgpack"]


def with_later_field(message: Message) -> bytes:
    head, _, _ = encode(message).partition(b"\0")
    return head + b"\0" + msgspec.msgpack.encode({**msgspec.to_builtins(message), "humidity": [0.5, {}]})


def test_both_clients_hand_out_the_same_on_the_same_run(program: Path, sender: Sender) -> None:
    """Gaps, a restart, repeats, states, fields of a later program, and at last the silence of the publisher."""
    poses = [
        pose(3),
        pose(4),
        pose(4),
        pose(9),
        pose(0, "cam2"),
        pose(2, session=2),
        pose(3, host="elsewhere", session=2),
    ]
    with sender.connect() as subscriber, follow(program, sender, 9) as other:
        sender.send(status(), skeleton())
        here: list[dict[str, Any]] = [as_printed(subscriber.receive_event(5), True)]
        there = [read(other)]
        for message in poses:
            sender.send(with_later_field(message))
        for _ in range(6):
            here.append(as_printed(subscriber.receive_event(5), True))
            there.append(read(other))
        sender.send(status(state="late"))
        here.append(as_printed(subscriber.receive_event(5), True))
        there.append(read(other))
        sender.close()
        here.append(as_printed(subscriber.receive_event(5), False))
        there.append(read(other))
        totals = read(other)
        assert totals == {"received": subscriber.received, "missed": subscriber.missed, "restarts": subscriber.restarts}
    for event in (*here, *there):
        assert 0 <= event.pop("age_s", 0.0) < 60
    assert here == there
    assert [event["state"] for event in there if "state" in event] == ["live", "late", "silent"]
    assert totals == {"received": 6, "missed": 6, "restarts": 1}


def test_age_is_by_the_monotonic_clock_here_and_by_the_wall_clock_elsewhere(program: Path, sender: Sender) -> None:
    now = pose()
    here = pose(0, capture_monotonic_ns=now.capture_monotonic_ns - 3 * 10**9, capture_unix_ns=0)
    there = pose(1, host="elsewhere", capture_monotonic_ns=0, capture_unix_ns=now.capture_unix_ns - 700 * 10**9)
    with follow(program, sender, 2) as other:
        sender.send(here, there)
        assert 3 <= read(other)["age_s"] < 60
        assert 700 <= read(other)["age_s"] < 760


def test_curve_lets_in_the_client_with_the_servers_key(program: Path) -> None:
    server, server_secret = zmq.curve_keypair()
    public, secret = zmq.curve_keypair()
    with zmq.Context() as context, context.socket(zmq.XPUB) as publisher:
        publisher.setsockopt(zmq.LINGER, 0)
        publisher.curve_secretkey, publisher.curve_publickey, publisher.curve_server = server_secret, server, True
        port = publisher.bind_to_random_port("tcp://127.0.0.1")
        command = [program, "follow", f"tcp://127.0.0.1:{port}", "1", server, public, secret]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
            for _ in range(3):
                assert publisher.poll(20_000)
                publisher.recv()
            publisher.send(encode(pose(5)))
            assert read(other)["message"]["seq"] == 5


def follow(program: Path, sender: Sender, events: int) -> subprocess.Popen[str]:
    """Start the C++ client and wait for its subscriptions."""
    process = subprocess.Popen([program, "follow", sender.endpoint, str(events)], stdout=subprocess.PIPE, text=True)
    sender.await_subscriptions(3)
    return process


def read(process: "subprocess.Popen[str]") -> dict[str, Any]:
    assert process.stdout is not None
    line: dict[str, Any] = json.loads(process.stdout.readline())
    return line


def as_printed(event: object, alive: bool) -> dict[str, Any]:
    """An event of the Python client as the C++ program prints it."""
    if isinstance(event, Received):
        message = json.loads(to_json_line(event.message))
        return {"age_s": event.age_s, "missed": event.missed, "restarted": event.restarted, "message": message}
    assert isinstance(event, SourceState)
    return {"source": event.source, "state": event.state, "alive": alive}
