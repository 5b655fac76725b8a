"""The records of a recording. Sources read them and outputs write them; this module opens no files and no threads.

A recording is an MCAP file. Its topics, with <source> as on the wire:

    video/<source>        foxglove.CompressedVideo: H.264 and H.265 in Annex B, VP9, AV1; one message per packet
    images/<source>       foxglove.CompressedImage: MJPEG and stills
    annotations/<source>  foxglove.ImageAnnotations: the poses, for viewers
    poses/<source>, skeletons/<source>, status/<source>      the messages of the wire, in msgpack
    streams/<source>      StreamRecord: a connection or a file begins; JSON, like all that follow
    frames/<source>       FrameRecord: the times of a decoded frame
    tracked/<source>      TrackedRecord: a frame that was inferred
    prompts               PromptsRecord: the prompts

The sequence number of a message on video/ or images/ is the number of its packet. The log time follows the machine's
monotonic clock, so changes of the wall clock do not affect it.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from pipeline.frames import CaptureClock, Frame
from xpose_client.messages import POSES, SKELETONS, STATUS, PoseMessage, SkeletonMessage, StatusMessage

if TYPE_CHECKING:
    from engines.prompts import PromptClass

FORMAT = 1
"""Version of recordings. It grows when a record changes its meaning; a new field alone does not change it."""

VIDEO = "video/"
IMAGES = "images/"
ANNOTATIONS = "annotations/"
STREAMS = "streams/"
FRAMES = "frames/"
TRACKED = "tracked/"
PROMPTS = "prompts"

FORMAT_METADATA = "xpose.recording"
CONFIG_METADATA = "xpose.configuration"
VERSIONS_METADATA = "xpose.versions"
WEIGHTS_METADATA = "xpose.weights"

VIDEO_FORMATS = {"h264": "h264", "hevc": "h265", "vp9": "vp9", "av1": "av1"}
"""Codecs that foxglove.CompressedVideo supports: FFmpeg's name, and the name in the schema."""
IMAGE_FORMATS = ("jpeg", "png", "webp", "avif")
"""Formats that foxglove.CompressedImage supports."""


class StreamRecord(msgspec.Struct, frozen=True, omit_defaults=False):
    """Describes the packets that follow, until the next record of this kind.

    Attributes:
        live: whether the source was live.
        format: format of the packets: h264, h265, vp9, av1, jpeg, png, webp, avif.
        reencoded: why the pictures were encoded again for the recording; "" if the source's own packets are recorded.
        frame_rate: nominal frames per second; null if there is none.
        colors: color_range, colorspace, color_primaries and color_trc, in FFmpeg's numbers.
    """

    live: bool
    format: str
    reencoded: str = ""
    frame_rate: float | None = None
    colors: tuple[int, int, int, int] | None = None


class FrameRecord(msgspec.Struct, frozen=True):
    """One decoded frame, as `pipeline.frames.Frame` describes it.

    Attributes:
        packet: number of the packet that holds the picture; null for a still that could not be read.
        width, height: size of the picture in pixels; 0 if unknown. The size in the packet may be a few pixels larger.
    """

    frame: int
    packet: int | None
    pts_s: float | None
    source_pts_s: float | None
    capture_unix_ns: int
    capture_monotonic_ns: int
    capture_clock: CaptureClock
    lag_s: float | None
    capture_uncertainty_s: float | None
    file: str | None = None
    still: bool = False
    error: str | None = None
    width: int = 0
    height: int = 0


class TrackedRecord(msgspec.Struct, frozen=True):
    """A frame that was inferred and tracked.

    Attributes:
        frame: index of the frame.
        prompt_id: id of the prompts with which it was inferred.
        age_s: time from its capture to the moment of `keypoints_predicted`; null for frames of files.
        published: whether a message was published; otherwise the frame was too old.
    """

    frame: int
    prompt_id: int
    age_s: float | None
    published: bool


class ExampleRecord(msgspec.Struct, frozen=True):
    """An example image of a class; its keypoints are in the order of the class."""

    name: str
    png_base64: str
    box_xyxy: tuple[float, float, float, float]
    keypoints: list[tuple[float, float, float]]


class ClassRecord(msgspec.Struct, frozen=True):
    """A prompted class, as `engines.prompts.PromptClass` describes it."""

    name: str
    skeleton: dict[str, Any]
    object_from: str
    keypoints_from: str
    examples: list[ExampleRecord]


