"""Messages to systemd: readiness and the watchdog, as in sd_notify(3).

A service of `Type=notify` counts as started when it says READY=1. With `WatchdogSec=` systemd restarts a service that
stays silent. Both are lines of text on a Unix datagram socket whose name is in the environment.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping


class Systemd:
    """Tells systemd how the program is doing; does nothing where systemd did not start it.

    Args:
        environment: holds NOTIFY_SOCKET and, with a watchdog, WATCHDOG_USEC and WATCHDOG_PID.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        if self._address.startswith("@"):  # a name without a file (Linux)
            self._address = "\0" + self._address[1:]
        for_us = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        watchdog_us = environment.get("WATCHDOG_USEC", "") if for_us else ""
        self._every_s = int(watchdog_us) / 2e6 if watchdog_us.isdecimal() else None
        self._next_s = 0.0
        self._ready = False

    def update(self, *, ready: Callable[[], bool], healthy: Callable[[], bool]) -> None:
        """Say what is due; call it several times a second.

        Args:
            ready: whether the service has started; asked until it was true once.
            healthy: whether the watchdog may be told that all is well; asked twice per watchdog period. A service that
                is not healthy stays silent, and systemd restarts it.
        """
        if not self._address:
            return
        if not self._ready and ready():
            self._ready = True
            self._send("READY=1")
        now_s = time.monotonic()
        if self._every_s is not None and now_s >= self._next_s and healthy():
            self._next_s = now_s + self._every_s
            self._send("WATCHDOG=1")

    def stopping(self) -> None:
        """Say that the service is about to end."""
        if self._address:
            self._send("STOPPING=1")

    def _send(self, line: str) -> None:
        """Send one line. A manager that is gone or busy must not disturb the pipeline."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as sending:
            try:
                sending.sendto(line.encode(), self._address)
            except OSError:
                return
