"""Engines are compiled from one exported program, and kept only if they agree with PyTorch."""

import copy
import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from engines import build, parity
from engines.backends import Backend, FinishedPoses, inductor
from engines.backends.choose import open_backend
from engines.backends.eager import EagerBackend
from engines.build import BuildRequest, build_engine
from engines.engine_cache import EngineCache
from engines.errors import BackendError, EngineCacheError
from engines.export import Detector, EngineShape, detector_inputs, export
from engines.prompts import PromptTensors
from engines.xpose import XPose, XPoseConfig

SHAPE = EngineShape(input_hw=(96, 128), batch=1, max_classes=3, max_keypoints=4)
CPU = torch.device("cpu")
TINY = XPoseConfig(
    embed_dim=16, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2), window=4, level_stages=(2, 3), hidden_dim=64, heads=2,
    encoder_layers=1, decoder_layers=2, box_layers=1, queries=12, groups=4, feedforward=64, text_feedforward=64,
    text_heads=2, fusion_dim=64, fusion_heads=2, visual_width=64, input_hw=SHAPE.input_hw,
)  # fmt: skip


@pytest.fixture(scope="module")
def model() -> XPose:
    torch.manual_seed(0)
    model = XPose(TINY).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("layers.2.weight"):  # the heads start at zero, which would hide every error before them
            torch.nn.init.normal_(parameter, std=0.05)
    return model


def prompts(seed: int = 0, keypoints: tuple[int, ...] = (2, 3)) -> PromptTensors:
    """As many classes as there are numbers of keypoints, in a capacity of three and four."""
    generator = torch.Generator().manual_seed(seed)
    counts_C1 = torch.tensor([*keypoints, 0, 0, 0])[:3, None]
    return PromptTensors(
        objects_C512=torch.randn(3, 512, generator=generator),
        object_valid_C=counts_C1[:, 0] > 0,
        keypoints_CK512=torch.randn(3, 4, 512, generator=generator),
        keypoint_valid_CK=torch.arange(4) < counts_C1,
    )


def request_for(backend: str = "inductor", precision: str = "fp32") -> BuildRequest:
    return BuildRequest(backend, "nano", SHAPE, precision, CPU)


class ShiftedBackend:
    """Eager, with every coordinate moved to the right."""

    def __init__(self, backend: Backend, shift: float) -> None:
        self._backend, self._shift = backend, shift
        self.input_hw, self.batch, self.in_flight = backend.input_hw, backend.batch, 1

    def set_prompts(self, prompts: PromptTensors) -> None:
        self._backend.set_prompts(prompts)

    def submit(self, images: list[NDArray[np.uint8]]) -> FinishedPoses:
        shift = np.array([self._shift, 0], np.float32)
        poses = [
            dataclasses.replace(
                raw,
                boxes_G4=raw.boxes_G4 + np.concatenate((shift, [0, 0])).astype(np.float32),
                keypoints_GK2=raw.keypoints_GK2 + shift,
            )
            for raw in self._backend.submit(images).result()
        ]
        return FinishedPoses(poses)

    def close(self) -> None:
        self._backend.close()


def stand_in(monkeypatch: pytest.MonkeyPatch, shift: float) -> None:
    """Put a shifted eager network in place of the compiler and of what it makes."""

    def opened(request: BuildRequest, cached: object, model: XPose) -> ShiftedBackend:
        return ShiftedBackend(EagerBackend(model, request.shape.input_hw, 1, "fp32", CPU), shift)

    monkeypatch.setattr(inductor, "compile_program", lambda program, path: path.write_bytes(b"compiled"))
    monkeypatch.setattr(build, "open_engine", opened)


def test_program_gives_the_network_s_numbers_and_takes_prompts_as_inputs(model: XPose) -> None:
    program = export(copy.deepcopy(model), SHAPE, "fp32").module()
    pixels = torch.randn(1, 3, *SHAPE.input_hw, generator=torch.Generator().manual_seed(3))
    boxes = []
    for seed in (1, 2):
        inputs = detector_inputs(model, pixels, prompts(seed))
        with torch.inference_mode():
            for got, expected in zip(program(*inputs), Detector(model)(*inputs), strict=True):
                torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
            boxes.append(program(*inputs)[0])
    assert not torch.allclose(boxes[0], boxes[1], atol=1e-3)


