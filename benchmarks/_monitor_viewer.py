"""A minimal viewer of the monitor, for `benchmarks.monitor`: it draws nothing, and its process does nothing else."""

from __future__ import annotations

import json
import struct
import time
from multiprocessing.connection import Connection

from websockets.sync.client import connect


def view(address: str, report: Connection) -> None:
    """Look at the source until told to end; report the delay of each picture, in milliseconds."""
    delays_ms: list[float] = []
    with connect(address.replace("http", "ws") + "live", compression=None, max_size=None) as socket:
        socket.send(json.dumps({"look": ["drawn"]}))
        while not (delays_ms and report.poll()):
            data = socket.recv()
            if isinstance(data, str):
                continue
            received_ns = time.time_ns()
            (length,) = struct.unpack_from(">I", data)
            message = json.loads(data[4 : 4 + length])["message"]
            socket.send(json.dumps({"seen": "drawn"}))
            if not delays_ms:
                report.send("looking")
            delays_ms.append((received_ns - message["publish_unix_ns"]) / 1e6)
        report.recv()
        report.send(delays_ms[1:])
