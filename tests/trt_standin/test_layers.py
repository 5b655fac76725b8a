"""Each kind of layer of the stand-in computes what numpy does, and refuses what TensorRT's documentation forbids."""

from typing import Any

import pytest

from tests.trt_standin import run_offline

pytestmark = pytest.mark.timeout(1800)  # conversions take a minute, on a busy machine many


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    result: dict[str, Any] = run_offline("tests.trt_standin.layer_checks")
    return result


def test_every_kind_of_layer_computes_what_numpy_does(found: dict[str, Any]) -> None:
    assert len(found["checks"]) >= 14
    assert found["failures"] == {}


def test_every_broken_rule_is_refused(found: dict[str, Any]) -> None:
    assert len(found["rules"]) >= 20
    assert found["unbroken"] == {}


def test_the_stand_in_has_no_layer_and_no_attribute_that_the_bindings_lack(found: dict[str, Any]) -> None:
    assert len(found["kinds"]) >= 20
    assert found["unknown"] == []
