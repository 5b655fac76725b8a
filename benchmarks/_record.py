"""Writes the results of a benchmark, with everything that is needed to compare them later.

One file per benchmark, `benchmarks/results/<name>.json`: the machine, the versions, the commit, and the rows.
"""

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pipeline.doctor import cpuinfo

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "benchmarks" / "results"
PACKAGES = ("torch", "openvino", "numpy", "av", "opencv-python", "pyzmq", "msgspec", "filterpy")


def record(name: str, rows: Sequence[Mapping[str, object]], folder: Path = RESULTS) -> Path:
    """Write `rows` to `<folder>/<name>.json` and return its path.

    Args:
        name: file name without its suffix.
        rows: one mapping per measured line; values must be JSON.
        folder: created if absent; by default benchmarks/results.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    header = {
        "name": name,
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit(),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "cpu_flags": [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in _cpu_flags()],
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": versions(),
    }
    path.write_text(json.dumps({**header, "rows": [dict(row) for row in rows]}, indent=2) + "\n", encoding="utf-8")
    return path


def commit() -> str:
    """Return the short commit hash, with `+` where tracked files differ from it."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--exclude=*"],
            cwd=REPOSITORY, capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()


def versions() -> dict[str, str]:
    """Return the installed versions of the packages that carry the time."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


def cpu_model() -> str:
    """Return the processor's name as Linux gives it, else the platform's."""
    for line in cpuinfo():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _cpu_flags() -> set[str]:
    for line in cpuinfo():
        if line.startswith("flags"):
            return set(line.split(":", 1)[1].split())
    return set()
