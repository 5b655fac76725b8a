"""What the tests of recordings share: recordings to make, and readers that are not ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
from mcap.reader import SeekingReader

from pipeline.flow.pipeline import Pipeline
from tests.pipeline.videos import noise, write_video

PLAIN = {"bf": "0", "g": "10"}
X264 = {"sc_threshold": "0"}  # otherwise every picture of noise would be a key frame


def plain_video(path: Path, frames: int = 30, *, codec: str = "libx264", **more: Any) -> Path:
    """A video without B-frames, of pictures that differ, with a key frame in every ten."""
    options = PLAIN | (X264 if codec == "libx264" else {})
    return write_video(path, frames, codec=codec, codec_options=options, picture=noise, **more)


def messages_of(path: Path) -> dict[str, list[Any]]:
    """Everything in a recording by topic, read with the library `mcap`: JSON and msgpack decoded, protobuf as bytes."""
    found: dict[str, list[Any]] = {}
    with path.open("rb") as file:
        for _, channel, message in SeekingReader(file, validate_crcs=True).iter_messages(log_time_order=False):
            decode = {"json": json.loads, "msgpack": msgspec.msgpack.decode}.get(channel.message_encoding, bytes)
            found.setdefault(channel.topic, []).append(decode(message.data))
    return found


def metadata_of(path: Path) -> dict[str, dict[str, str]]:
    """The metadata of a recording by name, read with the library `mcap`."""
    with path.open("rb") as file:
        return {record.name: record.metadata for record in SeekingReader(file).iter_metadata()}


def without_times(message: dict[str, Any]) -> dict[str, Any]:
    """A pose message without what differs between two runs."""
    return {key: value for key, value in message.items() if key not in ("session", "publish_unix_ns", "replay", "seq")}


def stopped(pipeline: Pipeline, wait_s: float = 20.0) -> Any:
    """Stop a pipeline and return how it went, or fail."""
    pipeline.stop()
    assert pipeline.wait(wait_s), "the pipeline hangs"
    return pipeline.finish()
