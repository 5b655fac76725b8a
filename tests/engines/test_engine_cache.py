"""The cache of compiled engines refuses rather than serves something wrong."""

import dataclasses
import errno
import json
import multiprocessing
import time
from pathlib import Path
from typing import Any

import pytest

from engines.engine_cache import EngineCache, EngineKey, exclusive
from engines.errors import EngineCacheError

KEY = EngineKey(
    backend="tensorrt",
    model="nano",
    weights_sha256="ab" * 32,
    network={"hidden_dim": 128, "depths": (2, 2)},
    input_hw=(320, 320),
    batch=1,
    max_classes=8,
    max_keypoints=68,
    precision="fp16",
    sources={"network": "cd" * 32, "kernels": "ef" * 32},
    toolchain={"tensorrt": "11.0.0", "cuda": "13.0", "compute_capability": "9.0"},
)
PLAN = b"plan" * 1000


def write_plan(path: Path) -> dict[str, Any]:
    path.write_bytes(PLAN)
    return {"rms_px": 0.01}


def test_built_engine_is_found_with_its_figures(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path / "engines")
    built = cache.build(KEY, "engine.plan", write_plan)
    assert built.path.read_bytes() == PLAN
    assert EngineCache(cache.root).load(KEY).manifest["figures"] == {"rms_px": 0.01}
    described = "tensorrt engine of nano in fp16: 320 x 320 px, 1 image(s) per call, up to 8 classes of 68 keypoints"
    assert built.describe() == described


def test_missing_engine_names_the_command_that_builds_it(tmp_path: Path) -> None:
    with pytest.raises(EngineCacheError, match=r"build-engine .*--size 320x320 .*--precision fp16"):
        EngineCache(tmp_path).load(KEY)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("weights_sha256", "00" * 32),
        ("network", {"hidden_dim": 256}),
        ("input_hw", (320, 256)),
        ("batch", 2),
        ("max_classes", 9),
        ("max_keypoints", 17),
        ("precision", "fp32"),
        ("sources", {"network": "11" * 32, "kernels": "ef" * 32}),
        ("toolchain", {"tensorrt": "10.15"}),
    ],
)
def test_engine_for_anything_else_is_not_served_and_the_difference_is_named(
    tmp_path: Path, field: str, value: Any
) -> None:
    cache = EngineCache(tmp_path)
    cache.build(KEY, "engine.plan", write_plan)
    with pytest.raises(EngineCacheError, match=field):
        cache.load(dataclasses.replace(KEY, **{field: value}))


def test_foreign_plan_in_the_right_folder_is_refused(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    other = dataclasses.replace(KEY, weights_sha256="00" * 32)
    cache.build(other, "engine.plan", write_plan)
    (tmp_path / other.digest()).rename(tmp_path / KEY.digest())
    with pytest.raises(EngineCacheError, match="built for another weights_sha256"):
        cache.load(KEY)


@pytest.mark.parametrize("damage", [PLAN[:100], PLAN[:-1] + b"x", b""])
def test_truncated_or_altered_plan_is_refused_then_rebuilt(tmp_path: Path, damage: bytes) -> None:
    cache = EngineCache(tmp_path)
    cache.build(KEY, "engine.plan", write_plan).path.write_bytes(damage)
    with pytest.raises(EngineCacheError, match="truncated or altered"):
        cache.load(KEY)
    assert cache.build(KEY, "engine.plan", write_plan).path.read_bytes() == PLAN


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"schema": 1}'])
def test_damaged_manifest_is_refused(tmp_path: Path, text: str) -> None:
    cache = EngineCache(tmp_path)
    built = cache.build(KEY, "engine.plan", write_plan)
    (built.path.parent / "manifest.json").write_text(text)
    with pytest.raises(EngineCacheError, match=r"manifest\.json"):
        cache.load(KEY)


def test_manifest_of_a_later_schema_is_refused(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    path = cache.build(KEY, "engine.plan", write_plan).path.parent / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": 99}))
    with pytest.raises(EngineCacheError, match="schema 99"):
        cache.load(KEY)


def test_failed_build_leaves_nothing_behind(tmp_path: Path) -> None:
    def fails_its_gate(path: Path) -> dict[str, Any]:
        path.write_bytes(PLAN)
        raise EngineCacheError("parity gate: 3.2 px")

    cache = EngineCache(tmp_path)
    with pytest.raises(EngineCacheError, match=r"3\.2 px"):
        cache.build(KEY, "engine.plan", fails_its_gate)
    assert [path.name for path in tmp_path.iterdir()] == [f"{KEY.digest()}.lock"]


def test_full_disk_is_one_clear_error_and_leaves_nothing_behind(tmp_path: Path) -> None:
    def fills_the_disk(path: Path) -> dict[str, Any]:
        path.write_bytes(PLAN[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(EngineCacheError, match="No space left on device"):
        EngineCache(tmp_path).build(KEY, "engine.plan", fills_the_disk)
    assert not list(tmp_path.glob("*/"))


def _hold(path: str, log: Any, name: str) -> None:
    with exclusive(Path(path)):
        log.put(f"{name} in")
        time.sleep(0.2)
        log.put(f"{name} out")


@pytest.mark.timeout(120)
def test_one_process_at_a_time_holds_a_lock(tmp_path: Path) -> None:
    """The timing cache is read before a build and written after it, so two builds must not overlap."""
    context = multiprocessing.get_context("spawn")
    log = context.Queue()
    holders = [context.Process(target=_hold, args=(str(tmp_path / "lock"), log, name)) for name in ("a", "b")]
    for holder in holders:
        holder.start()
    for holder in holders:
        holder.join(60)
    steps = [log.get(timeout=5) for _ in range(4)]
    assert steps in (["a in", "a out", "b in", "b out"], ["b in", "b out", "a in", "a out"])


def _slow_build(root: str, calls: Any) -> None:
    def compile_to(path: Path) -> dict[str, Any]:
        calls.put(1)
        path.write_bytes(PLAN[: len(PLAN) // 2])
        time.sleep(0.3)
        path.write_bytes(PLAN)
        return {}

    EngineCache(Path(root)).build(KEY, "engine.plan", compile_to)


@pytest.mark.timeout(120)
def test_two_builders_at_once_build_one_whole_engine(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    calls = context.Queue()
    builders = [context.Process(target=_slow_build, args=(str(tmp_path), calls)) for _ in range(2)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join(60)
    assert [builder.exitcode for builder in builders] == [0, 0]
    assert EngineCache(tmp_path).load(KEY).path.read_bytes() == PLAN
    assert calls.get(timeout=5) == 1
    assert calls.empty()
