"""The ONNX file gives PyTorch's numbers in ONNX Runtime and in OpenVINO, for any number of prompts."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from engines.backends.openvino import core
from engines.checkpoint import load_weights
from engines.config import EngineConfig
from engines.engine import export_onnx
from engines.errors import InputError, PromptError
from engines.export import Detector
from engines.onnx_export import OUTPUTS, OnnxInputs, onnx_inputs
from engines.onnx_export import export_onnx as export_graph
from engines.preprocess import normalise
from engines.prompt_tensors import PromptTensors
from engines.prompts import parse_prompt
from engines.xpose import XPose, XPoseConfig

Arrays = Mapping[str, NDArray[np.generic]]
Runner = Callable[[bytes, Arrays], Sequence[NDArray[np.generic]]]

CONFIGS = {
    "two levels": XPoseConfig(
        embed_dim=32, depths=(1, 2), num_heads=(2, 4), window=4, level_stages=(1,), hidden_dim=64, heads=2,
        encoder_layers=1, decoder_layers=3, box_layers=1, queries=12, groups=4, feedforward=64, text_feedforward=64,
        fusion_dim=64, fusion_heads=2, visual_width=32, drop_path=0.0, fusion_drop_path=0.0,
    ),
    "four levels": XPoseConfig(
        embed_dim=24, depths=(1, 1, 1, 1), num_heads=(1, 2, 3, 4), window=7, level_stages=(1, 2, 3), hidden_dim=32,
        heads=4, points=2, encoder_layers=2, decoder_layers=4, box_layers=2, queries=20, groups=5, feedforward=48,
        text_feedforward=48, fusion_dim=32, fusion_heads=4, visual_width=32, drop_path=0.0, fusion_drop_path=0.0,
    ),
    "convolutions": XPoseConfig(
        backbone="efficientnet_lite0", hidden_dim=32, heads=2, encoder_layers=1, decoder_layers=3, box_layers=1,
        queries=12, groups=4, feedforward=48, text_feedforward=48, fusion_dim=32, fusion_heads=2, visual_width=32,
        fusion_drop_path=0.0,
    ),
}  # fmt: skip


def run_onnxruntime(graph: bytes, inputs: Arrays) -> Sequence[NDArray[np.generic]]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return session.run(list(OUTPUTS), dict(inputs))  # type: ignore[no-any-return]


def run_openvino(graph: bytes, inputs: Arrays) -> Sequence[NDArray[np.generic]]:
    options = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = core().compile_model(core().read_model(graph), "CPU", options)
    results = compiled(dict(inputs))
    return [results[name] for name in OUTPUTS]


RUNNERS = {"onnxruntime": run_onnxruntime, "openvino": run_openvino}


def random_model(config: XPoseConfig) -> XPose:
    torch.manual_seed(11)
    model = XPose(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.05)
    return model


def random_prompts(*keypoints: int) -> PromptTensors:
    """One class per number, with that many keypoints; a class with none is not asked for."""
    generator = torch.Generator().manual_seed(sum(keypoints))
    counts_C1 = torch.tensor(keypoints)[:, None]
    slots = int(counts_C1.max())
    return PromptTensors(
        objects_C512=torch.randn(len(keypoints), 512, generator=generator),
        object_valid_C=counts_C1[:, 0] > 0,
        keypoints_CK512=torch.randn(len(keypoints), slots, 512, generator=generator),
        keypoint_valid_CK=torch.arange(slots) < counts_C1,
    )


def as_arrays(inputs: OnnxInputs) -> dict[str, NDArray[np.generic]]:
    return {name: np.ascontiguousarray(tensor.numpy()) for name, tensor in inputs._asdict().items()}


def assert_numbers_of_pytorch(model: XPose, graph: bytes, inputs: OnnxInputs, run: Runner) -> None:
    with torch.no_grad():
        expected = Detector(model)(normalise(inputs.images_BHW3), *inputs[1:])
    for name, got, wanted in zip(OUTPUTS, run(graph, as_arrays(inputs)), expected, strict=True):
        np.testing.assert_allclose(got, wanted.numpy(), rtol=1e-4, atol=1e-4, err_msg=name)


def images_of(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, (*shape, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module", params=CONFIGS)
def exported(request: pytest.FixtureRequest) -> tuple[XPose, bytes]:
    model = random_model(CONFIGS[request.param])
    return model, export_graph(model, (72, 104), batch=2)


@pytest.mark.parametrize("runtime", RUNNERS)
@pytest.mark.parametrize("keypoints", [(1,), (17,), (4, 0, 68, 2)])
def test_small_networks_give_pytorch_s_numbers_whatever_the_prompts(
    exported: tuple[XPose, bytes], runtime: str, keypoints: tuple[int, ...]
) -> None:
    model, graph = exported
    inputs = onnx_inputs(model, images_of(2, 72, 104), random_prompts(*keypoints))
    assert_numbers_of_pytorch(model, graph, inputs, RUNNERS[runtime])


def test_the_graph_is_standard_onnx(exported: tuple[XPose, bytes]) -> None:
    graph = onnx.load_from_string(exported[1])
    onnx.checker.check_model(graph, full_check=True)
    assert {node.domain for node in graph.graph.node} == {""}
    assert [(opset.domain, opset.version) for opset in graph.opset_import] == [("", 18)]
    assert "GridSample" in {node.op_type for node in graph.graph.node}


def test_nano_runs_from_its_files_alone(tmp_path: Path) -> None:
    """What a program without Python does: it reads the three files and knows nothing else."""
    classes = parse_prompt("person", max_classes=8, max_keypoints=68)
    config = EngineConfig(size=(96, 128))
    path, description_path, prompts_path = export_onnx(config, tmp_path / "nano.onnx", classes)
    description = json.loads(description_path.read_text())
    batch, height, width, _ = description["inputs"]["images_BHW3"]["shape"]
    images_BHW3 = images_of(batch, height, width)
    assert description["prompts"]["file"] == prompts_path.name
    with np.load(prompts_path) as prompts:
        arrays = {"images_BHW3": images_BHW3.numpy(), **prompts}
    assert list(arrays) == list(description["inputs"])
    for name, array in arrays.items():
        declared = description["inputs"][name]
        sizes = {"classes": 1, "keypoints": len(description["prompts"]["classes"][0]["keypoints"])}
        assert array.dtype == declared["dtype"]
        assert list(array.shape) == [sizes.get(side, side) for side in declared["shape"]]
    assert list(description["outputs"]) == list(OUTPUTS)
    model = load_weights("nano")[0].eval().requires_grad_(False)
    inputs = OnnxInputs(**{name: torch.from_numpy(array) for name, array in arrays.items()})
    for run in RUNNERS.values():
        assert_numbers_of_pytorch(model, path.read_bytes(), inputs, run)


def test_what_cannot_be_exported_is_said_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ends in \.onnx"):
        export_onnx(EngineConfig(size=(64, 64)), tmp_path / "nano.bin")
    with pytest.raises(InputError, match="leave both at their defaults"):
        export_onnx(EngineConfig(precision="fp16"), tmp_path / "nano.onnx")
    with pytest.raises(PromptError, match="not trained on"):
        export_onnx(EngineConfig(), tmp_path / "nano.onnx", parse_prompt("cat", max_classes=8, max_keypoints=68))
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="cannot write"):
        export_onnx(EngineConfig(size=(64, 64)), tmp_path / "absent" / "nano.onnx")
