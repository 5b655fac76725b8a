"""Messages with a default for every field. Python 3.9, because the client's own tests use it too."""

import time
from typing import Any, Optional

import msgspec

from xpose_client.host import boot_id
from xpose_client.messages import (
    SCHEMA,
    PoseMessage,
    SkeletonClass,
    SkeletonMessage,
    StatusMessage,
    TrackMessage,
)


def pose(seq: int = 0, source: str = "cam1", tracks: Optional[list[TrackMessage]] = None, **fields: Any) -> PoseMessage:
    """Return the message of a frame that was captured just now on this machine; `fields` replace others."""
    now_unix_ns = time.time_ns()
    message = PoseMessage(
        schema=SCHEMA,
        session=1,
        seq=seq,
        source=source,
        frame=seq,
        file=None,
        pts_s=seq / 30,
        source_pts_s=None,
        host=boot_id(),
        capture_clock="receipt",
        capture_unix_ns=now_unix_ns,
        capture_monotonic_ns=time.monotonic_ns(),
        capture_uncertainty_s=None,
        lag_s=None,
        publish_unix_ns=now_unix_ns,
        width=64,
        height=48,
        prompt_id=1,
        tracks=tracks or [],
    )
    return msgspec.structs.replace(message, **fields)


def skeleton(source: str = "cam1", **fields: Any) -> SkeletonMessage:
    """Return the skeleton message of one class with one keypoint."""
    message = SkeletonMessage(SCHEMA, 1, source, 1, time.time_ns(), [SkeletonClass("mug", ["rim"], [])])
    return msgspec.structs.replace(message, **fields)


def status(source: str = "cam1", state: str = "live", **fields: Any) -> StatusMessage:
    """Return the status of a source that is in `state` since just now."""
    now_unix_ns = time.time_ns()
    message = StatusMessage(
        schema=SCHEMA,
        session=1,
        host=boot_id(),
        source=source,
        state=state,
        since_unix_ns=now_unix_ns,
        publish_unix_ns=now_unix_ns,
        publish_monotonic_ns=time.monotonic_ns(),
        frame_rate=30.0,
        lag_s=None,
        drops={},
        last_error=None,
        last_capture_unix_ns=now_unix_ns,
        capture_clock="receipt",
        clock_offset_s=None,
        beat_s=0.5,
    )
    return msgspec.structs.replace(message, **fields)
