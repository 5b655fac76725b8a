"""Whole networks, converted by torch-tensorrt's own converters and ours into the stand-in, give PyTorch's numbers.

The stand-in (`tests.trt_standin`) holds TensorRT's documented rules and computes each layer from its own attributes and
weights. Swin-T at 800 x 1344 and more random networks: `python -m benchmarks.trt_standin`.
"""

from typing import Any

import pytest

from tests.trt_standin import run_offline

FLOAT32_TOLERANCE = 1e-4  # relative to the largest number of an output
OUTPUTS = ("boxes", "logits", "classes", "keypoints")


@pytest.fixture(scope="module")
def nano() -> dict[str, Any]:
    rows: dict[str, Any] = run_offline("tests.trt_standin.networks", "nano", "fp32", "fp16")
    return rows


def test_the_shipped_network_in_float32_gives_pytorch_s_numbers(nano: dict[str, Any]) -> None:
    assert nano["fp32"]["layers"] > 1000
    assert not nano["fp32"]["tf32"]
    for name in OUTPUTS:
        assert nano["fp32"]["engine"][name] <= FLOAT32_TOLERANCE, name


def test_the_shipped_network_in_float16_errs_at_most_twice_as_much_as_pytorch_s_placement(nano: dict[str, Any]) -> None:
    engine, eager = nano["fp16"]["engine"], nano["fp16"]["eager"]
    assert engine["groups"] >= 3
    for figure in ("rms_px", "p99_px"):
        assert engine[figure] <= 2 * eager[figure], figure
    assert engine["beyond"] <= 2 * eager["beyond"] + 0.01
