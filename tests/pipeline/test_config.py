"""Presets and overrides."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.config import PipelineConfig, known_keys, load_config
from pipeline.errors import ConfigError
from tests.support import REPOSITORY


@pytest.mark.parametrize("preset", sorted((REPOSITORY / "configs").glob("*.toml")), ids=lambda path: path.stem)
def test_shipped_preset_is_valid_and_changes_something(preset: Path) -> None:
    assert load_config(preset) != PipelineConfig()


SECTIONS = ("source", "engine", "tracker", "flow", "publish", "video", "monitor", "control", "record", "keys")


def test_values_come_from_defaults_then_preset_then_overrides_then_flags(tmp_path: Path) -> None:
    preset = tmp_path / "p.toml"
    preset.write_text("[flow]\nfile_queue = 3\nlive_queue = 4\n[publish]\nendpoint = 'tcp://127.0.0.1:1'\n")
    config = load_config(
        preset,
        ["flow.live_queue=5", "tracker.lifecycle.coast_s=0.75", "engine.model=swin-t", "engine.size=[320, 416]"],
        {"--publish": ("publish.endpoint", "tcp://127.0.0.1:2"), "--weights": ("engine.weights", None)},
        batch=2,
    )
    assert (config.flow.file_queue, config.flow.live_queue, config.flow.stage_queue) == (3, 5, 8)
    assert config.tracker.lifecycle.coast_s == 0.75
    assert (config.engine.model, config.engine.size, config.engine.batch) == ("swin-t", (320, 416), 2)
    assert config.publish.endpoint == "tcp://127.0.0.1:2"


@pytest.mark.parametrize(
    ("overrides", "starts_at"),
    [
        ([], 0.48),
        (["engine.score_threshold=0.2"], 0.2),
        (["engine.score_threshold=0.6"], 0.6),
        (["engine.model=swin-t"], 0.3),
        (["engine.model=swin-t", "engine.score_threshold=0.15"], 0.15),
        (["engine.score_threshold=0"], 0.01),
        (["engine.score_threshold=1"], 0.99),
    ],
)
def test_a_track_starts_from_the_given_threshold_or_the_models_own_score_on(
    overrides: list[str], starts_at: float
) -> None:
    config = load_config(overrides=overrides)
    below, above = config.score_scale.to_tracker(np.array([starts_at - 1e-4, starts_at + 1e-4]))
    assert below < config.tracker.association.new_score < above


@pytest.mark.parametrize(
    ("overrides", "threshold", "kept_by_engine"),
    [
        (["engine.score_threshold=0.6"], 0.6, 0.2),
        (["engine.score_threshold=0.6", "engine.doubtful_score=0.3"], 0.6, 0.3),
        (["engine.score_threshold=0.15"], 0.15, 0.15),
        (["engine.model=swin-t"], 0.1, 0.1),
    ],
)
def test_the_engine_of_a_pipeline_keeps_what_may_continue_a_track(
    overrides: list[str], threshold: float, kept_by_engine: float
) -> None:
    config = load_config(overrides=overrides)
    assert config.threshold == threshold
    assert config.engine_of_pipeline.score_threshold == kept_by_engine


def test_every_key_of_every_section_can_be_overridden() -> None:
    keys = known_keys()
    assert {
        "engine.threads",
        "flow.age_budget_s",
        "tracker.smoothing.beta",
        "video.overlay.scale",
        "source.name",
    } <= set(keys)
    for key in keys:
        assert key.partition(".")[0] in SECTIONS


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("flow.age_budget=1", r"unknown key flow\.age_budget; nearest: flow\.age_budget_s"),
        ("engin.threads=1", r"unknown key engin; nearest: engine$"),
        ("fow.file_queue=1", r"unknown key fow; nearest: flow$"),
        ("sauce.name=1", r"unknown key sauce; nearest: source$"),
        (
            "xyz.abc=1",
            f"unknown key xyz; sections are {', '.join(SECTIONS)}$",
        ),
        ("threads=1", r"unknown key threads; nearest: .*engine\.threads"),
        ("tracker.smoothing.betta=1", r"tracker\.smoothing\.betta; nearest: tracker\.smoothing\.beta"),
        ("flow.file_queue=two", r"flow\.file_queue: expected `int`, got `str`"),
        ("flow.file_queue=0", r"flow\.file_queue is 0: give 1 frame or more"),
        ("flow=3", "flow is a section"),
        ("flow.file_queue", "give section.key=value"),
        ("tracker.smoothing.mode=magic", "magic"),
        ("engine.backend=abacus", r"engine\.backend: invalid enum value 'abacus'; give auto, .*eager"),
        ("engine.device=foo", r"engine\.device is 'foo'"),
        ("engine.threads=-1", r"--set engine\.threads=-1: engine\.threads is -1"),
        ("video.overlay.scale=99", r"--set video\.overlay\.scale=99: video\.overlay\.scale is 99"),
        ("tracker.motion.measurement=-1", r"=-1: tracker\.motion\.measurement: got -1"),
    ],
)
def test_wrong_override_is_one_sentence_that_names_the_key(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, [override])


def test_wrong_value_is_named_as_the_user_wrote_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^--backend abacus: engine\.backend: invalid"):
        load_config(flags={"--backend": ("engine.backend", "abacus")})
    preset = tmp_path / "p.toml"
    preset.write_text("[video]\ncrf = 99\n")
    with pytest.raises(ConfigError, match=r"p\.toml: video\.crf is 99: give 0 to 51"):
        load_config(preset)


def test_unknown_key_of_a_preset_names_file_path_and_nearest(tmp_path: Path) -> None:
    preset = tmp_path / "p.toml"
    preset.write_text("[publish]\nendpiont = 'tcp://*:5555'\n")
    with pytest.raises(ConfigError, match=r"p\.toml: unknown key publish\.endpiont; nearest: publish\.endpoint"):
        load_config(preset)


def test_preset_that_is_absent_or_no_toml_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "absent.toml")
    (tmp_path / "bad.toml").write_text("[flow\n")
    with pytest.raises(ConfigError, match="is not TOML"):
        load_config(tmp_path / "bad.toml")


def test_shipped_preset_is_found_by_its_name_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config(Path("live")) == load_config(REPOSITORY / "configs" / "live.toml")


def test_file_of_the_users_own_comes_before_a_preset_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "live").write_text("[publish]\nsend_queue = 77\n")
    assert load_config(Path("live")).publish.send_queue == 77


def test_unknown_preset_is_refused_with_the_names_of_those_there_are() -> None:
    with pytest.raises(ConfigError, match="give one of live, official, offline, or the path"):
        load_config(Path("lively"))
