"""What is said on a control socket: one request in, one answer out, each msgpack with its kind in the key `type`.

Every answer of a change says from when on it holds. Messages already carry the id of their prompt, so the frames after
a change of prompts can be told by it; for other changes compare the frame numbers or the times.

This module needs msgspec and nothing else. msgspec evaluates the types, so they are written for
Python 3.9: `Optional[int]`, not `int | None`.
"""

from typing import Optional

import msgspec

from xpose_client.messages import StatusMessage


class PromptClassState(msgspec.Struct, frozen=True):
    """One class that is looked for.

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
    """What is looked for.

    Attributes:
        id: the `prompt_id` of the messages made with it.
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
        input_size (px): height and width of the network's input; null where it follows each image.
        batch: images per call.
        in_flight: calls at a time.
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
    """Class names that the model knows by themselves.

    Attributes:
        names: the names.
        closed: whether text prompts of other classes are refused; otherwise any words will do, with a keypoint list.
    """

    names: list[str]
    closed: bool


class SourceReport(msgspec.Struct, frozen=True):
    """One source.

    Attributes:
        live: whether its newest frame wins; otherwise no frame is lost.
        status: as on `status/<source>`, made at the moment of the answer.
        published: frames published so far.
        age_s (s): age of its last frame when it was published; null before the first.
        last_frame: index of the last frame that was given to the engine; null before the first.
    """

    live: bool
    status: StatusMessage
    published: int
    age_s: Optional[float]
    last_frame: Optional[int]


class StatusAnswer(msgspec.Struct, frozen=True, tag="status"):
    """How the pipeline is doing.

    Attributes:
        versions: of the program and of the libraries that matter, by name.
        session (ns since 1970): start of the pipeline, as in the messages.
        uptime_s (s): time since then.
        engine: the engine that runs.
        prompts: what is looked for.
        thresholds: which detections count.
        categories: class names that the model knows.
        sources: every source that is there.
        drops: frames dropped since the start, by reason, of all sources.
        age_percentiles_s (s): age at publishing since the start, by percentile: "50", "95" and "99".
        stage_percentiles_s (s): own time per frame of each stage: median and 95th percentile.
        refused: attempts to connect without an allowed key, since the start; null where no keys are in use.
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


class PromptsAnswer(msgspec.Struct, frozen=True, tag="prompts"):
    """The prompts were changed.

    Attributes:
        prompts: what is looked for now; its id is in every message that was made with it.
        from_unix_ns (ns since 1970): frames given to the engine after this moment have the new prompts.
        after_frames: all frames after these have the new prompts, by source.
    """

    prompts: PromptState
    from_unix_ns: int
    after_frames: dict[str, int]


class ThresholdsAnswer(msgspec.Struct, frozen=True, tag="thresholds"):
    """The thresholds were changed.

    Attributes:
        thresholds: which detections count now.
        from_unix_ns (ns since 1970): they hold for frames given to the engine after this moment.
        after_frames: they hold for all frames after these, by source.
    """

    thresholds: Thresholds
    from_unix_ns: int
    after_frames: dict[str, int]


class AddedAnswer(msgspec.Struct, frozen=True, tag="added"):
    """A source was added.

    Attributes:
        source: its name, which its topics have.
        from_unix_ns (ns since 1970): moment when it was added.
    """

    source: str
    from_unix_ns: int


class RemovedAnswer(msgspec.Struct, frozen=True, tag="removed"):
    """A source was removed.

    Attributes:
        source: its name. Its state is "ended".
        from_unix_ns (ns since 1970): nothing that it captured is published after this moment.
    """

    source: str
    from_unix_ns: int


class SnapshotAnswer(msgspec.Struct, frozen=True, tag="snapshot"):
    """The newest picture of a source with its poses.

    Attributes:
        source: name of the source.
        frame: index of the frame.
        capture_unix_ns (ns since 1970): wall clock at its capture.
        jpeg: the picture.
    """

    source: str
    frame: int
    capture_unix_ns: int
    jpeg: bytes


class StopAnswer(msgspec.Struct, frozen=True, tag="stopping"):
    """The pipeline ends; what is under way still goes through.

    Attributes:
        from_unix_ns (ns since 1970): no frame is given to the engine after this moment.
    """

    from_unix_ns: int
