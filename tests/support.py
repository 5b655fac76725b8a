"""What several test files share: the way to the shared data."""

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("XPOSE_SHARED", REPOSITORY.parent / "shared"))


def need_shared(relative: str) -> Path:
    """Return a file or folder of the shared data; skip the test, saying so, where it is absent."""
    path = SHARED / relative
    if not path.exists():
        pytest.skip(f"{path} is absent: set XPOSE_SHARED to the folder of the shared data")
    return path
