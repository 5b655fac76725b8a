"""Questions to a running pipeline, and changes of it. Both the control socket and the monitor page use this module.

    operations = Operations(pipeline, describe(engine))
    operations.set_prompts("person,dog")
    stamp, pictures = operations.wait_for_newer(seen=0, timeout_s=1.0)

Each change either happens as a whole or raises and changes nothing. The errors are those of the command line.
"""

from __future__ import annotations

import dataclasses
import platform
import threading
import time
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import OutputError, PipelineError, SourceError
from pipeline.flow.metrics import Metrics
from pipeline.names import readable
from pipeline.outputs.picture import jpeg_of
from pipeline.outputs.recording import RecordingReport
from pipeline.prompting import prompts_of
from pipeline.sources import Source, open_source
from pipeline.sources.addresses import parse_address
from pipeline.sources.live import LiveSource
from xpose_client.control_messages import (
    AddedAnswer,
    Categories,
    EngineState,
    PromptClassState,
    PromptsAnswer,
    PromptState,
    RecordingAnswer,
    RecordingState,
    RemovedAnswer,
    SnapshotAnswer,
    SourceReport,
    StatusAnswer,
    StopAnswer,
    Thresholds,
    ThresholdsAnswer,
)

if TYPE_CHECKING:
    from engines.engine import Engine
    from engines.prompts import PromptClass
    from engines.skeletons import Skeleton
    from engines.visual_prompts import Example
    from pipeline.config import PipelineConfig
    from pipeline.flow.inference import Prompts
    from pipeline.flow.pipeline import Pipeline
    from pipeline.flow.publishing import Published

_LIBRARIES = ("xpose-stream", "torch", "openvino", "tensorrt", "av", "pyzmq")
_LONGEST_NAME = 200  # characters
_PERCENTILES = (50, 95, 99)


@dataclasses.dataclass(frozen=True)
class EngineFacts:
    """Facts about the engine that do not change.

    Attributes:
        state: the engine as in the answer to `status`.
        categories: classes that the model was trained on; None if it takes any words.
    """

    state: EngineState
    categories: Mapping[str, str] | None


def describe(engine: Engine) -> EngineFacts:
    """Return the facts of an engine."""
    config = engine.config
    state = EngineState(
        model=config.model,
        weights=config.weights,
        backend=engine.backend_name,
        device=config.device,
        precision=engine.precision,
        input_size=engine.input_hw,
        batch=engine.batch,
        in_flight=engine.in_flight,
        max_classes=config.max_classes,
        max_keypoints=config.max_keypoints,
    )
    return EngineFacts(state, engine.categories)


