"""Subscribers that misbehave; each runs in its own process."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Event

import zmq


def flood(endpoint: str, over: Event) -> None:
    """Subscribe and unsubscribe as fast as possible."""
    with zmq.Context() as context, context.socket(zmq.SUB) as socket:
        socket.connect(endpoint)
        while not over.is_set():
            for _ in range(500):
                socket.setsockopt_string(zmq.SUBSCRIBE, "poses/")
                socket.setsockopt_string(zmq.UNSUBSCRIBE, "poses/")


def deaf(endpoint: str, over: Event) -> None:
    """Subscribe to everything and read nothing."""
    with zmq.Context() as context, context.socket(zmq.SUB) as socket:
        socket.setsockopt(zmq.RCVHWM, 1)
        socket.setsockopt_string(zmq.SUBSCRIBE, "")
        socket.connect(endpoint)
        over.wait()


@contextlib.contextmanager
def beside(work: Callable[[str, Event], None] | None, endpoint: str) -> Iterator[None]:
    """Do `work` in another process meanwhile."""
    if work is None:
        yield
        return
    context = multiprocessing.get_context("spawn")
    over = context.Event()
    process = context.Process(target=work, args=(endpoint, over), daemon=True)
    process.start()
    yield
    over.set()
    process.join(10)