@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # torch's own, inside its compiler
def test_compiled_engine_passes_its_gate_and_runs(
    model: XPose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way through AOTInductor, from the network to detections, with a prompt swap and no rebuild.

    On noise, since a network with random weights gives the cells of a smooth scene scores that are all but equal.
    """
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (*SHAPE.input_hw, 3), dtype=np.uint8) for _ in range(3)]
    monkeypatch.setattr(parity, "bundled_images", lambda: noise)
    cache = EngineCache(tmp_path)
    steps: list[str] = []
    built = build_engine(model, prompts(), request_for(), cache, steps.append)
    assert built.manifest["figures"]["parity_groups"] >= 3
    assert steps == ["tracing the network", "compiling with inductor", "comparing with PyTorch"]
    name, compiled = open_backend("auto", model, request_for(), cache, eager=pytest.fail)
    assert name == "inductor"
    eager = EagerBackend(copy.deepcopy(model), SHAPE.input_hw, 1, "fp32", CPU)
    for seed, keypoints in enumerate([(2, 3), (1,), (4, 1, 2)], start=5):
        figures = parity.measure(eager, compiled, prompts(seed, keypoints), parity.bundled_images())
        parity.check(figures, "fp32")
    check_side_by_side(compiled, noise)
    compiled.close()


def check_side_by_side(compiled: Backend, images: list[NDArray[np.uint8]]) -> None:
    """Images that run at a time, a thread each, get what each gets alone on one thread."""
    images = images[: compiled.batch]
    together = compiled.submit(images).result()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = [poses for image in images for poses in compiled.submit([image]).result()]
    finally:
        torch.set_num_threads(threads)
    for got, expected in zip(together, alone, strict=True):
        np.testing.assert_array_equal(got.class_G, expected.class_G)
        np.testing.assert_array_equal(got.keypoints_GK2, expected.keypoints_GK2)


@pytest.mark.parametrize(
    ("compiler", "message"), [("no-such-compiler", "need a C\\+\\+ compiler"), ("false", "could not make")]
)
def test_a_package_without_a_working_compiler_is_an_error_that_names_the_way_out(
    compiler: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", compiler)
    inductor._package_class.cache_clear()
    with pytest.raises(BackendError, match=rf"{message}.*--backend eager"):
        inductor.load_package(Path("engine.pt2"))


def test_shifted_engine_fails_the_gate_and_leaves_no_plan(
    model: XPose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch, shift=0.01)  # 1.28 px of 128
    with pytest.raises(EngineCacheError, match=r"p99_px is 1\.28, allowed is"):
        build_engine(model, prompts(), request_for(), EngineCache(tmp_path))
    assert not [path for path in tmp_path.rglob("*") if path.suffix != ".lock"]


def test_equal_engine_passes_the_gate_with_its_figures_in_the_manifest(
    model: XPose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch, shift=0.0)
    figures = build_engine(model, prompts(), request_for(), EngineCache(tmp_path)).manifest["figures"]
    assert figures["parity_max_px"] < 1e-3
    assert figures["parity_groups"] >= 3


def test_auto_falls_back_to_eager_and_says_why(model: XPose, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    eager = EagerBackend(copy.deepcopy(model), SHAPE.input_hw, 1, "fp32", CPU)
    with caplog.at_level("INFO"):
        name, backend = open_backend("auto", model, request_for(), EngineCache(tmp_path), lambda: eager)
    assert (name, backend) == ("eager", eager)
    assert "tensorrt: " in caplog.text
    (warning,) = (record for record in caplog.records if record.levelname == "WARNING")
    assert "no inductor engine for this configuration" in warning.getMessage()
    assert "python run_pipeline.py build-engine --backend inductor --model nano" in warning.getMessage()


def test_engine_that_was_asked_for_and_is_not_built_names_the_command(model: XPose, tmp_path: Path) -> None:
    with pytest.raises(EngineCacheError, match="build-engine --backend inductor"):
        open_backend("inductor", model, request_for(), EngineCache(tmp_path), eager=pytest.fail)


def test_building_without_tensorrt_says_what_to_install(
    model: XPose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(BackendError, match="pip install torch-tensorrt"):
        build_engine(model, prompts(), request_for("tensorrt", "fp16"), EngineCache(tmp_path))


def test_key_changes_with_a_single_weight(model: XPose) -> None:
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.transformer.tgt_embed.weight[0, 0] += 1e-3
    assert request_for().key(model).digest() != request_for().key(other).digest()
    assert request_for().key(model).digest() == request_for().key(copy.deepcopy(model)).digest()


@pytest.mark.gpu
@pytest.mark.timeout(900)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_tensorrt_plan_passes_its_gate_and_keeps_frames_in_flight_apart(
    model: XPose, tmp_path: Path, precision: str
) -> None:
    request = dataclasses.replace(request_for("tensorrt", precision), device=torch.device("cuda"))
    cache = EngineCache(tmp_path)
    build_engine(model, prompts(), request, cache)
    name, compiled = open_backend("tensorrt", copy.deepcopy(model), request, cache, eager=pytest.fail)
    assert name == "tensorrt"
    images = parity.bundled_images()
    compiled.set_prompts(prompts(1))
    alone = [compiled.submit([image]).result()[0] for image in images]
    under_way = [compiled.submit([image]) for image in images * 2]  # more than there are slots
    for raw, expected in zip((poses.result()[0] for poses in under_way), alone * 2, strict=True):
        np.testing.assert_array_equal(raw.boxes_G4, expected.boxes_G4)
    compiled.set_prompts(prompts(2))
    assert not np.array_equal(compiled.submit([images[0]]).result()[0].boxes_G4, alone[0].boxes_G4)
    compiled.close()
