"""Settings of what reaches a running pipeline from outside."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.errors import ConfigError


@dataclass(frozen=True)
class ControlConfig:
    """What may be changed while the pipeline runs.

    Attributes:
        folders: files in these folders may be added as sources; none by default.
        max_sources: no source is added beyond this many.
    """

    folders: tuple[str, ...] = ()
    max_sources: int = 64

    def __post_init__(self) -> None:
        if self.max_sources < 1:
            raise ConfigError(f"control.max_sources is {self.max_sources}: give 1 source or more")
