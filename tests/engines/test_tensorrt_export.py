"""The exported networks convert to TensorRT whole: every operator has a converter, and one engine holds them all."""

import pytest

from tests.offline_tensorrt import run_offline


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["nano", "swin-t"])
def test_network_converts_whole_into_one_engine(name: str) -> None:
    conversion = run_offline("tests.engines.offline_export", name, timeout_s=550)
    assert conversion["supported"] == conversion["operators"] > 1000
    assert (conversion["engines"], conversion["unsupported"], conversion["left_in_torch"]) == (1, {}, [])
    assert conversion["half_tensors"] > 500
