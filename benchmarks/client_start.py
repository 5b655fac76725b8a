"""Start of the client: `import xpose_client` and one received message, in a fresh environment.

    python -m benchmarks.client_start [--runs 20]

Only the client is installed into a new virtual environment. A publisher sends 100 messages per second, with one person.
Each run is a new process that imports the client, connects and receives one message. The time starts before the import;
the memory is the largest resident size of the process. The goals are 0.2 s and 60 MiB.
"""

import argparse
import json
import subprocess
import tempfile
import threading
import time
import venv
from pathlib import Path

import numpy as np
import zmq

from benchmarks._record import REPOSITORY, record
from xpose_client.host import boot_id
from xpose_client.messages import SCHEMA, PoseMessage, TrackMessage, encode

GOAL_S = 0.2
GOAL_MIB = 60
KEYPOINTS = 17
RATE = 100  # messages/s

RECEIVE_ONE = """
import time
start_s = time.perf_counter()
import xpose_client
imported_s = time.perf_counter()
with xpose_client.PoseSubscriber({endpoint!r}) as subscriber:
    assert subscriber.receive(10) is not None
received_s = time.perf_counter()
import json, resource
peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # Linux gives KiB
print(json.dumps([imported_s - start_s, received_s - start_s, peak_mib]))
"""


def main() -> None:
    """Install, measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    options = parser.parse_args()
    stop = threading.Event()
    with tempfile.TemporaryDirectory() as folder, zmq.Context() as context:
        python = install(Path(folder))
        socket = context.socket(zmq.PUB)
        port = socket.bind_to_random_port("tcp://127.0.0.1")
        sender = threading.Thread(target=send, args=(socket, stop), daemon=True)
        sender.start()
        code = RECEIVE_ONE.format(endpoint=f"tcp://127.0.0.1:{port}")
        runs = [measure(python, code) for _ in range(options.runs + 1)][1:]  # the first one reads the disk
        stop.set()
        sender.join()
    import_s, message_s, peak_mib = np.median(np.array(runs), axis=0)
    row: dict[str, object] = {
        "what": "import xpose_client and one received message, fresh environment, new process",
        "runs": options.runs,
        "import_s": round(float(import_s), 3),
        "message_s": round(float(message_s), 3),
        "slowest_message_s": round(max(run[1] for run in runs), 3),
        "peak_mib": round(float(peak_mib), 1),
        "goal_s": GOAL_S,
        "goal_mib": GOAL_MIB,
    }
    print(row)
    print(record("client_start", [row]))


def install(folder: Path) -> Path:
    """Install the client alone into a new environment, compiled to bytecode; return its Python."""
    venv.create(folder / "env", with_pip=True)
    python = folder / "env" / "bin" / "python"
    client = REPOSITORY / "clients" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", str(client)], check=True)
    return python


def send(socket: "zmq.Socket[bytes]", stop: threading.Event) -> None:
    """Send the message of one person at a steady rate, until `stop`."""
    points: list[tuple[float | None, float | None]] = [(100.0 + k, 200.0 + k) for k in range(KEYPOINTS)]
    spread: list[tuple[float | None, float | None, float | None]] = [(1.0, 0.0, 1.0)] * KEYPOINTS
    box = (0.0, 0.0, 100.0, 200.0)
    track = TrackMessage(1, "person", 0.9, box, points, points, points, points, spread, [True] * KEYPOINTS, True)
    seq = 0
    while not stop.wait(1 / RATE):
        unix_ns = time.time_ns()
        message = PoseMessage(
            SCHEMA, 1, seq, "camera", seq, None, seq / RATE, None, boot_id(), "receipt", unix_ns, time.monotonic_ns(),
            None, None, unix_ns, 1280, 720, 1, [track],
        )  # fmt: skip
        socket.send(encode(message))
        seq += 1
    socket.close(linger=0)


def measure(python: Path, code: str) -> list[float]:
    """Return (import_s, message_s, peak_mib) of one new process."""
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    values: list[float] = json.loads(done.stdout)
    return values


if __name__ == "__main__":
    main()
