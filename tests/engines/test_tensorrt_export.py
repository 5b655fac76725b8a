"""Whole networks, converted by torch-tensorrt's own converters and ours into the stand-in, give PyTorch's numbers.

The stand-in (`tests.trt_standin`) holds TensorRT's documented rules and computes each layer from its own attributes and
weights. Swin-T at 800 x 1344 and more random networks: `python -m benchmarks.trt_standin`.
"""

from typing import Any

import pytest

from tests.trt_standin import run_offline

pytestmark = pytest.mark.timeout(1800)  # conversions take a minute, on a busy machine many
FLOAT32_TOLERANCE = 1e-4  # relative to the largest number of an output
OUTPUTS = ("boxes", "logits", "classes", "keypoints")


@pytest.fixture(scope="module")
def nano() -> dict[str, Any]:
    rows: dict[str, Any] = run_offline("tests.trt_standin.networks", "nano", "fp32", "fp16")
    return rows


@pytest.fixture(scope="module")
def broken() -> dict[str, Any]:
    rows: dict[str, Any] = run_offline("tests.trt_standin.networks", "broken")
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


def test_random_small_networks_give_pytorch_s_numbers() -> None:
    rows = run_offline("tests.trt_standin.networks", "random", "fp32", "2", "4")  # a Swin and a convolutional one
    assert len(rows) == 2
    for row in rows:
        for name in OUTPUTS:
            assert row["engine"][name] <= FLOAT32_TOLERANCE, (row["seed"], name)


@pytest.mark.parametrize("converter", ["gather axis swapped", "mask dropped", "tf32 allowed"])
def test_a_broken_converter_is_found(broken: dict[str, Any], converter: str) -> None:
    """An error is a number beyond the tolerance, or a rule that the stand-in says is broken."""
    assert broken["nothing"] <= FLOAT32_TOLERANCE
    found = broken[converter]
    assert isinstance(found, str) or found > FLOAT32_TOLERANCE, found
