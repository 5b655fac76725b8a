"""The messages on the wire. Each is one ZeroMQ frame: topic, a NUL byte, msgpack.

Topics: `poses/<source>` carries one `PoseMessage` for every processed frame. `skeletons/<source>` carries one
`SkeletonMessage` at the start, whenever the prompts change, and for every late joiner. `status/<source>` carries one
`StatusMessage` at a steady beat. A message has one part, so that a subscriber may use CONFLATE. The NUL ends the topic:
`poses/cam1 NUL` subscribes to that source alone and not to `cam10`.

Coordinates are pixels of the source, x right, y down, after the file's rotation. (0, 0) is the outer corner of the
upper left pixel. A coordinate that does not exist is null, never NaN: a keypoint that was not measured is [null, null].
`numpy.array(track.keypoints, dtype=float)` turns null back into NaN. Positions are rounded to 0.001 px.

This module needs msgspec and nothing else. msgspec evaluates the types, so they are written for
Python 3.9: `Optional[int]`, not `int | None`.
"""

from typing import Any, Optional, Union

import msgspec

from xpose_client.errors import SchemaError, WireError

SCHEMA = 2
"""Version of these messages. It grows when a field changes its meaning; a new field alone does not change it."""

POSES = "poses/"
SKELETONS = "skeletons/"
STATUS = "status/"
SEPARATOR = b"\0"

Pair = tuple[Optional[float], Optional[float]]
Triple = tuple[Optional[float], Optional[float], Optional[float]]


class TrackMessage(msgspec.Struct, frozen=True, rename={"class_name": "class"}):
    """One object in one frame. Every list of keypoints has the order of the skeleton message of its class.

    Attributes:
        id: number of the track; never reused within a session.
        class_name: the prompted class; the key on the wire is `class`.
        score (0..1): sigmoid of the class logit; that of the last detection while the track coasts.
        box_xyxy (px): left, top, right, bottom.
        keypoints_raw (px): [x, y] as the network gave them in this frame; null where nothing was measured.
        keypoints (px): [x, y] smoothed.
        keypoints_predicted (px): [x, y] predicted for the moment of publishing.
        keypoints_velocity (px/s): [x, y]; null where unknown, as in stills.
        keypoints_covariance (px²): [xx, xy, yy] of the position; null where unknown, as in stills.
        keypoints_measured: per keypoint, whether this frame's detection updated it; false while it coasts.
        measured: whether this frame has a detection of the track; false while the track coasts.
    """

    id: int
    class_name: str
    score: float
    box_xyxy: tuple[float, float, float, float]
    keypoints_raw: list[Pair]
    keypoints: list[Pair]
    keypoints_predicted: list[Pair]
    keypoints_velocity: list[Pair]
    keypoints_covariance: list[Triple]
    keypoints_measured: list[bool]
    measured: bool


class PoseMessage(msgspec.Struct, frozen=True):
    """All tracks of one frame. There is one message for every processed frame, also when `tracks` is empty.

    Attributes:
        schema: version of this format.
        session (ns since 1970): start of the publishing process, or of the source if it was added later under a name
            that was used before; a new value means that sequence numbers start again.
        seq: 0, 1, 2, … per session and source, without gaps; a gap seen by a subscriber is a lost message.
        source: name of the source. A byte of a file name that is not UTF-8 is written as \\xNN, also in `file`.
        frame: index of the frame in its source; in a live source, a gap means that frames were dropped.
        file: file name of a still; null for video.
        pts_s (s): presentation time of the source, continuous; null for stills.
        source_pts_s (s): the source's own time stamp if `pts_s` had to be corrected; null otherwise.
        host: boot id of the machine that took the monotonic times; compare them only on the machine with this id.
        capture_clock: origin of the capture times: "sender" (the sender's own clock), "stream" (the stream's clock,
            corrected for the link's delay), "receipt" (the moment of receipt), "file" (the moment of reading).
        capture_unix_ns (ns since 1970): wall clock at capture.
        capture_monotonic_ns (ns): the same moment on the monotonic clock of `host`.
        capture_uncertainty_s (s): possible error of the capture times; null where unknown.
        lag_s (s): delay that the link has built up; the capture times are corrected for it; null where unknown.
        publish_unix_ns (ns since 1970): wall clock when the message was made.
        width (px): width of the frame; 0 for a still that could not be read.
        height (px): height of the frame; 0 for a still that could not be read.
        prompt_id: grows by one with each change of prompts; the skeleton message with this id names the keypoints.
        tracks: the objects, in the order of their ids.
        replay: true if the message comes from a recording; a robot should not act on it.
    """

    schema: int
    session: int
    seq: int
    source: str
    frame: int
    file: Optional[str]
    pts_s: Optional[float]
    source_pts_s: Optional[float]
    host: str
    capture_clock: str
    capture_unix_ns: int
    capture_monotonic_ns: int
    capture_uncertainty_s: Optional[float]
    lag_s: Optional[float]
    publish_unix_ns: int
    width: int
    height: int
    prompt_id: int
    tracks: list[TrackMessage]
    replay: bool = False


class SkeletonClass(msgspec.Struct, frozen=True):
    """The keypoints of one prompted class.

    Attributes:
        name: the prompted class.
        keypoints: names of the keypoints, in the order of every list of keypoints in a track.
        edges: pairs of indices into `keypoints` that are joined by a line.
    """

    name: str
    keypoints: list[str]
    edges: list[tuple[int, int]]


