"""A TCP link with faults: `python -m benchmarks.chaos.link LISTEN TARGET`, commands on standard input.

pass                no fault
stall               nothing from the server gets through
delay SECONDS       everything from the server takes this much longer
rate BYTES_PER_S    limit the rate of the server's bytes
cut                 reset all connections
refuse, accept      close new connections at once, or accept them

Prints "ready".
"""

from __future__ import annotations

import asyncio
import collections
import sys
import time
from dataclasses import dataclass, field

_PIECE = 1400  # bytes; what a rate limit lets through at a time
_MOST_WAITING = 40_000  # pieces


@dataclass
class Fault:
    """The fault that the link has now."""

    stalled: bool = False
    delay_s: float = 0.0
    bytes_per_s: float = 0.0
    refusing: bool = False
    connections: set[asyncio.StreamWriter] = field(default_factory=set)

    def obey(self, words: list[str]) -> None:
        """Carry out the command in one line of standard input."""
        match words:
            case ["pass"]:
                self.stalled, self.delay_s, self.bytes_per_s = False, 0.0, 0.0
            case ["stall"]:
                self.stalled = True
            case ["delay", seconds]:
                self.delay_s = float(seconds)
            case ["rate", rate]:
                self.bytes_per_s = float(rate)
            case ["refuse" | "accept" as word]:
                self.refusing = word == "refuse"
            case ["cut"]:
                for writer in list(self.connections):
                    writer.transport.abort()


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, fault: Fault | None) -> None:
    """Carry bytes in one direction; `fault` is None for the direction without faults."""
    waiting: collections.deque[tuple[float, bytes]] = collections.deque()
    changed = asyncio.Event()
    ended = False

    async def fill() -> None:
        nonlocal ended
        try:
            while data := await reader.read(_PIECE):
                waiting.append((time.monotonic(), data))
                changed.set()
                while len(waiting) > _MOST_WAITING:
                    await asyncio.sleep(0.01)
        except ConnectionError:
            pass
        ended = True
        changed.set()

    filling = asyncio.create_task(fill())
    try:
        while waiting or not ended:
            if not waiting:
                changed.clear()
                await changed.wait()
                continue
            born_s, data = waiting[0]
            if fault is not None and (fault.stalled or time.monotonic() - born_s < fault.delay_s):
                await asyncio.sleep(0.003)
                continue
            waiting.popleft()
            writer.write(data)
            await writer.drain()
            if fault is not None and fault.bytes_per_s:
                await asyncio.sleep(len(data) / fault.bytes_per_s)
    except ConnectionError:
        pass
    finally:
        filling.cancel()
        writer.close()


async def serve(listen: int, target: int) -> None:
    """Carry connections until standard input ends."""
    fault = Fault()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if fault.refusing:
            writer.transport.abort()
            return
        try:
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", target)
        except OSError:
            writer.transport.abort()
            return
        fault.connections |= {writer, server_writer}
        await asyncio.gather(pump(reader, server_writer, None), pump(server_reader, writer, fault))
        fault.connections -= {writer, server_writer}

    await asyncio.start_server(connect, "127.0.0.1", listen)
    commands = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    print("ready", flush=True)
    while line := await commands.readline():
        fault.obey(line.decode().split())


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), int(sys.argv[2])))
