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
    rows: dict[str, Any] = run_offline("tests.trt_standin.networks", "nano", "fp32", "fp16", "bf16")
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


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_the_shipped_network_in_half_precision_errs_at_most_twice_as_much_as_pytorch_s(
    nano: dict[str, Any], precision: str
) -> None:
    """Both against float32, on the same images: our placement computed by PyTorch, and by the converted network.

    Points that a change of ranks moved far are counted apart: which ranks change is chance.
    """
    engine, eager = nano[precision]["engine"], nano[precision]["eager"]
    assert engine["groups"] >= 3
    assert engine["rms_px"] <= 2 * eager["rms_px"]
    assert engine["beyond"] <= 2 * eager["beyond"] + 0.01


def test_a_convolutional_network_of_random_sizes_gives_pytorch_s_numbers() -> None:
    rows = run_offline("tests.trt_standin.networks", "random", "fp32", "3", "4")
    for name in OUTPUTS:
        assert rows[0]["engine"][name] <= FLOAT32_TOLERANCE, name


@pytest.mark.parametrize("converter", ["gather axis swapped", "mask dropped", "tf32 allowed"])
def test_a_broken_converter_is_found(broken: dict[str, Any], converter: str) -> None:
    """An error is a number beyond the tolerance, or a rule that the stand-in says is broken."""
    assert broken["nothing"] <= FLOAT32_TOLERANCE
    found = broken[converter]
    assert isinstance(found, str) or found > FLOAT32_TOLERANCE, found


@pytest.mark.slow
@pytest.mark.parametrize("first", [1, 4])
def test_random_networks_in_bulk_give_pytorch_s_numbers(first: int) -> None:
    """Three at a time: other sizes, heads, levels, batches and prompt capacities, with and without convolutions."""
    for row in run_offline("tests.trt_standin.networks", "random", "fp32", str(first), str(first + 3)):
        for name in OUTPUTS:
            assert row["engine"][name] <= FLOAT32_TOLERANCE, (row["seed"], name)
