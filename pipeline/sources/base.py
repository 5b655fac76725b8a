"""What every source is: an iterator of frames with a name, that can be stopped from another thread."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Self

from pipeline.errors import ConfigError
from pipeline.frames import Frame


@dataclass(frozen=True)
class SourceConfig:
    """How sources are opened.

    Attributes:
        name: name of the source in messages and topics; "" takes it from the address.
        decode_threads: threads of the video decoder; 0 lets FFmpeg take one per core.
        open_timeout_s: longest wait for an address or a device to deliver its first packets.
        read_timeout_s: longest silence of a live source before it counts as lost; FFmpeg may take twice this to notice.
        reconnect_first_s: wait before the first attempt to reconnect; it doubles with each further one, …
        reconnect_longest_s: … up to this.
        reconnect_give_up_s: time without a frame after which a lost live source is given up.
        rtsp_transport: "tcp" loses nothing on the way; "udp" is for cameras that have no TCP.
        options: further FFmpeg options for opening live sources, such as {"video_size": "1280x720"} for a camera.
    """

    name: str = ""
    decode_threads: int = 0
    open_timeout_s: float = 10.0
    read_timeout_s: float = 5.0
    reconnect_first_s: float = 0.5
    reconnect_longest_s: float = 8.0
    reconnect_give_up_s: float = 60.0
    rtsp_transport: Literal["tcp", "udp"] = "tcp"
    options: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.decode_threads < 0:
            raise ConfigError(f"source.decode_threads is {self.decode_threads}: give 0 (one per core) or more")
        for key in ("open_timeout_s", "read_timeout_s", "reconnect_first_s", "reconnect_longest_s"):
            if not getattr(self, key) > 0:
                raise ConfigError(f"source.{key} is {getattr(self, key)}: give a time above 0 s")
        if not self.reconnect_give_up_s >= 0:
            raise ConfigError(
                f"source.reconnect_give_up_s is {self.reconnect_give_up_s}: give 0 s (never retry) or more"
            )
        if self.rtsp_transport not in ("tcp", "udp"):
            raise ConfigError(f"source.rtsp_transport is {self.rtsp_transport!r}: give tcp or udp")


class Source(ABC):
    """An iterator of frames; iterate it once, in one thread, inside `with`.

    Attributes:
        name: the same in all its frames.
        live: True where the newest frame wins; False where no frame may be lost.
        frame_count: number of frames as far as it is known beforehand. Containers estimate or lie: good enough for a
            progress bar and for nothing else. None where there is no end in sight.
        fps: nominal frames per second; None where there is none.
    """

    name: str
    live: bool = False
    frame_count: int | None = None
    fps: float | None = None

    def __init__(self, name: str) -> None:
        self.name = name
        self._stopped = threading.Event()

    @abstractmethod
    def __iter__(self) -> Iterator[Frame]:
        """Yield the frames in order.

        Raises:
            SourceError: the source broke off (`partial` is True: the frames before were good), or some of it could
                not be read (raised after everything that could be read was yielded).
        """

    @abstractmethod
    def close(self) -> None:
        """Release what the source holds; call it from the thread that iterates. Idempotent."""

    def stop(self) -> None:
        """End the iteration before its next frame. For any thread; a live source that waits wakes at once."""
        self._stopped.set()

    def drops(self) -> Mapping[str, int]:
        """Frames that were decoded or arrived but not yielded, by reason; only live sources have any."""
        return {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
