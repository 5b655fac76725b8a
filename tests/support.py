"""What several test files share: the way to the shared data, and what to do without a package of the system."""

import os
from pathlib import Path
from typing import NoReturn

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("XPOSE_SHARED", REPOSITORY.parent / "shared"))


def need_shared(relative: str) -> Path:
    """Return a file or folder of the shared data; skip the test, saying so, where it is absent."""
    path = SHARED / relative
    if not path.exists():
        pytest.skip(f"{path} is absent: set XPOSE_SHARED to the folder of the shared data")
    return path


def lacks(what: str) -> NoReturn:
    """Skip the test because this machine lacks a package, such as a compiler; under CI=true fail instead."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"CI=true, but {what}")
    pytest.skip(what)
