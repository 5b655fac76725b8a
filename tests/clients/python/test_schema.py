"""The description of the wire for other languages is complete and current."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from xpose_client import control_messages
from xpose_client.messages import TOPICS, SkeletonClass, TrackMessage
from xpose_client.schema import fields_of, write

CLIENTS = Path(__file__).resolve().parents[3] / "clients"
CONTROL = [
    kind for kind in vars(control_messages).values() if getattr(kind, "__module__", "") == control_messages.__name__
]
TYPES = [*TOPICS.values(), TrackMessage, SkeletonClass, *(kind for kind in CONTROL if isinstance(kind, type))]


@pytest.mark.parametrize("name", ["wire.schema.json", "FIELDS.md", "CONTROL.md"])
def test_file_in_the_repository_is_what_the_command_writes(name: str, tmp_path: Path) -> None:
    write(tmp_path)
    current = (tmp_path / name).read_text(encoding="utf-8") == (CLIENTS / name).read_text(encoding="utf-8")
    assert current, "the messages have changed: run `python -m xpose_client.schema clients`"


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.__name__)
def test_every_field_is_documented_and_nothing_else_is(kind: type) -> None:
    assert list(fields_of(kind)) == [field.name for field in msgspec.structs.fields(kind)]


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.__name__)
def test_every_field_whose_name_ends_in_a_unit_has_that_unit(kind: type) -> None:
    units = {"_s": "s", "_unix_ns": "ns since 1970", "_monotonic_ns": "ns", "_xyxy": "px"}
    for name, documented in fields_of(kind).items():
        for suffix, unit in units.items():
            if name.endswith(suffix):
                assert documented.unit == unit, name


def test_command_writes_all_files_and_says_where(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "xpose_client.schema", str(tmp_path)]
    done = subprocess.run(command, cwd=CLIENTS / "python", capture_output=True, text=True, timeout=60, check=True)
    assert sorted(done.stdout.split()) == sorted(str(path) for path in tmp_path.iterdir())
    assert len(done.stdout.split()) == 3


def test_command_without_a_folder_says_how_it_is_used() -> None:
    command = [sys.executable, "-m", "xpose_client.schema"]
    done = subprocess.run(command, cwd=CLIENTS / "python", capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "usage:" in done.stderr
