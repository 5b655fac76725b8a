"""The recording of a pipeline: started and stopped while it runs, with what it needs to be repeated."""

from __future__ import annotations

import logging
import platform
import threading
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec

from pipeline.config import PipelineConfig
from pipeline.errors import PipelineError
from pipeline.flow.roster import Roster
from pipeline.outputs.recording import Recorder, RecordingReport
from pipeline.outputs.recording_part import Metadata
from pipeline.recording import CONFIG_METADATA, FORMAT, FORMAT_METADATA, VERSIONS_METADATA, WEIGHTS_METADATA
from pipeline.sources import Source
from xpose_client.host import boot_id
from xpose_client.messages import SCHEMA

_log = logging.getLogger(__name__)

_LIBRARIES = ("xpose-stream", "torch", "openvino", "av", "numpy", "scipy", "opencv-python", "pillow", "mcap")
_NOT_RECORDED = ("source.options", "control", "monitor")  # may contain secrets, and does not affect tracks


class Recordings:
    """At most one recording at a time. All methods are for any thread.

    Args:
        roster: the sources that are recorded.

    Attributes:
        finished: reports of the recordings that ended.
    """

    def __init__(self, config: PipelineConfig, roster: Roster) -> None:
        self.finished: list[RecordingReport] = []
        self._config = config
        self._roster = roster
        self._lock = threading.Lock()
        self._recorder: Recorder | None = None
        self._closed = False

    def current(self) -> Recorder | None:
        """The recording that is going on."""
        return self._recorder

    @property
    def report(self) -> RecordingReport | None:
        """How the recording that is going on is doing; None where there is none."""
        recorder = self._recorder
        return None if recorder is None else recorder.report

    def start(self, path: Path) -> None:
        """Record all sources and all messages from now on, into a new file; each source begins with a key frame.

        Raises:
            OutputError: the file cannot be created, or the extra `record` is not installed.
            PipelineError: a recording is going on, or the pipeline has ended.
        """
        with self._lock:
            if self._closed:
                raise PipelineError("the pipeline has ended; there is nothing to record")
            if self._recorder is not None:
                raise PipelineError("a recording is going on; stop it first")
            recorder = Recorder(path, self._config.record, recording_metadata(self._config))
            recorder.start()
            self._recorder = recorder
            for source in self._roster.sources():
                self.attach(source)

    def attach(self, source: Source) -> None:
        """Record a source that was added, if a recording is going on."""
        recorder = self._recorder
        if recorder is not None:
            source.tap = recorder.tap(source.name, live=source.live)

    def close(self) -> None:
        """End the recording, if there is one, and allow no further ones."""
        with self._lock:
            self._closed = True
        self.stop()

    def stop(self) -> RecordingReport | None:
        """End the recording and return how it went; None where there is none."""
        with self._lock:
            recorder, self._recorder = self._recorder, None
            if recorder is None:
                return None
            for source in self._roster.sources():
                source.tap = None
            report = recorder.stop()
            self.finished.append(report)
            for name, count in sorted(report.dropped.items()):
                _log.warning("%s: %d packets and messages are not in the recording: the disk is slow", name, count)
            return report


def recording_metadata(config: PipelineConfig) -> Metadata:
    """Return what a recording says about the run: configuration, versions, and the hash of the weights."""
    versions = {"python": platform.python_version(), "wire_schema": str(SCHEMA)}
    for name in _LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        FORMAT_METADATA: {"format": str(FORMAT), "host": boot_id()},
        CONFIG_METADATA: flat_config(config),
        VERSIONS_METADATA: versions,
        WEIGHTS_METADATA: {
            "model": config.engine.model,
            "sha256": weights_hash(config.engine.model, config.engine.weights),
        },
    }


def flat_config(config: PipelineConfig) -> dict[str, str]:
    """Return every key with its path and its value as JSON, without what may be secret."""
    flat: dict[str, str] = {}

    def add(value: object, path: str) -> None:
        if path in _NOT_RECORDED:
            return
        if isinstance(value, dict):
            for key, item in value.items():
                add(item, f"{path}.{key}" if path else str(key))
        else:
            flat[path] = msgspec.json.encode(value).decode()

    add(msgspec.to_builtins(config), "")
    return flat


def differences(metadata: Mapping[str, Mapping[str, str]], config: PipelineConfig) -> str:
    """List the settings that differ from the recording's and can change its tracks; "" if none."""
    then, now = metadata.get(CONFIG_METADATA, {}), flat_config(config)
    changed = [
        f"{key}={then[key]} (now {now[key]})"
        for key in sorted(set(then) & set(now))
        if key.startswith(("engine.", "tracker.")) and then[key] != now[key]
    ]
    weights = metadata.get(WEIGHTS_METADATA, {}).get("sha256", "")
    if weights and weights != weights_hash(config.engine.model, config.engine.weights):
        changed.append("other weights")
    return ", ".join(changed)


def weights_hash(model: str, weights: str) -> str:
    """Return the SHA-256 of a model's weights file; "" for random weights, and where there is no file."""
    from engines.checkpoint import RANDOM, default_weights
    from engines.engine_cache import file_sha256
    from engines.folders import expanded

    path = expanded(weights) if weights else default_weights(model)
    if weights == RANDOM or not path.is_file():
        return ""
    return file_sha256(path)
