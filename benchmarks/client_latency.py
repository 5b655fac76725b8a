"""Time from publishing to the decoded message, for the C++ client and the Python client on the same messages.

    python -m benchmarks.client_latency [--messages 2000]

Each client runs in its own process. Both subscribe to the same publisher on tcp://127.0.0.1, which sends 200 messages
per second with ten people each. A message is stamped just before it is sent; its delay is its age when it was decoded.
The goal is that the 99th percentile of the C++ client is at most that of the Python client. Needs CMake, a C++
compiler, cppzmq and msgpack-c.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec
import numpy as np
import zmq

from benchmarks._record import REPOSITORY, record
from xpose_client.host import boot_id
from xpose_client.messages import SCHEMA, PoseMessage, TrackMessage, encode

PEOPLE = 10
KEYPOINTS = 17
INTERVAL_S = 1 / 200
PYTHON_CLIENT = """
import sys
from xpose_client import PoseSubscriber
with PoseSubscriber(sys.argv[1]) as subscriber:
    ages_s = [subscriber.receive(10).age_s for _ in range(int(sys.argv[2]))]
for age_s in ages_s:
    print('{"age_s":%r}' % age_s)
"""


def main() -> None:
    """Build, measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=2000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, zmq.Context() as context:
        program = build(Path(folder))
        socket = context.socket(zmq.XPUB)
        socket.setsockopt(zmq.XPUB_VERBOSE, 1)
        socket.setsockopt(zmq.LINGER, 0)
        endpoint = f"tcp://127.0.0.1:{socket.bind_to_random_port('tcp://127.0.0.1')}"
        count = str(options.messages)
        commands = {
            "C++": [str(program), "follow", endpoint, count],
            "Python": [sys.executable, "-c", PYTHON_CLIENT, endpoint, count],
        }
        files = {name: Path(folder) / f"{name}.jsonl" for name in commands}
        processes = [start(command, files[name]) for name, command in commands.items()]
        publish(socket, subscriptions=3 * len(processes), messages=options.messages)
        for process in processes:
            process.wait(60)
        socket.close()
        rows = [row(name, files[name], options.messages) for name in commands]
    for measured in rows:
        print(measured)
    print(record("client_latency", rows))


def build(folder: Path) -> Path:
    """Build the C++ client's test program, optimised; return its path."""
    flags = (
        f"-DCMAKE_INSTALL_PREFIX={folder}/root",
        f"-DCMAKE_PREFIX_PATH={folder}/root",
        "-DCMAKE_BUILD_TYPE=Release",
    )
    client, tests = REPOSITORY / "clients" / "cpp", REPOSITORY / "tests" / "clients" / "cpp"
    steps = (
        ("-S", client, "-B", folder / "client", *flags),
        ("--install", folder / "client"),
        ("-S", tests, "-B", folder / "tests", *flags),
        ("--build", folder / "tests"),
    )
    subprocess.run(["cmake", *map(str, steps[0])], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["cmake", "--build", str(folder / "client")], check=True, stdout=subprocess.DEVNULL)
    for step in steps[1:]:
        subprocess.run(["cmake", *map(str, step)], check=True, stdout=subprocess.DEVNULL)
    return folder / "tests" / "print"


def start(command: list[str], output: Path) -> "subprocess.Popen[bytes]":
    """Start a client that writes one JSON line for each message."""
    with output.open("wb") as file:
        return subprocess.Popen(command, stdout=file)


def publish(socket: "zmq.Socket[bytes]", subscriptions: int, messages: int) -> None:
    """Wait for all subscriptions, then send messages of ten people at a steady rate."""
    for _ in range(subscriptions):
        socket.recv()
    points: list[tuple[float | None, float | None]] = [(100.25 + k, 200.5 + k) for k in range(KEYPOINTS)]
    spread: list[tuple[float | None, float | None, float | None]] = [(1.5, 0.25, 2.5)] * KEYPOINTS
    tracks = [
        TrackMessage(
            person, "person", 0.9, (0.0, 0.0, 100.0, 200.0), points, points, points, points, spread,
            [True] * KEYPOINTS, True,
        )
        for person in range(PEOPLE)
    ]  # fmt: skip
    message = PoseMessage(
        SCHEMA, 1, 0, "camera", 0, None, 0.0, None, boot_id(), "receipt", 0, 0, None, None, 0, 1280, 720, 1, tracks
    )
    for seq in range(messages):
        begin_s = time.perf_counter()
        stamped = msgspec.structs.replace(message, seq=seq, capture_monotonic_ns=time.monotonic_ns())
        socket.send(encode(stamped))
        time.sleep(max(0.0, INTERVAL_S - (time.perf_counter() - begin_s)))


def row(name: str, output: Path, messages: int) -> dict[str, object]:
    """Return the percentiles of one client, without the first tenth, which is a warm-up."""
    lines = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    delays_ms = np.array([line["age_s"] * 1000 for line in lines if "age_s" in line])[messages // 10 :]
    p50, p95, p99 = (round(float(np.percentile(delays_ms, percent)), 3) for percent in (50, 95, 99))
    what = f"{name} client: send to decoded message on loopback, {PEOPLE} people, {round(1 / INTERVAL_S)} messages/s"
    return {"what": what, "messages": len(delays_ms), "p50_ms": p50, "p95_ms": p95, "p99_ms": p99}


if __name__ == "__main__":
    main()
