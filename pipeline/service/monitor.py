"""The monitor: makes its parts and serves them over HTTP from one thread."""

from __future__ import annotations

import asyncio
import socket
import threading
from types import TracebackType
from typing import Self

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from pipeline.flow.pipeline import Pipeline
from pipeline.service.access import Names
from pipeline.service.guard import Token
from pipeline.service.health import Health
from pipeline.service.http import Handlers
from pipeline.service.metrics import Exposition, PipelineCollector
from pipeline.service.operations import Operations
from pipeline.service.overview import Overview
from pipeline.service.pictures import Pictures
from pipeline.service.viewers import Viewers

_MOST_CONNECTIONS = 256
_REQUEST_S = 10.0
_LARGEST_HEAD = 16 * 1024
_LARGEST_MESSAGE = 64 * 1024
_JOIN_S = 5.0


class Monitor:
    """Serves one running pipeline from its own thread.

    Args:
        listening: socket from `pipeline.service.access.listen`; the monitor closes it.
        token: the token for viewers; None if every user of this machine may use the monitor.
    """

    def __init__(
        self, pipeline: Pipeline, operations: Operations, listening: socket.socket, token: str | None = None
    ) -> None:
        config = pipeline.config.monitor
        host, port = listening.getsockname()[:2]
        self.address = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
        self._listening = listening
        overview = Overview(pipeline, operations, config.steer)
        self._pictures = Pictures(operations.newest, overview.state, config, pipeline.config.video.overlay)
        viewers = Viewers(self._pictures, overview.json, overview.knows, config.viewers)
        gauges = [("xpose_monitor_viewers", "Pages and streams that are being watched.", lambda: float(viewers.count))]
        collector = PipelineCollector(pipeline, overview.infos, gauges)
        handlers = Handlers(
            config, operations, overview, viewers, self._pictures,
            Health(pipeline, config.stall_s, pipeline.config.source), Exposition(collector),
            None if token is None else Token(token, port),
        )  # fmt: skip
        self._server = uvicorn.Server(
            uvicorn.Config(
                handlers.app(Names.of(config)),
                http=_BoundedProtocol,
                ws="websockets-sansio",
                loop="asyncio",
                lifespan="off",
                log_config=None,
                log_level="critical",
                access_log=False,
                server_header=False,
                h11_max_incomplete_event_size=_LARGEST_HEAD,
                ws_max_size=_LARGEST_MESSAGE,
                ws_per_message_deflate=False,  # JPEG does not get smaller
                timeout_graceful_shutdown=1,
            )
        )
        self._thread = threading.Thread(target=self._serve, name="monitor", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.should_exit = True
        self._thread.join(_JOIN_S)

    def _serve(self) -> None:
        try:
            self._server.run(sockets=[self._listening])
        finally:
            self._pictures.close()
            self._listening.close()


class _BoundedProtocol(H11Protocol):
    """HTTP/1.1 with a limit for the number of connections, and for the time in which a request must arrive."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Refuse a connection if there are too many."""
        super().connection_made(transport)
        self._begun = 0
        self._impatience = self.loop.call_later(_REQUEST_S, self._end_slow_request)
        if len(self.connections) > _MOST_CONNECTIONS:
            transport.abort()

    def data_received(self, data: bytes) -> None:
        """Close a connection that breaks the protocol during an answer. An error message cannot be sent then."""
        try:
            super().data_received(data)
        except h11.LocalProtocolError:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._impatience.cancel()
        super().connection_lost(exc)

    def _end_slow_request(self) -> None:
        """Close a connection whose request has not arrived in time. An idle connection was closed before."""
        if self not in self.connections or self.transport.is_closing():
            return  # it has become a WebSocket
        if self.conn.their_state is h11.IDLE:
            self.transport.abort()
        else:
            self._impatience = self.loop.call_later(_REQUEST_S, self._end_slow_request)