class PromptsRecord(msgspec.Struct, frozen=True):
    """The prompts, with everything that is needed to use them again."""

    prompt_id: int
    classes: list[ClassRecord]


WIRE_TOPICS: dict[str, type[msgspec.Struct]] = {
    POSES: PoseMessage,
    SKELETONS: SkeletonMessage,
    STATUS: StatusMessage,
}
"""The type of each topic whose messages are msgpack, by the beginning of the topic."""

JSON_TOPICS: dict[str, type[msgspec.Struct]] = {
    STREAMS: StreamRecord,
    FRAMES: FrameRecord,
    TRACKED: TrackedRecord,
    PROMPTS: PromptsRecord,
}
"""The type of each topic whose messages are JSON, by the beginning of the topic."""


@dataclass(frozen=True, eq=False)
class Piece:
    """The item that a source gives to a recorder: a packet with the frame decoded from it, or one of the two.

    Attributes:
        stream: the connection or file that it belongs to; the same object for all of its pieces.
        data: the packet, in the format of the stream; None if the frame's picture is to be encoded, or if there is no
            picture.
        key: whether decoding can start here.
        frame: None if the packet gave no frame.
        unix_ns: wall clock at capture or, without a frame, at receipt.
    """

    stream: StreamRecord
    data: bytes | None
    key: bool
    frame: Frame | None
    unix_ns: int


class Tap(Protocol):
    """Takes the pieces of one source, on the thread that iterates over the source."""

    def __call__(self, piece: Piece) -> None: ...


def frame_record(frame: Frame, packet: int | None) -> FrameRecord:
    """Return the record of a frame whose picture is in `packet`. Does not convert the picture."""
    shape = getattr(frame.picture, "shape", (0, 0))
    return FrameRecord(
        frame=frame.index,
        packet=packet,
        pts_s=frame.pts_s,
        source_pts_s=frame.source_pts_s,
        capture_unix_ns=frame.capture_unix_ns,
        capture_monotonic_ns=frame.capture_monotonic_ns,
        capture_clock=frame.capture_clock,
        lag_s=frame.lag_s,
        capture_uncertainty_s=frame.capture_uncertainty_s,
        file=frame.file,
        still=frame.still,
        error=frame.error,
        width=shape[1],
        height=shape[0],
    )


def prompts_record(prompt_id: int, prompts: tuple[PromptClass, ...]) -> PromptsRecord:
    """Return the record of prompts, with the pixels of their example images."""
    import cv2
    import numpy as np

    classes = []
    for prompt in prompts:
        examples = []
        for example in prompt.examples:
            _, png = cv2.imencode(".png", np.ascontiguousarray(example.rgb_HW3[..., ::-1]))
            rows = [(float(x), float(y), float(v)) for x, y, v in example.keypoints_K3]
            encoded = base64.b64encode(png.tobytes()).decode()
            examples.append(ExampleRecord(example.name, encoded, example.box_xyxy, rows))
        skeleton = msgspec.to_builtins(prompt.skeleton)
        classes.append(ClassRecord(prompt.name, skeleton, prompt.object_from, prompt.keypoints_from, examples))
    return PromptsRecord(prompt_id, classes)


def prompts_of(record: PromptsRecord) -> tuple[PromptClass, ...]:
    """Undo `prompts_record`. This imports PyTorch.

    Raises:
        PromptError: the record does not describe prompts.
    """
    import numpy as np

    from engines.errors import PromptError
    from engines.prompts import PromptClass
    from engines.skeletons import Skeleton
    from engines.visual_prompts import Example, decode_rgb

    try:
        prompts = []
        for item in record.classes:
            skeleton = msgspec.convert(item.skeleton, Skeleton)
            examples = tuple(
                Example(
                    example.name,
                    skeleton,
                    decode_rgb(base64.b64decode(example.png_base64)),
                    example.box_xyxy,
                    np.array(example.keypoints, np.float32).reshape(-1, 3),
                )
                for example in item.examples
            )
            modalities: Any = (item.object_from, item.keypoints_from)
            prompts.append(PromptClass(item.name, skeleton, examples, *modalities))
    except (msgspec.ValidationError, ValueError) as error:
        raise PromptError(f"prompts {record.prompt_id} of the recording cannot be read: {error}") from error
    return tuple(prompts)
