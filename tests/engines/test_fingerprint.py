"""One changed line of any source that can change a number makes a built engine unusable."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest

from engines.engine_cache import EngineCache
from engines.errors import EngineCacheError
from engines.fingerprint import PACKAGE, PARTS, SUFFIXES, files_of, sources_sha256
from tests.engines.test_engine_cache import KEY, write_plan

NO_NUMBER = {
    "__init__.py", "annotate.py", "capacity.py", "checkpoint.py", "config.py", "detections.py", "engine.py",
    "engine_cache.py", "errors.py", "fetch.py", "folders.py", "postprocess.py", "scores.py",
}  # fmt: skip
"""Files that cannot change what an engine computes; put a new file here or in `fingerprint.PARTS`."""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("package") / "engines"
    shutil.copytree(PACKAGE, target, ignore=shutil.ignore_patterns("__pycache__", "weights"))
    return target


def test_every_source_is_in_one_part_or_cannot_change_a_number() -> None:
    found = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*") if path.suffix in SUFFIXES}
    listed = [path.relative_to(PACKAGE).as_posix() for part in PARTS for path in files_of(part)]
    assert len(listed) == len(set(listed))
    assert found - set(listed) <= NO_NUMBER


@pytest.mark.parametrize("part", PARTS)
def test_one_changed_line_of_each_file_is_refused_and_the_part_is_named(
    part: str, package: Path, tmp_path: Path
) -> None:
    cache = EngineCache(tmp_path)
    before = sources_sha256(package)
    cache.build(dataclasses.replace(KEY, sources=before), "engine.plan", write_plan)
    files = files_of(part, package)
    assert files
    for file in files:
        text = file.read_bytes()
        file.write_bytes(text + b"\n# one more line\n")
        after = sources_sha256(package)
        file.write_bytes(text)
        assert [name for name in PARTS if after[name] != before[name]] == [part], file
        with pytest.raises(EngineCacheError, match=rf"differs in sources\.{part}\)"):
            cache.load(dataclasses.replace(KEY, sources=after))
    assert sources_sha256(package) == before


def test_a_renamed_file_counts_as_a_change(package: Path) -> None:
    before = sources_sha256(package)
    (package / "xpose" / "geometry.py").rename(package / "xpose" / "geometry2.py")
    after = sources_sha256(package)
    (package / "xpose" / "geometry2.py").rename(package / "xpose" / "geometry.py")
    assert after["network"] != before["network"]


def test_a_new_driver_and_a_new_nvrtc_are_refused(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    old: dict[str, Any] = {**KEY.toolchain, "nvrtc": "13.0", "driver": "580.95.05"}
    cache.build(dataclasses.replace(KEY, toolchain=old), "engine.plan", write_plan)
    for name in ("nvrtc", "driver"):
        with pytest.raises(EngineCacheError, match=rf"differs in toolchain\.{name}\)"):
            cache.load(dataclasses.replace(KEY, toolchain={**old, name: "other"}))