class SkeletonMessage(msgspec.Struct, frozen=True):
    """Names the keypoints of the pose messages with the same session, source and prompt_id.

    Attributes:
        schema: version of this format.
        session (ns since 1970): as in the pose messages.
        source: name of the source.
        prompt_id: grows by one with each change of prompts.
        publish_unix_ns (ns since 1970): wall clock when the message was made.
        classes: the prompted classes.
        replay: true if the message comes from a recording.
    """

    schema: int
    session: int
    source: str
    prompt_id: int
    publish_unix_ns: int
    classes: list[SkeletonClass]
    replay: bool = False


class StatusMessage(msgspec.Struct, frozen=True):
    """The state of one source. It comes at a steady beat, so that silence means that the publisher is gone.

    Attributes:
        schema: version of this format.
        session (ns since 1970): as in the pose messages.
        host: boot id of the publishing machine; `publish_monotonic_ns` is a time of its monotonic clock.
        source: name of the source.
        state: "connecting", "live", "late" (the newest picture is older than the age budget), "lost" (no picture comes)
            or "ended".
        since_unix_ns (ns since 1970): wall clock when the state began.
        publish_unix_ns (ns since 1970): wall clock when the message was made.
        publish_monotonic_ns (ns): the same moment on the monotonic clock of `host`. From it, a client that reads late
            knows how long the publisher has been silent, even if a wall clock was changed.
        frame_rate (frames/s): rate of the received frames in the last seconds.
        lag_s (s): delay that the link has built up; null where unknown.
        drops: frames dropped since the start, by reason.
        last_error: the last error, one sentence; null if there was none.
        last_capture_unix_ns (ns since 1970): capture time of the newest picture; null before the first.
        capture_clock: origin of the capture times, as in the pose messages.
        clock_offset_s (s): constant error of the camera's clock; positive if it is ahead; null where unknown.
        beat_s (s): longest time until the next status message.
        reconnects: how often a lost connection was opened again since the start.
        replay: true if the message comes from a recording.
    """

    schema: int
    session: int
    host: str
    source: str
    state: str
    since_unix_ns: int
    publish_unix_ns: int
    publish_monotonic_ns: int
    frame_rate: float
    lag_s: Optional[float]
    drops: dict[str, int]
    last_error: Optional[str]
    last_capture_unix_ns: Optional[int]
    capture_clock: str
    clock_offset_s: Optional[float]
    beat_s: float
    reconnects: int = 0
    replay: bool = False


Message = Union[PoseMessage, SkeletonMessage, StatusMessage]

TOPICS: dict[str, type[msgspec.Struct]] = {POSES: PoseMessage, SKELETONS: SkeletonMessage, STATUS: StatusMessage}
"""The message type of each topic; the topic is the key and the name of the source."""


class _Version(msgspec.Struct):
    """The one field that every schema has."""

    schema: int


_ENCODER = msgspec.msgpack.Encoder()
_DECODERS: dict[str, "msgspec.msgpack.Decoder[Any]"] = {
    prefix: msgspec.msgpack.Decoder(kind) for prefix, kind in TOPICS.items()
}
_VERSION_DECODER = msgspec.msgpack.Decoder(_Version)


def topic_of(message: Message) -> str:
    """Return `poses/<source>`, `skeletons/<source>` or `status/<source>`."""
    prefix = next(prefix for prefix, kind in TOPICS.items() if isinstance(message, kind))
    return prefix + message.source


def encode(message: Message) -> bytes:
    """Return the one ZeroMQ frame of `message`: topic, NUL, msgpack."""
    return topic_of(message).encode() + SEPARATOR + encode_body(message)


def encode_body(message: Message) -> bytes:
    """Return what `encode` puts behind the NUL: msgpack."""
    return _ENCODER.encode(message)


def decode(data: bytes) -> Message:
    """Undo `encode`. Unknown fields are ignored.

    Raises:
        SchemaError: the message is of another schema.
        WireError: no NUL, an unknown topic, or a body that is not the message of its topic.
    """
    head, separator, body = data.partition(SEPARATOR)
    topic = head.decode(errors="replace")
    decoder = _DECODERS.get(topic.partition("/")[0] + "/")
    if not separator or decoder is None:
        raise WireError(f"expected a topic such as '{POSES}cam1' and a NUL byte, got {bytes(data[:40])!r}")
    try:
        message: Message = decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        _check_schema(topic, body)
        raise WireError(f"the body of a message on {topic!r} is not of schema {SCHEMA}: {error}") from error
    if message.schema != SCHEMA:
        _check_schema(topic, body)
    return message


def to_json_line(message: Message) -> bytes:
    """Return the message as one line of JSON with its newline; the keys are those of the wire."""
    return msgspec.json.encode(message) + b"\n"


def _check_schema(topic: str, body: bytes) -> None:
    """Name the other schema, where `body` says that it has one."""
    try:
        schema = _VERSION_DECODER.decode(body).schema
    except (msgspec.DecodeError, UnicodeDecodeError):
        return
    if schema != SCHEMA:
        raise SchemaError(
            f"message of schema {schema} on {topic!r}, but this client reads schema {SCHEMA}: "
            "install the version of xpose-client that belongs to the publisher"
        )
