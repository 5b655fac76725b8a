"""The messages of a control socket: one answer to each request, both in msgpack with their kind in the key `type`.

The socket is a ROUTER, so that a plain REQ socket can ask. A request that is refused, or that cannot be read, is
answered with an `ErrorAnswer` and changes nothing. The answer to a change says from when on the change applies. Pose
messages carry the id of their prompts; other changes can be recognised by frame numbers and times.

This module needs msgspec and nothing else. msgspec evaluates the types, so they are written for
Python 3.9: `Optional[int]`, not `int | None`.
"""

from typing import Any, Optional, Union

import msgspec

from xpose_client.errors import WireError
from xpose_client.messages import StatusMessage

MOST_REQUEST_BYTES = 16 * 1024 * 1024
"""A connection that sends a larger message is closed."""


class StatusRequest(msgspec.Struct, frozen=True, tag="status"):
    """Ask how the pipeline is doing."""


class ExampleImage(msgspec.Struct, frozen=True):
    """An example image of one object.

    Attributes:
        image_name: file name of the image; its annotation is found by this name, and errors show it.
        image: content of the file: JPEG, PNG and so on.
        annotation_name: file name of the annotation; errors show it.
        annotation: content of a file with COCO's keypoint layout.
    """

    image_name: str
    image: bytes
    annotation_name: str
    annotation: bytes


class PromptsRequest(msgspec.Struct, frozen=True, tag="set_prompts"):
    """Look for something else in all sources.

    Attributes:
        prompt: class names, separated by commas; `name@list` chooses the keypoints of one class.
        keypoints: keypoint names, separated by commas, for all classes that are given without `@list`.
        prompt_from: how classes with examples are prompted: "example", "text" or "mean"; or two of them, for the
            object and for its keypoints, such as "text/example".
        examples: annotated images; each belongs to the class that its annotation names.
        lists: additional keypoint lists: the content of a .toml file, by the name that follows the @ in `prompt`.
    """

    prompt: str
    keypoints: Optional[str] = None
    prompt_from: str = "example"
    examples: list[ExampleImage] = []
    lists: dict[str, bytes] = {}


class AddRequest(msgspec.Struct, frozen=True, tag="add_source"):
    """Add a source.

    Attributes:
        address: a stream or a camera; a file only if it is in a folder that the pipeline's configuration allows.
        name: name of the source in topics; "" takes it from the address.
    """

    address: str
    name: str = ""


class RemoveRequest(msgspec.Struct, frozen=True, tag="remove_source"):
    """Remove a source.

    Attributes:
        source: name of the source.
    """

    source: str


class ThresholdsRequest(msgspec.Struct, frozen=True, tag="set_thresholds"):
    """Change which detections count. A threshold that is null stays as it is.

    Attributes:
        score (0..1): detections above this score are kept, and can start a track.
        doubtful (0..1): in videos, detections above this score continue a track.
        nms_iou (0..1): detections that overlap a better one by more than this IoU are dropped.
    """

    score: Optional[float] = None
    doubtful: Optional[float] = None
    nms_iou: Optional[float] = None


class SnapshotRequest(msgspec.Struct, frozen=True, tag="snapshot"):
    """Ask for the newest picture of a source with its poses.

    Attributes:
        source: name of the source.
    """

    source: str


class StartRecordingRequest(msgspec.Struct, frozen=True, tag="start_recording"):
    """Record all sources and messages.

    Attributes:
        name: name of the file in the folder that the pipeline's configuration allows; "" uses the present time.
    """

    name: str = ""


class StopRecordingRequest(msgspec.Struct, frozen=True, tag="stop_recording"):
    """End the recording."""


class StopRequest(msgspec.Struct, frozen=True, tag="stop"):
    """End the pipeline."""


Request = Union[
    StatusRequest,
    PromptsRequest,
    AddRequest,
    RemoveRequest,
    ThresholdsRequest,
    SnapshotRequest,
    StartRecordingRequest,
    StopRecordingRequest,
    StopRequest,
]


