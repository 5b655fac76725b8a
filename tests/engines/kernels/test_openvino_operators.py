"""Our operators give PyTorch's numbers inside OpenVINO, and OpenVINO does without them where it must."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from engines.backends import openvino
from engines.kernels import openvino_operators
from engines.onnx_export import OUTPUTS, export_onnx, onnx_inputs
from engines.xpose import XPose, XPoseConfig
from tests.engines.test_onnx_export import Arrays, assert_numbers_of_pytorch, images_of, random_model, random_prompts

CONFIG = XPoseConfig(
    embed_dim=24, depths=(2, 2, 2), num_heads=(2, 4, 4), window=4, level_stages=(1, 2), hidden_dim=64, heads=4,
    encoder_layers=1, decoder_layers=3, box_layers=1, queries=12, groups=4, feedforward=64, text_feedforward=64,
    fusion_dim=64, fusion_heads=2, visual_width=32, drop_path=0.0, fusion_drop_path=0.0,
)  # fmt: skip
"""Heads of 12 and 24 channels in windows, of 16 in deformable attention: the compiled kernels take all of them."""


def operators_of(graph: bytes) -> set[str]:
    return {node.op_type for node in onnx.load_from_string(graph).graph.node if node.domain == "xpose"}


class Runner:
    """Runs a graph in OpenVINO with our operators."""

    def __init__(self, threads: int, folder: Path | None = None) -> None:
        self._options = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 1}
        if folder is not None:
            self._options["CACHE_DIR"] = str(folder)

    def __call__(self, graph: bytes, inputs: Arrays) -> Sequence[NDArray[np.generic]]:
        core = openvino.core_with_operators()
        results = core.compile_model(core.read_model(graph), "CPU", self._options)(dict(inputs))
        return [results[name] for name in OUTPUTS]


@pytest.fixture(scope="module")
def exported() -> tuple[XPose, bytes]:
    model = random_model(CONFIG)
    return model, export_onnx(model, (72, 104), batch=2, whole_operators=True)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("keypoints", [(17,), (4, 0, 68, 2)])
def test_they_give_pytorch_s_numbers_on_any_number_of_threads(
    exported: tuple[XPose, bytes], threads: int, keypoints: tuple[int, ...]
) -> None:
    model, graph = exported
    assert operators_of(graph) == {"MsDeformAttn", "WindowAttention"}
    inputs = onnx_inputs(model, images_of(2, 72, 104), random_prompts(*keypoints))
    assert_numbers_of_pytorch(model, graph, inputs, Runner(threads))


@pytest.mark.timeout(300)
def test_a_network_from_openvino_s_own_cache_still_has_them(exported: tuple[XPose, bytes], tmp_path: Path) -> None:
    model, graph = exported
    inputs = onnx_inputs(model, images_of(2, 72, 104), random_prompts(3))
    for _ in range(2):
        assert_numbers_of_pytorch(model, graph, inputs, Runner(1, tmp_path))
    assert len(list(tmp_path.glob("*.blob"))) == 1


def test_shapes_that_the_kernels_do_not_take_are_exported_as_standard_operators() -> None:
    config = XPoseConfig(**{**vars(CONFIG), "embed_dim": 32, "heads": 8})  # windows' heads of 16 channels, others' of 8
    assert not operators_of(export_onnx(random_model(config), (64, 64), whole_operators=True))


def test_a_standard_export_after_a_whole_one_is_standard(exported: tuple[XPose, bytes]) -> None:
    with torch.no_grad():
        assert not operators_of(export_onnx(exported[0], (72, 104)))


def test_without_a_compiler_networks_run_in_their_standard_form(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    openvino_operators.operators_library.cache_clear()
    monkeypatch.setattr(openvino_operators, "find_compiler", lambda: None)
    try:
        assert openvino.toolchain(torch.device("cpu"), "fp32")["attention"] == "standard"
        assert "no C++ compiler found" in caplog.text
    finally:
        openvino_operators.operators_library.cache_clear()


def test_a_compiler_that_fails_is_said_with_its_reason(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    openvino_operators.operators_library.cache_clear()
    try:
        assert openvino_operators.operators_library(tmp_path, "0") is None
        assert "libs has no libopenvino.so" in caplog.text
    finally:
        openvino_operators.operators_library.cache_clear()
