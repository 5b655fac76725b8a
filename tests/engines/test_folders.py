"""Folders of a user with and without a home."""

import os
import pwd
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from engines import folders


@pytest.fixture
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user id that has no name, and no HOME; yields the temporary folder."""

    def unknown(number: int) -> pwd.struct_passwd:
        raise KeyError(number)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folders._in_temporary_folder.cache_clear()
    yield tmp_path
    folders._in_temporary_folder.cache_clear()


def test_cache_follows_xdg_and_else_the_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/a")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert folders.cache_root() == Path("/home/a/.cache/xpose-stream")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert folders.cache_root() == Path("/cache/xpose-stream")
    assert folders.home_cache() == Path("/home/a/.cache/xpose-stream")


def test_user_without_name_and_home_gets_a_private_temporary_folder(nobody: Path) -> None:
    folder = folders.cache_root()
    assert folder == nobody / f"xpose-stream-{os.getuid()}"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert folders.expanded("~/weights") == Path("~/weights")


def test_temporary_folder_that_others_may_write_to_is_not_used(nobody: Path) -> None:
    taken = nobody / f"xpose-stream-{os.getuid()}"
    taken.mkdir()
    taken.chmod(0o777)
    assert folders.cache_root() != taken
    assert folders.cache_root() == folders.cache_root()
