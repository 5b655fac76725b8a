"""Compiled kernels on disk: compiled once, compiled again when anything changed, never read damaged."""

import logging
from pathlib import Path

import pytest

from engines.kernels import nvrtc

SOURCE = "one.cu"
CAPABILITY = (9, 0)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A source folder with a header, and an empty cache."""
    sources = tmp_path / "sources"
    sources.mkdir()
    (sources / "one.h").write_text("#define ONE 1\n")
    (sources / SOURCE).write_text(
        '#include "one.h"\nextern "C" __global__ void one(int* out) { *out = ONE * SCALE; }\n'
    )
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(nvrtc, "HERE", sources)
    return sources


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the sources that were compiled, one entry per compilation."""
    names = []
    compile_source = nvrtc.compile_source
    monkeypatch.setattr(nvrtc, "compile_source", lambda name, *rest: names.append(name) or compile_source(name, *rest))
    return names


def _cubin(scale: int = 1, capability: tuple[int, int] = CAPABILITY) -> bytes:
    return nvrtc.cubin(SOURCE, {"SCALE": scale}, capability)


def _kept(folder: Path) -> list[Path]:
    return sorted((folder.parent / "cache" / "xpose-stream" / "kernels").iterdir())


def test_a_kernel_is_compiled_once_and_then_read(folder: Path, compilations: list[str]) -> None:
    first = _cubin()
    assert first[:4] == b"\x7fELF"
    assert _cubin() == first
    assert compilations == [SOURCE]
    assert [path.suffix for path in _kept(folder)] == [".cubin"], "a temporary folder was left behind"


@pytest.mark.parametrize("change", ["source", "header", "macro", "capability", "nvrtc"])
def test_a_change_of_anything_compiles_again(
    change: str, folder: Path, compilations: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _cubin()
    if change == "source":
        (folder / SOURCE).write_text((folder / SOURCE).read_text().replace("ONE * SCALE", "ONE + SCALE"))
    elif change == "header":
        (folder / "one.h").write_text("#define ONE 2\n")
    elif change == "nvrtc":
        monkeypatch.setattr(nvrtc, "version", lambda: "99.0")
    _cubin(2 if change == "macro" else 1, (8, 0) if change == "capability" else CAPABILITY)
    assert compilations == [SOURCE, SOURCE]


@pytest.mark.parametrize("damage", ["empty", "truncated", "altered"])
def test_a_damaged_file_is_compiled_again_and_mended(damage: str, folder: Path, compilations: list[str]) -> None:
    first = _cubin()
    (path,) = _kept(folder)
    content = path.read_bytes()
    damaged = {"empty": b"", "truncated": content[:-10], "altered": content[:-1] + bytes([content[-1] ^ 1])}
    path.write_bytes(damaged[damage])
    assert _cubin() == first
    assert compilations == [SOURCE, SOURCE]
    assert path.read_bytes() == content


def test_a_cache_that_cannot_be_written_costs_time_and_not_the_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (folder.parent / "file").write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder.parent / "file"))
    with caplog.at_level(logging.WARNING):
        assert _cubin()[:4] == b"\x7fELF"
    assert "cannot be written" in caplog.text
