"""The services that run with a pipeline: the control socket, the monitor, and the messages to systemd."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from pipeline.service.access import listen, read_token
from pipeline.service.control import ControlServer
from pipeline.service.health import Health
from pipeline.service.notify import Systemd

if TYPE_CHECKING:
    from engines.engine import Engine
    from pipeline.flow.pipeline import Pipeline

_log = logging.getLogger(__name__)


class Services:
    """Starts and ends with one run of a pipeline.

    The constructor binds the addresses, so that a port in use is noticed before the engine is loaded.

    Raises:
        PublishError: the control socket cannot be bound.
        MonitorError: the monitor cannot listen there, or the token file cannot be used.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        config = pipeline.config
        self._pipeline = pipeline
        self._systemd = Systemd()
        self._health = Health(pipeline, config.monitor.stall_s, config.source)
        self._token = read_token(Path(config.monitor.token_file)) if config.monitor.token_file else None
        self._listening = listen(config.monitor.address) if config.monitor.address else None
        self._control = ControlServer(config.control, pipeline.keys) if config.control.endpoint else None
        with ExitStack() as opened:  # if one cannot be opened, the others are closed
            if self._listening is not None:
                opened.callback(self._listening.close)
            if self._control is not None:
                opened.enter_context(self._control)
            self._opened = opened.pop_all()

    def start(self, engine: Engine) -> None:
        """Serve a pipeline that has started."""
        if self._listening is None and self._control is None:
            return
        from pipeline.service.operations import Operations, describe

        operations = Operations(self._pipeline, describe(engine))
        if self._control is not None:
            self._control.serve(operations)
        if self._listening is None:
            return
        from pipeline.service.monitor import Monitor

        monitor = self._opened.enter_context(Monitor(self._pipeline, operations, self._listening, self._token))
        _log.info("monitor: %s", monitor.address)

    def update(self) -> None:
        """Send the messages to systemd that are due; call it several times a second."""
        self._systemd.update(ready=lambda: self._health.unready() is None, healthy=lambda: not self._health.stalled())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._systemd.stopping()
        self._opened.close()