class Operations:
    """All operations on a running pipeline. All methods are for any thread.

    Args:
        pipeline: a pipeline that has started.
        engine: facts about its engine.
    """

    def __init__(self, pipeline: Pipeline, engine: EngineFacts) -> None:
        self._pipeline = pipeline
        self._engine = engine
        self._config = pipeline.config
        self._steering = threading.Lock()
        self._adding = threading.Lock()

    def status(self) -> StatusAnswer:
        """How the pipeline is doing at this moment."""
        pipeline, metrics, recording = self._pipeline, self._pipeline.metrics, self._pipeline.recordings.report
        return StatusAnswer(
            versions=_versions(),
            session=pipeline.session,
            uptime_s=(time.time_ns() - pipeline.session) / 1e9,
            engine=self._engine.state,
            prompts=_prompt_state(pipeline.prompts),
            thresholds=_thresholds(self._config),
            categories=self.categories(),
            sources=self._sources(),
            drops=dict(metrics.drops()),
            age_percentiles_s=_age_percentiles_s(metrics),
            stage_percentiles_s=_stage_percentiles_s(metrics),
            refused=None if pipeline.keys is None else pipeline.keys.refused,
            recording=None if recording is None else _recording_state(recording),
        )

    def categories(self) -> Categories:
        """Class names that a prompt can have without a keypoint list."""
        if self._engine.categories is not None:
            return Categories(list(self._engine.categories), closed=True)
        from engines.skeletons import skeletons_by_instance

        return Categories(sorted(skeletons_by_instance()), closed=False)

    def set_prompts(
        self,
        prompt: str,
        keypoints: str | None = None,
        examples: Sequence[Example] = (),
        prompt_from: str = "example",
        lists: Mapping[str, Skeleton] | None = None,
    ) -> PromptsAnswer:
        """Look for something else in all sources, from the next inferred frame on.

        Args:
            prompt: class names, separated by commas; `name@list` chooses the keypoints of one class.
            keypoints: keypoint names, separated by commas, for all classes that are given without `@list`.
            examples: annotated images; each belongs to the class that its annotation names.
            prompt_from: example, text or mean; or two of them, for the object and for its keypoints.
            lists: keypoint lists in addition to the published ones. Files of this machine are never read.
        Raises:
            PipelineError: `prompt_from` has another value.
            XPoseError: the prompt cannot be used, exceeds the engine, or the model was not trained on it.
        """
        own = lists or {}
        classes = prompts_of(
            self._config.engine, prompt, keypoints, examples, prompt_from, lambda name: _listed(name, own)
        )
        with self._steering:
            prompt_id = self._pipeline.set_prompts(classes)
            state = PromptState(prompt_id, [_class_state(prompt_class) for prompt_class in classes])
            return PromptsAnswer(state, time.time_ns(), self._pipeline.submitted_frames())

    def set_thresholds(
        self, score: float | None = None, doubtful: float | None = None, nms_iou: float | None = None
    ) -> ThresholdsAnswer:
        """Change which detections count, from the next inferred frame on. A threshold that is None stays as it is.

        Args:
            score: detections above this score are kept, and can start a track.
            doubtful: in videos, detections above this score continue a track.
            nms_iou: detections that overlap a better one by more than this IoU are dropped.
        Raises:
            XPoseError: a value is outside 0 to 1.
        """
        given = {"score_threshold": score, "doubtful_score": doubtful, "nms_iou": nms_iou}
        with self._steering:
            changed = {key: value for key, value in given.items() if value is not None}
            engine = dataclasses.replace(self._config.engine, **changed)  # type: ignore[arg-type]
            config = dataclasses.replace(self._config, engine=engine)
            self._pipeline.set_thresholds(config)
            self._config = config
            return ThresholdsAnswer(_thresholds(config), time.time_ns(), self._pipeline.submitted_frames())

    def add_source(self, address: str, name: str = "") -> AddedAnswer:
        """Add a source; the others are not disturbed.

        Args:
            address: a stream, a camera of this machine, or `testsrc://`; a file only if it is in a folder of
                `control.folders`.
            name: name of the source in topics; "" takes it from the address.
        Raises:
            SourceError: the address is malformed or not allowed, or there are too many sources.
            PipelineError: the pipeline has ended.
        """
        for text in (address, name):
            if not text.isprintable() or len(text) > _LONGEST_NAME * 10:
                raise SourceError(f"the address or name {text[:40]!r} is too long, or has characters that do not print")
        if len(name) > _LONGEST_NAME:
            raise SourceError(f"the name {name[:40]!r}… has {len(name)} characters; give {_LONGEST_NAME} or fewer")
        with self._adding:
            count, limit = len(self._pipeline.sources), self._config.control.max_sources
            if count >= limit:
                raise SourceError(f"there are {count} sources, allowed are {limit} (control.max_sources); remove one")
            added = self._pipeline.add(self._open(address, name))
            return AddedAnswer(added, time.time_ns())

    def remove_source(self, name: str) -> RemovedAnswer:
        """Remove a source: its tracks and topics end, and its state is "ended".

        Raises:
            PipelineError: there is no source of this name, or the run would end without it.
        """
        under_way = [source.name for source in self._pipeline.sources if source.status.view().state != "ended"]
        if under_way == [name] and not self._pipeline.hold:
            raise PipelineError(f"{name}: is the last source of this run, which would end without it; stop it instead")
        self._pipeline.remove(name)
        return RemovedAnswer(name, time.time_ns())

    def snapshot(self, name: str) -> SnapshotAnswer:
        """Return the newest picture of a source with its poses drawn on it, as JPEG.

        Raises:
            PipelineError: there is no source of this name, or it has no picture yet.
        """
        published = self.newest(name)
        if published is None:
            self._require_source(name)
            raise OutputError(f"{name}: no frame of this source has been published yet; try again when it is live")
        overlay = self._config.video.overlay
        jpeg = jpeg_of(published.frame, published.message, published.skeleton, overlay=overlay)
        return SnapshotAnswer(name, published.frame.index, published.frame.capture_unix_ns, jpeg)

    def newest(self, name: str) -> Published | None:
        """Return the newest published frame of a source with its message and skeletons; None if there is none.

        The frame is shared: its arrays are read-only.
        """
        return self._pipeline.newest_of(name)

    def wait_for_newer(self, seen: int, timeout_s: float) -> tuple[int, dict[str, Published]]:
        """Wait for newer published frames; see `pipeline.flow.newest.Newest.wait`. For a viewer's own thread."""
        return self._pipeline.newest.wait(seen, timeout_s)

    def start_recording(self, name: str = "") -> RecordingAnswer:
        """Record all sources and messages from now on, each source from its next key frame.

        Args:
            name: name of a file in `record.folder`; "" uses the present time.
        Raises:
            OutputError: the configuration allows no recordings, the name is not a file name, or the file cannot be
                created.
            PipelineError: a recording is going on, or the pipeline has ended.
        """
        folder = self._config.record.folder
        if not folder:
            raise OutputError("recordings by control are not allowed; name a folder for them in record.folder")
        name = name or time.strftime("%Y-%m-%d_%H-%M-%S.mcap")
        if Path(name).name != name or not name.isprintable() or len(name) > _LONGEST_NAME or name[0] == ".":
            raise OutputError(f"{name[:40]!r} is not a file name; give one without a folder, such as fault.mcap")
        path = Path(folder).expanduser() / name
        self._pipeline.recordings.start(path if path.suffix == ".mcap" else path.with_name(f"{name}.mcap"))
        report = self._pipeline.recordings.report
        if report is None:
            raise PipelineError("the recording has ended already")
        return RecordingAnswer(_recording_state(report), time.time_ns())

    def stop_recording(self) -> RecordingAnswer:
        """End the recording and return its state. This also ends a recording that was started with the pipeline.

        Raises:
            PipelineError: there is none.
        """
        report = self._pipeline.recordings.stop()
        if report is None:
            raise PipelineError("there is no recording to end")
        return RecordingAnswer(_recording_state(report), time.time_ns())

    def stop(self) -> StopAnswer:
        """End the pipeline: no further frame is inferred, and frames in the engine or after it are still published."""
        self._pipeline.stop()
        return StopAnswer(time.time_ns())

    def _open(self, address: str, name: str) -> Source:
        config = dataclasses.replace(self._config.source, name=name or self._config.source.name)
        known = parse_address(address)
        if known.kind in ("live", "device", "playlist"):
            return LiveSource(known, config)
        if known.kind == "path":
            _require_in_folders(Path(known.url), self._config.control.folders, known.label)
        elif known.kind == "recording":
            raise SourceError(f"{known.label}: is a recording, and a running pipeline takes live addresses only")
        return open_source(address, config)

    def _require_source(self, name: str) -> None:
        names = [source.name for source in self._pipeline.sources]
        if name not in names:
            known = ", ".join(names) or "none"
            raise PipelineError(f"{name}: there is no source of this name; the sources are {known}")

    def _sources(self) -> list[SourceReport]:
        metrics, last = self._pipeline.metrics, self._pipeline.submitted_frames()
        live = {source.name: source.live for source in self._pipeline.sources}
        return [
            SourceReport(
                live=live.get(status.source, False),
                status=status,
                published=metrics.frames_out("publish", status.source),
                age_s=metrics.age_s(status.source),
                last_frame=last.get(status.source),
            )
            for status in self._pipeline.statuses()
        ]


