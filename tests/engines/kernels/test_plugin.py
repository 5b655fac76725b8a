"""The TensorRT plugin against the real bindings and registry: everything short of building an engine."""

from typing import Any

import pytest

from engines.kernels import cuda
from tests.offline_tensorrt import REPOSITORY, run_offline


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    result: dict[str, Any] = run_offline("tests.engines.kernels.offline_plugin")
    return result


def test_plugin_registers_in_the_real_registry(found: dict[str, Any]) -> None:
    assert found["registered"]
    assert found["attributes"] == {"sizes": "str"}


def test_autotune_offers_half_and_single_values_and_never_half_locations(found: dict[str, Any]) -> None:
    half, single = "DataType.HALF", "DataType.FLOAT"
    assert sorted(found["types"]) == sorted([[single] * 5, [half, single, single, single, half]])


@pytest.mark.parametrize(("name", "half"), [("half", True), ("single", False)])
def test_plugin_hands_out_the_kernel_and_its_launch(found: dict[str, Any], name: str, half: bool) -> None:
    """No extra arguments, so that the parameters are the four inputs and the output, in this order."""
    launch = cuda.Launch(half, 1, 80, 80, 4, 32, 4, 2, (8, 8, 4, 4))
    assert found[name] == {
        "kernel": cuda.KERNEL,
        "entry": True,
        "parameters": 5,
        "grid": launch.blocks,
        "block": cuda.BLOCK_THREADS,
        "extra": 0,
    }


def test_converter_passes_tensors_and_sizes_and_asks_for_the_embedded_kernel(found: dict[str, Any]) -> None:
    assert found["converter"] == {
        "tensors": ["value", "reference", "offsets", "logits"],
        "attributes": {"sizes": "8x8,4x4"},
        "aot": True,
        "output": "output 0",
    }


def test_a_layer_with_the_operator_converts_whole_into_one_engine(found: dict[str, Any]) -> None:
    conversion = found["conversion"]
    assert conversion["supported"] == conversion["operators"] > 0
    assert (conversion["engines"], conversion["unsupported"], conversion["left_in_torch"]) == (1, {}, [])


def test_every_tensorrt_name_in_the_code_exists_in_the_bindings() -> None:
    sources = [path for path in (REPOSITORY / "engines").rglob("*.py") if "tensorrt" in path.read_text()]
    names = run_offline("tests.offline_tensorrt.names", *map(str, sources))
    assert "tensorrt.plugin.aot_impl" in names["checked"]
    assert names["missing"] == []
