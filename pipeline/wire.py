"""The messages on the wire: one ZeroMQ frame each, `topic NUL msgpack`.

Topics: `poses/<source>` carries one `PoseMessage` for every decoded frame, `skeletons/<source>` one `SkeletonMessage`
at the start, whenever the prompts change, and for every late joiner. One part per message, so that a subscriber may use
CONFLATE; the NUL after the topic makes `poses/cam1 NUL` a subscription to that source alone and not to `cam10`.

Coordinates are pixels of the source, x right, y down, after the file's rotation; (0, 0) is the outer corner of the
upper left pixel. A coordinate that does not exist is null, never NaN: a keypoint that was not measured is [null, null].
`numpy.array(track.keypoints, dtype=float)` turns null back into NaN. Positions are rounded to 0.001 px.

Imports neither torch nor zmq: a robot needs this file, msgspec and numpy to understand a message.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from engines.prompts import PromptClass
    from pipeline.messages import FrameTracks
    from trackers import Tracks

SCHEMA = 1
"""Version of these messages; grows when a field changes its meaning. New fields alone do not change it."""

POSES = "poses/"
SKELETONS = "skeletons/"
SEPARATOR = b"\0"

Pair = tuple[float | None, float | None]
Triple = tuple[float | None, float | None, float | None]


class WireError(ValueError):
    """Bytes that are no message of this schema."""


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


def pose_message(tracked: FrameTracks, *, session: int, seq: int, publish_unix_ns: int) -> PoseMessage:
    """Make the message of one frame."""
    frame = tracked.frame
    prompts = tracked.detections.prompts
    return PoseMessage(
        schema=SCHEMA,
        session=session,
        seq=seq,
        source=frame.source,
        frame=frame.index,
        file=frame.file,
        pts_s=frame.pts_s,
        capture_unix_ns=frame.capture_unix_ns,
        capture_monotonic_ns=frame.capture_monotonic_ns,
        publish_unix_ns=publish_unix_ns,
        width=frame.width,
        height=frame.height,
        prompt_id=tracked.detections.prompt_id,
        tracks=_track_messages(tracked.tracks, prompts),
    )


def skeleton_message(
    prompts: tuple[PromptClass, ...], prompt_id: int, *, source: str, session: int, publish_unix_ns: int
) -> SkeletonMessage:
    """Make the message that names the keypoints of `prompts`."""
    classes = [
        SkeletonClass(prompt.name, list(prompt.skeleton.keypoints), list(prompt.skeleton.edges)) for prompt in prompts
    ]
    return SkeletonMessage(SCHEMA, session, source, prompt_id, publish_unix_ns, classes)


def _track_messages(tracks: Tracks, prompts: Sequence[PromptClass]) -> list[TrackMessage]:
    """Turn the rows of a frame's tracks into messages.

    Each array is rounded and converted once for the whole frame: a numpy call per track would take most of the time.
    A class with fewer keypoints than the arrays have columns leaves the rest out.
    """
    unknown_TK1 = np.isnan(tracks.keypoints_predicted_TK2[:, :, :1])  # never measured: no velocity, no covariance
    columns = zip(
        tracks.ids_T.tolist(),
        [prompts[index] for index in tracks.classes_T.tolist()],
        tracks.scores_T.round(5).tolist(),
        tracks.boxes_T4.round(3).tolist(),
        tracks.measured_T.tolist(),
        _rows(tracks.keypoints_raw_TK2),
        _rows(tracks.keypoints_TK2),
        _rows(tracks.keypoints_predicted_TK2),
        _rows(np.where(unknown_TK1, np.nan, tracks.velocity_TK2)),
        _rows(np.where(unknown_TK1, np.nan, tracks.covariance_TK3)),
        tracks.measured_TK.tolist(),
        strict=True,
    )
    messages = []
    for track_id, prompt, score, box, measured, raw, smoothed, predicted, velocity, covariance, measured_K in columns:
        count = len(prompt.skeleton.keypoints)
        messages.append(
            TrackMessage(
                id=track_id,
                class_name=prompt.name,
                score=score,
                box_xyxy=tuple(box),
                keypoints_raw=list(map(tuple, raw[:count])),
                keypoints=list(map(tuple, smoothed[:count])),
                keypoints_predicted=list(map(tuple, predicted[:count])),
                keypoints_velocity=list(map(tuple, velocity[:count])),
                keypoints_covariance=list(map(tuple, covariance[:count])),
                keypoints_measured=measured_K[:count],
                measured=measured,
            )
        )
    return messages


def _rows(numbers_TKD: NDArray[np.float64]) -> list[Any]:
    """Round to 0.001 and turn what is not finite into None: msgpack could carry NaN, JSON cannot."""
    rounded_TKD = numbers_TKD.round(3)
    finite_TKD = np.isfinite(rounded_TKD)
    if finite_TKD.all():
        return list(rounded_TKD.tolist())
    values_TKD = rounded_TKD.astype(object)
    values_TKD[~finite_TKD] = None
    return list(values_TKD.tolist())
