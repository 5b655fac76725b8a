"""The TensorRT plugin against the real bindings and registry, and in a network that the stand-in computes."""

from typing import Any

import pytest
import torch

from engines.kernels import cuda
from tests.trt_standin import REPOSITORY, run_offline

pytestmark = pytest.mark.timeout(1800)  # conversions take a minute, on a busy machine many


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    result: dict[str, Any] = run_offline("tests.engines.kernels.offline_plugin")
    return result


def test_plugin_registers_in_the_real_registry(found: dict[str, Any]) -> None:
    assert found["registered"]
    assert found["attributes"] == {"sizes": "str"}


def test_autotune_offers_values_of_all_three_types_and_locations_of_float32_only(found: dict[str, Any]) -> None:
    single = "DataType.FLOAT"
    expected = [[kind, single, single, single, kind] for kind in (single, "DataType.HALF", "DataType.BF16")]
    assert sorted(found["types"]) == sorted(expected)


@pytest.mark.parametrize("dtype", cuda.VALUE_CODES, ids=str)
def test_plugin_hands_out_the_kernel_and_its_launch(found: dict[str, Any], dtype: torch.dtype) -> None:
    """The kernel's parameters are the four inputs, then the numbers, then the output: TensorRT passes them so."""
    launch = cuda.Launch(cuda.Variant(dtype, 4, 32, 2, 4, 2), 3, 80, 80, (8, 8, 4, 4))
    assert found[str(dtype).removeprefix("torch.")] == {
        "kernel": cuda.KERNEL,
        "entry": True,
        "parameters": 4 + len(launch.numbers) + 1,
        "grid": list(launch.grid[:2]),
        "block": cuda.BLOCK_THREADS,
        "numbers": list(launch.numbers),
    }


def test_converter_passes_tensors_and_sizes_and_asks_for_the_embedded_kernel(found: dict[str, Any]) -> None:
    assert found["converter"] == {
        "tensors": ["value", "reference", "offsets", "logits"],
        "attributes": {"sizes": "8x8,4x4"},
        "aot": True,
        "output": "output 0",
    }


def test_a_layer_with_the_operator_converts_and_gives_pytorch_s_numbers(found: dict[str, Any]) -> None:
    assert found["difference"] < 2e-3  # values near 1 in float16


def test_every_tensorrt_name_in_the_code_exists_in_the_bindings() -> None:
    sources = [path for path in (REPOSITORY / "engines").rglob("*.py") if "tensorrt" in path.read_text()]
    names = run_offline("tests.trt_standin.names", *map(str, sources))
    assert "tensorrt.plugin.aot_impl" in names["checked"]
    assert names["missing"] == []