def _require_in_folders(path: Path, folders: Sequence[str], label: str) -> None:
    """Refuse a path outside of the folders. Symbolic links are followed first."""
    if not folders:
        raise SourceError(
            f"{label}: is a file, and a running pipeline takes live addresses only, unless its configuration names "
            "folders whose files may be opened (control.folders)"
        )
    if not any(path.resolve().is_relative_to(Path(folder).expanduser().resolve()) for folder in folders):
        raise SourceError(f"{label}: is outside of the folders whose files may be opened (control.folders)")


def _recording_state(report: RecordingReport) -> RecordingState:
    files = [readable(str(path)) for path in report.files]
    return RecordingState(report.active, files, report.packets, report.dropped, report.failure)


def _listed(name: str, own: Mapping[str, Skeleton]) -> Skeleton:
    """Return a keypoint list that came with the request, or a published one."""
    from engines.errors import PromptError, quoted
    from engines.skeletons import load_skeleton

    if name in own:
        return own[name]
    if name.endswith(".toml") or "/" in name:
        raise PromptError(
            f"{quoted(name)} is a file, and files of this machine are not read; send the list with the prompt"
        )
    return load_skeleton(name)


def _prompt_state(prompts: Prompts) -> PromptState:
    return PromptState(prompts.id, [_class_state(prompt_class) for prompt_class in prompts.classes])


def _class_state(prompt_class: PromptClass) -> PromptClassState:
    return PromptClassState(
        name=prompt_class.name,
        keypoints=list(prompt_class.skeleton.keypoints),
        edges=list(prompt_class.skeleton.edges),
        examples=len(prompt_class.examples),
        object_from=prompt_class.object_from,
        keypoints_from=prompt_class.keypoints_from,
    )


def _thresholds(config: PipelineConfig) -> Thresholds:
    from engines.scores import kept_of

    doubtful = config.engine_of_pipeline.score_threshold
    assert doubtful is not None
    nms_iou = kept_of(config.engine.model, config.engine.score_threshold, config.engine.nms_iou).nms_iou
    return Thresholds(config.threshold, doubtful, nms_iou)


def _age_percentiles_s(metrics: Metrics) -> dict[str, float]:
    ages = next((stage.took for stage in metrics.report() if stage.name == Metrics.CAPTURE_TO_PUBLISH), None)
    found = {str(percent): None if ages is None else ages.percentile_s(percent) for percent in _PERCENTILES}
    return {percent: age_s for percent, age_s in found.items() if age_s is not None}


def _stage_percentiles_s(metrics: Metrics) -> dict[str, tuple[float, float]]:
    found: dict[str, tuple[float, float]] = {}
    for stage in metrics.report():
        median_s, high_s = stage.took.percentile_s(50), stage.took.percentile_s(95)
        if stage.name != Metrics.CAPTURE_TO_PUBLISH and median_s is not None and high_s is not None:
            found[stage.name] = (median_s, high_s)
    return found


@cache
def _versions() -> dict[str, str]:
    """Return the versions of the program, of Python and of important libraries, if they are installed."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
