"""Skips tests marked `gpu` where there is none; under REQUIRE_GPU=1 their absence is a failure."""

import os

import pytest
import torch


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") is None or torch.cuda.is_available():
        return
    reason = "no CUDA device"
    if os.environ.get("REQUIRE_GPU") == "1":
        pytest.fail(f"REQUIRE_GPU=1, but there is {reason}")
    pytest.skip(reason)