class ErrorAnswer(msgspec.Struct, frozen=True, tag="error"):
    """The request was refused and has changed nothing.

    Attributes:
        sentence: what was wrong, what is allowed, and what to do next; the same text as on the command line.
    """

    sentence: str


class PromptClassState(msgspec.Struct, frozen=True):
    """One class of the prompts.

    Attributes:
        name: the class.
        keypoints: names of its keypoints.
        edges: pairs of indices into `keypoints` that are joined by a line.
        examples: number of its example images.
        object_from: what the class is prompted from: "text", "example" or "mean".
        keypoints_from: the same for its keypoints.
    """

    name: str
    keypoints: list[str]
    edges: list[tuple[int, int]]
    examples: int
    object_from: str
    keypoints_from: str


class PromptState(msgspec.Struct, frozen=True):
    """The prompts: what the pipeline looks for.

    Attributes:
        id: the `prompt_id` of the messages made with these prompts.
        classes: the classes.
    """

    id: int
    classes: list[PromptClassState]


class Thresholds(msgspec.Struct, frozen=True):
    """Which detections count.

    Attributes:
        score (0..1): detections above this score are kept, and can start a track.
        doubtful (0..1): in videos, detections above this score continue a track.
        nms_iou (0..1): detections that overlap a better one by more than this IoU are dropped.
    """

    score: float
    doubtful: float
    nms_iou: float


class EngineState(msgspec.Struct, frozen=True):
    """The engine that runs.

    Attributes:
        model: "nano", "swin-t" or "swin-l".
        weights: file of the weights; "" for the model's own.
        backend: "tensorrt", "openvino" or "eager".
        device: "cpu", "cuda" and so on, as it was configured.
        precision: "fp32", "bf16" or "fp16".
        input_size (px): height and width of the network's input; null if it depends on each image.
        batch: images per call.
        in_flight: calls that run at the same time.
        max_classes: capacity for classes.
        max_keypoints: capacity for keypoints of a class.
    """

    model: str
    weights: str
    backend: str
    device: str
    precision: str
    input_size: Optional[tuple[int, int]]
    batch: int
    in_flight: int
    max_classes: int
    max_keypoints: int


class Categories(msgspec.Struct, frozen=True):
    """Class names that the model knows without a keypoint list.

    Attributes:
        names: the names.
        closed: true if text prompts of other classes are refused; otherwise any words can be used, with a keypoint
            list.
    """

    names: list[str]
    closed: bool


class SourceReport(msgspec.Struct, frozen=True):
    """One source.

    Attributes:
        live: true if older frames are dropped for the newest one; false if no frame is dropped.
        status: as on `status/<source>`, at the moment of the answer.
        published: frames published so far.
        age_s (s): age of its last frame when it was published; null before the first.
        last_frame: index of the last frame that was given to the engine; null before the first.
    """

    live: bool
    status: StatusMessage
    published: int
    age_s: Optional[float]
    last_frame: Optional[int]


class RecordingState(msgspec.Struct, frozen=True):
    """How a recording is doing, or how it went.

    Attributes:
        active: whether the recording still runs.
        files: paths of the files that were written, oldest first.
        packets: pictures that were recorded.
        dropped: pictures and messages that were not recorded, by source, because the disk was too slow.
        failure: one sentence if the recording ended because of an error; null otherwise.
    """

    active: bool
    files: list[str]
    packets: int
    dropped: dict[str, int]
    failure: Optional[str]


class StatusAnswer(msgspec.Struct, frozen=True, tag="status"):
    """How the pipeline is doing.

    Attributes:
        versions: versions of the program and of important libraries, by name.
        session (ns since 1970): start of the pipeline, as in the messages.
        uptime_s (s): time since the start.
        engine: the engine that runs.
        prompts: the present prompts.
        thresholds: which detections count.
        categories: class names that the model knows.
        sources: all sources.
        drops: frames of all sources that were dropped since the start, by reason.
        age_percentiles_s (s): age at publishing since the start, by percentile: "50", "95" and "99".
        stage_percentiles_s (s): own time per frame of each stage: median and 95th percentile.
        refused: attempts to connect without an allowed key, since the start; null if no keys are in use.
        recording: the recording that is running; null if there is none.
    """

    versions: dict[str, str]
    session: int
    uptime_s: float
    engine: EngineState
    prompts: PromptState
    thresholds: Thresholds
    categories: Categories
    sources: list[SourceReport]
    drops: dict[str, int]
    age_percentiles_s: dict[str, float]
    stage_percentiles_s: dict[str, tuple[float, float]]
    refused: Optional[int] = None
    recording: Optional[RecordingState] = None


