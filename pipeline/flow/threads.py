"""The threads of a pipeline: the first error in one of them stops all."""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Callable, Sequence

_log = logging.getLogger(__name__)


class Threads:
    """Starts threads and keeps their first error. All methods are for any thread.

    Args:
        stop: asks all of them to end; called on a thread that failed.

    Attributes:
        failure: the first error; None without one.
    """

    def __init__(self, stop: Callable[[], None]) -> None:
        self.failure: BaseException | None = None
        self._stop = stop
        self._lock = threading.Lock()

    def start(self, name: str, action: Callable[[], None]) -> threading.Thread:
        """Run `action` on a thread with this name. It does not keep the process alive."""

        def run() -> None:
            try:
                action()
            except BaseException as error:
                self._fail(error)

        thread = threading.Thread(target=run, name=name, daemon=True)
        thread.start()
        return thread

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            if self.failure is None:
                self.failure = error
            else:
                _log.debug("after the first failure: %s", error)
        self._stop()


def spare_loaded_objects() -> None:
    """Leave everything that is in memory now out of Python's later garbage collections.

    A full collection stops all threads, for more than 100 ms once PyTorch and a network are loaded. To be called when
    they are, in a process that runs one pipeline.
    """
    gc.collect()
    gc.freeze()


def join(threads: Sequence[threading.Thread], timeout_s: float) -> bool:
    """Wait for threads for at most `timeout_s`; return whether all have ended."""
    deadline_s = time.monotonic() + timeout_s
    for thread in threads:
        thread.join(max(0.0, deadline_s - time.monotonic()))
    return not any(thread.is_alive() for thread in threads)
