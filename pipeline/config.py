"""All settings of a run: a preset file, and single values that override it.

    python run_pipeline.py run … --config live --set flow.age_budget_s=0.5 --set engine.threads=2

A preset is a TOML file with one table per section below. Absent keys keep their defaults, which are documented with
their component. There is no inheritance between files. An unknown key is an error that names its path and the nearest
key.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeGuard, get_args, get_origin, get_type_hints

import msgspec
import numpy as np
from numpy.typing import NDArray

from engines.config import EngineConfig
from engines.scores import ScoreScale, calibration_of, kept_of
from pipeline.errors import ConfigError
from pipeline.flow.stages import FlowConfig
from pipeline.flow.tracking import ScoreRules
from pipeline.keys import KeysConfig
from pipeline.outputs.publisher import PublishConfig
from pipeline.outputs.recording import RecordConfig
from pipeline.outputs.video import VideoConfig
from pipeline.service.access import MonitorConfig
from pipeline.service.config import ControlConfig
from pipeline.sources import SourceConfig
from trackers import StillTracker, Tracker, TrackerConfig

Table = dict[str, Any]

_PRESETS = Path(__file__).resolve().parent.parent / "configs"
_SMALLEST_SURE, _LARGEST_SURE = 0.01, 0.99  # a scale needs a score inside (0, 1)


@dataclass(frozen=True)
class PipelineConfig:
    """One section per component; each is documented beside it."""

    source: SourceConfig = field(default_factory=SourceConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)
    publish: PublishConfig = field(default_factory=PublishConfig)
    video: VideoConfig = field(default_factory=VideoConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    control: ControlConfig = field(default_factory=ControlConfig)
    record: RecordConfig = field(default_factory=RecordConfig)
    keys: KeysConfig = field(default_factory=KeysConfig)

    def __post_init__(self) -> None:
        if not self.keys.folder:
            self.publish.require_keys()
            self.control.require_keys()

    @property
    def is_steered(self) -> bool:
        """Whether sources can be added while the pipeline runs, by the control socket or on the monitor page."""
        return bool(self.control.endpoint or self.monitor.address)

    @property
    def threshold(self) -> float:
        """Detections above this score are kept, also if they continue no track."""
        return kept_of(self.engine.model, self.engine.score_threshold).score_threshold

    @property
    def engine_of_pipeline(self) -> EngineConfig:
        """The engine's settings in a pipeline: the engine also keeps doubtful detections, for the trackers."""
        doubtful = self.engine.doubtful_score
        if doubtful is None:
            doubtful = calibration_of(self.engine.model).doubtful_score
        return dataclasses.replace(self.engine, score_threshold=min(self.threshold, doubtful))

    @property
    def score_scale(self) -> ScoreScale:
        """The scale between the model's scores and the tracker's.

        A threshold that the user gives is also the minimum score to start a track, be it above or below the model's
        own: otherwise a lower threshold would find nothing more in videos.
        """
        given = self.engine.score_threshold
        sure = calibration_of(self.engine.model).sure_score if given is None else given
        return ScoreScale(min(max(sure, _SMALLEST_SURE), _LARGEST_SURE), self.tracker.association.new_score)

    @property
    def score_rules(self) -> ScoreRules:
        """How the trackers use scores."""
        scale = self.score_scale
        return ScoreRules(scale, float(scale.to_tracker(np.array(self.threshold, np.float32))))

    def make_tracker(self, still: bool, sigmas: Mapping[int, NDArray[np.float64]]) -> Tracker | StillTracker:
        """Make a tracker for one source, from the OKS sigmas [K] of each class index.

        Stills drop doubtful detections: a still has no track that they could continue.
        """
        if still:
            return StillTracker(self.score_rules.still_threshold)
        return Tracker(self.tracker, sigmas)


def load_config(
    preset: Path | None = None,
    overrides: Sequence[str] = (),
    flags: Mapping[str, tuple[str, object]] | None = None,
    *,
    batch: int = 1,
) -> PipelineConfig:
    """Read a preset and override single values.

    Args:
        preset: name of a shipped preset, or a TOML file; None for the defaults.
        overrides: `section.key=value` each, the value as in TOML; words need no quotes.
        flags: command-line options that stand for a key, such as {"--model": ("engine.model", "nano")}; those whose
            value is None are left out.
        batch: default of `engine.batch`, such as the number of sources.
    Raises:
        ConfigError: the file does not exist or is not TOML, a key is unknown, or a value has a wrong type or range.
    """
    table: Table = {}
    written: dict[str, str] = {}  # how the user wrote each key
    if preset is not None:
        table = _read(preset)
        _check_keys(table, PipelineConfig, str(preset), "")
        written = dict.fromkeys(_paths(table), str(preset))
    for override in overrides:
        path, value = _split(override)
        _put(table, path, value, f"--set {override}")
        written[path] = f"--set {override}"
    for option, (path, flag) in (flags or {}).items():
        if flag is not None:
            _put(table, path, flag, option)
            written[path] = f"{option} {flag}"
    table.setdefault("engine", {}).setdefault("batch", batch)
    try:
        return msgspec.convert(table, PipelineConfig)
    except (msgspec.ValidationError, ConfigError) as error:
        raise ConfigError(_sentence(str(error), written)) from error


