"""Standard output that may be closed, full, or read by a program that ends early, such as `head`.

Such an output does not undo the work of a command, so the exit status stays the same. A command that only prints checks
whether the text was written.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from io import StringIO, TextIOWrapper

from rich.console import Console


def prepare() -> None:
    """Make the standard streams safe to use; call it once at the start.

    A descriptor that the caller closed is opened on /dev/null. Otherwise the next file that is opened gets its number,
    and receives what a library prints. A path with bytes that the encoding lacks is printed with escapes.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def write(text: str | bytes) -> OSError | None:
    """Print `text` unchanged and at once. Return the error if this fails; later text is then dropped."""
    try:
        if isinstance(text, bytes):
            sys.stdout.buffer.write(text)
        else:
            sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        # The stream keeps what it could not write, and would fail again when the interpreter flushes it at the end.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        return error
    return None


def show(draw: Callable[[Console], None]) -> None:
    """Print what `draw` prints on a console of standard output's width and colours."""
    shown = Console()
    text = StringIO()
    draw(Console(file=text, width=shown.width, force_terminal=shown.is_terminal))
    write(text.getvalue())
