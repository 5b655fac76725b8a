"""The commands `replay` and `recover`."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from pathlib import Path
from typing import Annotated

import typer

from pipeline import standard_output

_log = logging.getLogger(__name__)

_LOST = 1


def replay(
    recording: Annotated[Path, typer.Argument(help="A recording that `run --record` wrote (.mcap).")],
    publish: Annotated[str, typer.Option(help="Publish on tcp://ADDRESS:PORT or ipc://FILE.")],
    rate: Annotated[float, typer.Option(min=0.0, help="Speed; 0 is as fast as possible.")] = 1.0,
    from_: Annotated[float, typer.Option("--from", min=0.0, help="Seconds of the recording to skip.")] = 0.0,
    loop: Annotated[bool, typer.Option("--loop", help="Start again after the end.")] = False,
    keys: Annotated[
        Path | None, typer.Option(help="Key folder: only its clients may subscribe; see the command keys.")
    ] = None,
) -> None:
    """Publish the messages of a recording again, with fresh time stamps and marked as a replay."""
    from pipeline.keys import ServerKeys
    from pipeline.outputs.endpoints import require_local
    from pipeline.outputs.publisher import PublishConfig
    from pipeline.service.replay import Replay

    config = PublishConfig(endpoint=publish)
    if keys is None:
        require_local("--publish", publish, "")
    own = None if keys is None else ServerKeys(keys)
    stopped = threading.Event()
    caught: list[int] = []

    def stop(number: int, _: object) -> None:
        caught.append(number)
        stopped.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    player = Replay(recording, config, rate=rate, skip_s=from_, loop=loop, stopped=stopped, keys=own)
    result = player.run()
    standard_output.write(
        f"{result.messages} messages published in {result.duration_s:.1f} s: "
        f"{result.messages / max(result.duration_s, 1e-9):.0f} messages/s\n"
    )
    if result.damage:
        _log.warning("%s", result.damage)
        sys.exit(_LOST)
    if caught and not loop:
        sys.exit(128 + caught[0])


def recover(
    recording: Annotated[Path, typer.Argument(help="A recording that was cut off, by a crash or a full disk.")],
) -> None:
    """Add the missing index to a recording that was cut off, so that all readers can open it."""
    from pipeline.service.recover import recover as give_index

    recovered = give_index(recording)
    if recovered is None:
        standard_output.write(f"{recording}: is whole; nothing was changed\n")
        return
    standard_output.write(f"{recording}: {recovered.messages} messages are kept, and it has its index now\n")
    if recovered.damage:
        _log.warning("%s", recovered.damage)
