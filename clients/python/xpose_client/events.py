"""What a subscriber returns: received poses and changes of a source's state."""

import time
from typing import Union

import msgspec

from xpose_client.host import boot_id
from xpose_client.messages import PoseMessage, StatusMessage


class Received(msgspec.Struct, frozen=True):
    """A pose message and what is known about it on receipt.

    Attributes:
        message: the message.
        age_s (s): time from the capture of the frame to the receipt of the message.
        missed: messages of this source that were lost between the one before and this one.
        restarted: whether this is the first message after a restart of the publisher.
    """

    message: PoseMessage
    age_s: float
    missed: int
    restarted: bool

    def age_now_s(self) -> float:
        """Return the seconds from the capture of the frame until now."""
        return age_s(self.message)


class SourceState(msgspec.Struct, frozen=True):
    """A new state of a source.

    Attributes:
        source: name of the source.
        state: "connecting", "live", "late", "lost" or "ended" as in the status message, or "silent": no status message
            comes from the publisher any more.
        status: the last status message of the source.
    """

    source: str
    state: str
    status: StatusMessage


Event = Union[Received, SourceState]


def age_s(message: PoseMessage) -> float:
    """Return the seconds from the capture of the message's frame until now.

    On the machine that took the times, this is the difference of two monotonic times, which does not depend on changes
    of the wall clock. On another machine it is the difference of two wall clocks, with the error of their
    synchronisation.
    """
    if message.host == boot_id():
        return (time.monotonic_ns() - message.capture_monotonic_ns) / 1e9
    return (time.time_ns() - message.capture_unix_ns) / 1e9
