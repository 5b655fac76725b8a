"""The base class of all sources: a name, and an iterator of frames that any thread can ask to end."""

from __future__ import annotations

import math
import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from pipeline.errors import ConfigError
from pipeline.frames import Frame
from pipeline.names import readable
from pipeline.recording import Tap
from pipeline.sources.clock import ClockChoice
from pipeline.sources.status import SourceStatus


@dataclass(frozen=True)
class SourceConfig:
    """How sources are opened.

    Attributes:
        name: name of the source in messages and topics; "" takes it from the address.
        decode_threads: threads of the video decoder; 0 lets FFmpeg use one per core.
        rate: frames per second of files that state none, such as raw MJPEG. A stated rate has priority.
        open_timeout_s: longest wait for the first packets of an address or a device.
        read_timeout_s: longest silence of a live source before it counts as lost. FFmpeg may need twice this time.
        reconnect_first_s: first back-off in seconds; it doubles on each retry.
        reconnect_longest_s: longest back-off in seconds. A camera that is back is noticed within this time.
        reconnect_give_up_s: after this long without a frame, a live source ends with an error; inf never gives up.
        required: if True, a live source that cannot be opened at the start is an error. Otherwise it is tried again.
        clock: origin of the capture times. "auto" uses the sender's own clock if the sender reports it and it is right,
            else the stream's clock, else the time of receipt.
        rtsp_transport: "tcp" loses no packets; "udp" is for cameras without TCP.
        keep_damaged: also take the pictures of a live source that the decoder calls damaged. Parts of them may be old.
        all_frames: also infer the frames of a recording that were not inferred when it was made.
        recorded_prompts: if True, a recording is inferred with its recorded prompts, otherwise with those of the run.
        options: more FFmpeg options for opening live sources, such as {"video_size": "1280x720"} for a camera.
    """

    name: str = ""
    decode_threads: int = 0
    rate: float = 25.0
    open_timeout_s: float = 10.0
    read_timeout_s: float = 5.0
    reconnect_first_s: float = 0.25
    reconnect_longest_s: float = 0.5
    reconnect_give_up_s: float = math.inf
    required: bool = False
    clock: ClockChoice = "auto"
    rtsp_transport: Literal["tcp", "udp"] = "tcp"
    keep_damaged: bool = False
    all_frames: bool = False
    recorded_prompts: bool = True
    options: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.decode_threads < 0:
            raise ConfigError(f"source.decode_threads is {self.decode_threads}: give 0 (one per core) or more")
        if not 0 < self.rate < math.inf:
            raise ConfigError(f"source.rate is {self.rate}: give frames per second above 0")
        for key in ("open_timeout_s", "read_timeout_s", "reconnect_first_s", "reconnect_longest_s"):
            if not getattr(self, key) > 0:
                raise ConfigError(f"source.{key} is {getattr(self, key)}: give a time above 0 s")
        if not self.reconnect_give_up_s >= 0:
            raise ConfigError(
                f"source.reconnect_give_up_s is {self.reconnect_give_up_s}: give 0 s (never retry) or more, or inf"
            )
        if self.clock not in get_args(ClockChoice):
            raise ConfigError(f"source.clock is {self.clock!r}: give {', '.join(get_args(ClockChoice))}")
        if self.rtsp_transport not in ("tcp", "udp"):
            raise ConfigError(f"source.rtsp_transport is {self.rtsp_transport!r}: give tcp or udp")


class Source(ABC):
    """Frames from one address. The constructor opens nothing: the iterating thread opens, reads and closes.

    Iterate a source once. If the iteration may end early, close its iterator so that the iterating thread frees the
    resources: `with contextlib.closing(iter(source)) as frames`.

    Attributes:
        name: the same in all its frames. A byte of a file name that is not UTF-8 is written as \\xNN.
        live: True if the newest frame has priority; False if no frame may be lost.
        frame_count: number of frames; None until the source is open, and for sources without a known end. Containers
            give estimates and even wrong values, so use it for progress bars only.
        fps: nominal frames per second; None until the source is open, and for sources without a rate.
        drops: number of pictures that never became a frame, by reason, such as "undecodable". The iterating thread
            counts.
        status: state of the source, for any thread.
        age_budget_s: if pictures of a live source are older than this, it catches up; 0 for never. Set it before the
            iteration.
        tap: takes the source's packets and frames for a recording; None while nobody records. For any thread to set.
        recorded: whether the frames come from a recording.
    """

    name: str
    live: bool = False
    frame_count: int | None = None
    fps: float | None = None
    age_budget_s: float = 0.0
    tap: Tap | None = None
    recorded: bool = False

    def __init__(self, name: str) -> None:
        self.name = readable(name)
        self.drops: Counter[str] = Counter()
        self.status = SourceStatus()
        self._stopped = threading.Event()

    @abstractmethod
    def __iter__(self) -> Generator[Frame]:
        """Open the source, yield its frames in order, and close it.

        Raises:
            SourceError: the source cannot be opened, or ended with an error, or parts of it could not be read (raised
                after all readable frames). `partial` is True if there were good frames before.
        """

    def stop(self) -> None:
        """Ask the iteration to end before its next frame, and return at once. For any thread.

        A read in progress ends by itself or by its time-out.
        """
        self._stopped.set()
