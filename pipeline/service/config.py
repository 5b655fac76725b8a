"""Settings of the control socket."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.errors import ConfigError
from pipeline.outputs.endpoints import check_endpoint, require_local

OPTION = "--control"


@dataclass(frozen=True)
class ControlConfig:
    """The control socket, and limits for the changes that it allows.

    Attributes:
        endpoint: ZeroMQ address of the control socket, such as ipc:///run/xpose/control; "" for none.
        folders: files in these folders may be added as sources; none by default.
        max_sources: largest number of sources; a further one is not added.
    """

    endpoint: str = ""
    folders: tuple[str, ...] = ()
    max_sources: int = 64

    def __post_init__(self) -> None:
        if self.endpoint:
            check_endpoint(OPTION, self.endpoint)
        if self.max_sources < 1:
            raise ConfigError(f"control.max_sources is {self.max_sources}: give 1 source or more")

    def require_keys(self) -> None:
        """Refuse an address that other machines can reach. For a pipeline without keys.

        Raises:
            ConfigError: other machines can reach it.
        """
        if self.endpoint:
            require_local(OPTION, self.endpoint)