class PromptsAnswer(msgspec.Struct, frozen=True, tag="prompts"):
    """The prompts were changed.

    Attributes:
        prompts: the new prompts; their id is in every message that was made with them.
        from_unix_ns (ns since 1970): frames given to the engine after this moment have the new prompts.
        after_frames: all frames after these have the new prompts, by source.
    """

    prompts: PromptState
    from_unix_ns: int
    after_frames: dict[str, int]


class ThresholdsAnswer(msgspec.Struct, frozen=True, tag="thresholds"):
    """The thresholds were changed.

    Attributes:
        thresholds: the new thresholds.
        from_unix_ns (ns since 1970): they apply to frames given to the engine after this moment.
        after_frames: they apply to all frames after these, by source.
    """

    thresholds: Thresholds
    from_unix_ns: int
    after_frames: dict[str, int]


class AddedAnswer(msgspec.Struct, frozen=True, tag="added"):
    """A source was added.

    Attributes:
        source: name of the source, also in its topics.
        from_unix_ns (ns since 1970): moment when it was added.
    """

    source: str
    from_unix_ns: int


class RemovedAnswer(msgspec.Struct, frozen=True, tag="removed"):
    """A source was removed.

    Attributes:
        source: name of the source. Its state is "ended".
        from_unix_ns (ns since 1970): no frame of the source is published after this moment.
    """

    source: str
    from_unix_ns: int


class SnapshotAnswer(msgspec.Struct, frozen=True, tag="snapshot"):
    """The newest picture of a source with its poses.

    Attributes:
        source: name of the source.
        frame: index of the frame.
        capture_unix_ns (ns since 1970): wall clock at the capture of the frame.
        jpeg: the picture.
    """

    source: str
    frame: int
    capture_unix_ns: int
    jpeg: bytes


class RecordingAnswer(msgspec.Struct, frozen=True, tag="recording"):
    """A recording was started or ended.

    Attributes:
        recording: the state of the recording.
        from_unix_ns (ns since 1970): moment of the change.
    """

    recording: RecordingState
    from_unix_ns: int


class StopAnswer(msgspec.Struct, frozen=True, tag="stopping"):
    """The pipeline ends. Frames that were given to the engine before are still published.

    Attributes:
        from_unix_ns (ns since 1970): no frame is given to the engine after this moment.
    """

    from_unix_ns: int


Answer = Union[
    ErrorAnswer,
    StatusAnswer,
    PromptsAnswer,
    ThresholdsAnswer,
    AddedAnswer,
    RemovedAnswer,
    SnapshotAnswer,
    RecordingAnswer,
    StopAnswer,
]

_ENCODER = msgspec.msgpack.Encoder()
_REQUESTS: "msgspec.msgpack.Decoder[Any]" = msgspec.msgpack.Decoder(Request)
_ANSWERS: "msgspec.msgpack.Decoder[Any]" = msgspec.msgpack.Decoder(Answer)


def encode(message: Union[Request, Answer]) -> bytes:
    """Return a request or an answer as msgpack."""
    return _ENCODER.encode(message)


def decode_request(data: bytes) -> Request:
    """Undo `encode` of a request.

    Raises:
        WireError: the data is not a request.
    """
    try:
        request: Request = _REQUESTS.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"this is not a request: {error}") from error
    return request


def decode_answer(data: bytes) -> Answer:
    """Undo `encode` of an answer.

    Raises:
        WireError: it is none.
    """
    try:
        answer: Answer = _ANSWERS.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"this is not an answer: {error}; the pipeline may be of another version") from error
    return answer