def known_keys(config_type: type = PipelineConfig, prefix: str = "") -> list[str]:
    """Return every dotted path that a preset or `--set` may contain."""
    keys: list[str] = []
    for name, kind in _fields(config_type).items():
        keys += known_keys(kind, f"{prefix}{name}.") if _is_section(kind) else [prefix + name]
    return keys


def _file_of(preset: Path) -> Path:
    """Return the file of a shipped preset that is given by its name, such as "live"; else `preset` itself."""
    shipped = _PRESETS / f"{preset}.toml"
    if preset.suffix or len(preset.parts) != 1 or preset.exists():
        return preset
    if not shipped.exists():
        names = ", ".join(sorted(path.stem for path in _PRESETS.glob("*.toml")))
        raise ConfigError(f"--config {preset}: is not a preset; give one of {names}, or the path of a TOML file")
    return shipped


def _read(preset: Path) -> Table:
    try:
        return tomllib.loads(_file_of(preset).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--config {preset}: cannot be read ({error.strerror}); check the path") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {preset}: is not TOML: {error}") from error


def _split(override: str) -> tuple[str, object]:
    path, separator, text = override.partition("=")
    if not separator or not path.strip():
        raise ConfigError(f"--set {override}: give section.key=value, for example --set flow.age_budget_s=0.5")
    try:
        return path.strip(), tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return path.strip(), text


def _put(table: Table, path: str, value: object, label: str) -> None:
    *sections, key = path.split(".")
    nested: Table = {key: value}
    for section in reversed(sections):
        nested = {section: nested}
    _check_keys(nested, PipelineConfig, label, "")
    for section in sections:
        table = table.setdefault(section, {})
    table[key] = value


def _check_keys(table: Mapping[str, object], config_type: type, label: str, prefix: str) -> None:
    """Refuse a key that no config has, at any depth."""
    kinds = _fields(config_type)
    for key, value in table.items():
        if key not in kinds:
            raise ConfigError(f"{label}: unknown key {prefix}{key}{_nearest(prefix + key)}")
        if _is_section(kinds[key]):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{label}: {prefix}{key} is a section; give one of its keys, as in {prefix}{key}.…")
            _check_keys(value, kinds[key], label, f"{prefix}{key}.")


def _is_section(kind: object) -> TypeGuard[type]:
    return isinstance(kind, type) and dataclasses.is_dataclass(kind)


def _fields(config_type: type) -> dict[str, Any]:
    hints = get_type_hints(config_type)
    return {item.name: hints[item.name] for item in dataclasses.fields(config_type)}


def _paths(table: Mapping[str, object], prefix: str = "") -> list[str]:
    """Return every dotted path in `table`."""
    paths: list[str] = []
    for key, value in table.items():
        paths += _paths(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [prefix + key]
    return paths


def _nearest(path: str) -> str:
    """Name the nearest keys: by their beginning, their whole path, or their last word if the section is wrong."""
    keys, sections = known_keys(), list(_fields(PipelineConfig))
    if "." not in path:
        section = difflib.get_close_matches(path, sections, n=1, cutoff=0.6)
        if section:
            return f"; nearest: {section[0]}"
    near = [key for key in keys if "." in path and key.startswith(path)]
    near = near or difflib.get_close_matches(path, keys, n=1, cutoff=0.75)
    last = path.rpartition(".")[2]
    words = difflib.get_close_matches(last, [key.rpartition(".")[2] for key in keys], n=1, cutoff=0.6)
    near += [key for key in keys if words and key.rpartition(".")[2] == words[0] and key not in near]
    if near:
        return f"; nearest: {', '.join(near[:3])}"
    return f"; sections are {', '.join(sections)}"


def _sentence(text: str, written: Mapping[str, str]) -> str:
    """Make one sentence of an error: how the user wrote the key, its full name, what is wrong, what is allowed.

    For a wrong type, msgspec says "Expected `int`, got `str` - at `$.flow.file_queue`". For a value that a config
    refuses, it says "threads is -1, … - at `$.engine`".
    """
    reason, _, place = text.rpartition(" - at `$")
    place = place.strip("`").removeprefix(".")
    kind = _kind_of(place)
    if reason and _is_section(kind):
        reason = f"{place}.{re.sub(r'^[A-Z][A-Za-z]*Config[.]', '', reason)}"
    elif reason:
        reason = f"{place}: {reason[:1].lower()}{reason[1:]}"
        if get_origin(kind) is Literal:
            reason += f"; give {', '.join(map(str, get_args(kind)))}"
    sentence = reason or text
    key = re.match(r"[a-z_.]+", sentence)
    label = written.get(key[0]) if key else None
    return f"{label}: {sentence}" if label else sentence


def _kind_of(path: str) -> object:
    """Return the type of the key or section at a dotted path; None if there is none."""
    kind: object = PipelineConfig
    for name in path.split("."):
        kind = _fields(kind).get(name) if _is_section(kind) else None
    return kind
