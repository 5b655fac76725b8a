"""The messages on the wire: one ZeroMQ frame each, `topic NUL msgpack`.

Topics: `poses/<source>` carries one `PoseMessage` for every decoded frame, `skeletons/<source>` one `SkeletonMessage`
at the start, whenever the prompts change, and for every late joiner. One part per message, so that a subscriber may use
CONFLATE; the NUL after the topic makes `poses/cam1 NUL` a subscription to that source alone and not to `cam10`.

Coordinates are pixels of the source, x right, y down, after the file's rotation; (0, 0) is the outer corner of the
upper left pixel. A coordinate that does not exist is null, never NaN: a keypoint that was not measured is [null, null].
`numpy.array(track.keypoints, dtype=float)` turns null back into NaN. Positions are rounded to 0.001 px.

Needs msgspec and nothing else.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from xpose_client.errors import WireError

SCHEMA = 1
"""Version of these messages; grows when a field changes its meaning. New fields alone do not change it."""

POSES = "poses/"
SKELETONS = "skeletons/"
SEPARATOR = b"\0"

Pair = tuple[float | None, float | None]
Triple = tuple[float | None, float | None, float | None]


class TrackMessage(msgspec.Struct, frozen=True, rename={"class_name": "class"}):
    """One object in one frame; every list of keypoints has the order of the skeleton message of its class.

    Attributes:
        id: number of the track, never reused within a session.
        class_name: the prompted class; the key on the wire is `class`.
        score: sigmoid of the class logit, 0..1; of the last detection while the track coasts.
        box_xyxy: left, top, right, bottom; px.
        keypoints_raw: [x, y] as the network gave them in this frame; null where nothing was measured.
        keypoints: [x, y] smoothed.
        keypoints_predicted: [x, y] predicted to the moment of publishing.
        keypoints_velocity: [x, y] in px/s; null where unknown, as in stills.
        keypoints_covariance: [xx, xy, yy] of the position, px squared; null where unknown, as in stills.
        keypoints_measured: per keypoint, whether this frame's detection moved it; False where it coasts.
        measured: whether this frame's detection belongs to the track; False while it coasts.
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
    """All tracks of one frame; there is one for every frame, also when `tracks` is empty.

    Attributes:
        schema: version of this format.
        session: start of the publishing process, ns since 1970; another value means that sequence numbers start again.
        seq: 0, 1, 2, … per session and source, without gaps: a gap seen by a subscriber is a lost message.
        source: name of the source.
        frame: index of the frame in its source; gaps of live sources are frames dropped for newer ones.
        file: file name of a still; null for video.
        pts_s: presentation time of the source, seconds; null for stills.
        capture_unix_ns: wall clock when the frame was received (live) or read (file), ns since 1970.
        capture_monotonic_ns: the same moment on the monotonic clock of the publishing machine; compare it only there.
        publish_unix_ns: wall clock when the message was made.
        width, height: size of the frame in px; 0 for a still that could not be read.
        prompt_id: grows by one with each change of prompts; the skeleton message with this id tells the keypoints.
        tracks: the objects, by id.
    """

    schema: int
    session: int
    seq: int
    source: str
    frame: int
    file: str | None
    pts_s: float | None
    capture_unix_ns: int
    capture_monotonic_ns: int
    publish_unix_ns: int
    width: int
    height: int
    prompt_id: int
    tracks: list[TrackMessage]


class SkeletonClass(msgspec.Struct, frozen=True):
    """Keypoint names of one prompted class, and which of them are joined: pairs of indices into `keypoints`."""

    name: str
    keypoints: list[str]
    edges: list[tuple[int, int]]


class SkeletonMessage(msgspec.Struct, frozen=True):
    """What the keypoints of the pose messages with the same session, source and prompt_id are."""

    schema: int
    session: int
    source: str
    prompt_id: int
    publish_unix_ns: int
    classes: list[SkeletonClass]


Message = PoseMessage | SkeletonMessage


class Received(NamedTuple):
    """A message and the topic under which it came."""

    topic: str
    message: Message


_ENCODER = msgspec.msgpack.Encoder()
_POSE_DECODER = msgspec.msgpack.Decoder(PoseMessage)
_SKELETON_DECODER = msgspec.msgpack.Decoder(SkeletonMessage)


def topic_of(message: Message) -> str:
    """Return `poses/<source>` or `skeletons/<source>`."""
    return (POSES if isinstance(message, PoseMessage) else SKELETONS) + message.source


def encode(message: Message) -> bytes:
    """Return the one ZeroMQ frame of `message`: topic, NUL, msgpack."""
    return topic_of(message).encode() + SEPARATOR + _ENCODER.encode(message)


def decode(data: bytes) -> Received:
    """Undo `encode`; fields that are not known are ignored.

    Raises:
        WireError: no NUL, an unknown topic, another schema, or a body that is not the message of its topic.
    """
    head, separator, body = data.partition(SEPARATOR)
    topic = head.decode(errors="replace")
    if not separator or not topic.startswith((POSES, SKELETONS)):
        raise WireError(f"expected '{POSES}…' or '{SKELETONS}…' and a NUL byte, got {bytes(data[:40])!r}")
    try:
        message: Message = (_POSE_DECODER if topic.startswith(POSES) else _SKELETON_DECODER).decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise WireError(f"the body of a message on {topic!r} is not of schema {SCHEMA}: {error}") from error
    if message.schema != SCHEMA:
        raise WireError(f"message of schema {message.schema} on {topic!r}; this subscriber understands {SCHEMA}")
    return Received(topic, message)


def to_json_line(message: Message) -> bytes:
    """Return the message as one line of JSON with its newline, same keys as on the wire."""
    return msgspec.json.encode(message) + b"\n"
