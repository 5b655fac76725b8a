"""Messages to systemd: readiness and the watchdog, as in sd_notify(3).

A service of `Type=notify` counts as started when it sends READY=1. With `WatchdogSec=`, systemd restarts a service that
does not send WATCHDOG=1 in time. Both are lines of text on a Unix datagram socket whose name is in the environment.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping


class Systemd:
    """Tells systemd the state of the program. Does nothing if systemd did not start the program.

    Args:
        environment: has NOTIFY_SOCKET and, with a watchdog, WATCHDOG_USEC and WATCHDOG_PID.
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
        """Send the messages that are due; call it several times a second.

        Args:
            ready: returns whether the service has started; called until it returns True.
            healthy: returns whether the service is healthy; called twice per watchdog period. While it returns False,
                nothing is sent, and systemd restarts the service.
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
        """Send one line. If systemd does not take it, the pipeline goes on."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as sending:
            try:
                sending.sendto(line.encode(), self._address)
            except OSError:
                return
