"""Compiled engines are kept only if they agree with PyTorch."""

import copy
import dataclasses
import functools
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from engines import build, parity
from engines.backends import Backend, FinishedPoses, openvino
from engines.backends.choose import OpenedBackend, open_backend
from engines.backends.eager import EagerBackend
from engines.backends.fitted import FittedBackend
from engines.backends.openvino import OpenVinoBackend, runs_side_by_side
from engines.build import BuildRequest, build_engine
from engines.engine_cache import CachedEngine, EngineCache
from engines.errors import BackendError, EngineCacheError, InputError
from engines.export import Detector, EngineShape, detector_inputs, export
from engines.onnx_export import export_onnx
from engines.prompt_tensors import PromptTensors
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


def request_for(backend: str = "openvino", precision: str = "fp32") -> BuildRequest:
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

    def opened(request: BuildRequest, cached: object, model: XPose, side_by_side: bool) -> ShiftedBackend:
        return ShiftedBackend(EagerBackend(model, request.shape.input_hw, 1, "fp32", CPU), shift)

    monkeypatch.setattr(build, "export_onnx", lambda model, input_hw, whole_operators: b"compiled")
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


@pytest.fixture
def noise(monkeypatch: pytest.MonkeyPatch) -> list[NDArray[np.uint8]]:
    """The gate's images: under random weights, the cells of a smooth scene would have scores that are all but equal."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*SHAPE.input_hw, 3), dtype=np.uint8) for _ in range(3)]
    monkeypatch.setattr(parity, "bundled_images", lambda: images)
    return images


def test_openvino_engine_passes_its_gate_and_follows_the_prompts(
    model: XPose, tmp_path: Path, noise: list[NDArray[np.uint8]]
) -> None:
    """The whole way from the network to poses, with prompts of several sizes and no rebuild."""
    cache = EngineCache(tmp_path)
    steps: list[str] = []
    built = build_engine(model, prompts(), request_for(), cache, steps.append)
    assert built.manifest["figures"]["parity_groups"] >= 3
    assert steps == ["exporting the network", "comparing with PyTorch"]
    name, compiled, precision = open_backend("auto", model, request_for(), cache, eager=pytest.fail)
    assert (name, precision) == ("openvino", "fp32")
    eager = EagerBackend(copy.deepcopy(model), SHAPE.input_hw, 1, "fp32", CPU)
    for seed, keypoints in enumerate([(2, 3), (1,), (4, 1, 2)], start=5):
        figures = parity.measure(eager, compiled, prompts(seed, keypoints), noise)
        parity.check(figures, "fp32")
    compiled.close()


class RoundedBackend(ShiftedBackend):
    """Eager in place of OpenVINO; it errs by `shifts` of the precision that it is opened in."""

    opened: ClassVar[list[str]] = []

    def __init__(
        self,
        path: Path,
        model: XPose,
        shape: EngineShape,
        precision: str,
        side_by_side: bool,
        shifts: dict[str, float],
    ) -> None:
        super().__init__(EagerBackend(model, shape.input_hw, 1, "fp32", CPU), shifts[precision])
        self.opened.append(precision)


@pytest.mark.parametrize(
    ("fast", "shift_bf16", "chosen"), [(True, 0.003, "bf16"), (True, 0.02, "fp32"), (False, 0.0, "fp32")]
)
def test_an_engine_computes_in_bf16_where_the_processor_is_fast_in_it_and_the_gate_allows_it(
    fast: bool, shift_bf16: float, chosen: str, model: XPose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0.003 of 128 px is 0.38 px, as bf16 errs; 0.02 is 2.6 px."""
    shifts = {"fp32": 0.0, "bf16": shift_bf16}
    monkeypatch.setattr(openvino, "is_fast_in_bfloat16", lambda: fast)
    monkeypatch.setattr(openvino, "OpenVinoBackend", functools.partial(RoundedBackend, shifts=shifts))
    cache = EngineCache(tmp_path)
    request = request_for(precision="auto")
    built = build_engine(model, prompts(), request, cache)
    assert built.manifest["figures"]["precision"] == chosen
    assert f"in {chosen}: " in built.describe()
    RoundedBackend.opened.clear()
    _, backend, precision = open_backend("auto", model, request, cache, pytest.fail)
    backend.close()
    assert (precision, RoundedBackend.opened) == (chosen, [chosen])


def test_bf16_does_not_excuse_a_network_that_is_wrong_in_fp32(
    model: XPose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its limits are wide; the same file must be right in fp32 first."""
    shifts = {"fp32": 0.003, "bf16": 0.003}
    monkeypatch.setattr(openvino, "is_fast_in_bfloat16", lambda: True)
    monkeypatch.setattr(openvino, "OpenVinoBackend", functools.partial(RoundedBackend, shifts=shifts))
    for precision in ("auto", "bf16"):
        with pytest.raises(EngineCacheError, match="by more than fp32 may"):
            build_engine(model, prompts(), request_for(precision=precision), EngineCache(tmp_path))


@pytest.mark.timeout(120)
def test_images_side_by_side_keep_their_own_results_and_prompts(
    model: XPose, tmp_path: Path, noise: list[NDArray[np.uint8]]
) -> None:
    path = tmp_path / "engine.onnx"
    path.write_bytes(export_onnx(copy.deepcopy(model).requires_grad_(False), SHAPE.input_hw))
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        compiled = OpenVinoBackend(path, model, SHAPE, "fp32")
    finally:
        torch.set_num_threads(threads)
    assert (compiled.batch, compiled.in_flight) == (1, 2)
    alone = {}
    for seed in (1, 2):
        compiled.set_prompts(prompts(seed))
        alone[seed] = [compiled.submit([image]).result()[0].keypoints_GK2 for image in noise]
    in_flight = []
    for seed, index in [(1, 0), (2, 1), (1, 2), (2, 0), (1, 1)] * 3:
        compiled.set_prompts(prompts(seed))
        in_flight.append((seed, index, compiled.submit([noise[index]])))
    for seed, index, pending in reversed(in_flight):
        np.testing.assert_allclose(pending.result()[0].keypoints_GK2, alone[seed][index], atol=1e-5)
        assert pending.done()
    with pytest.raises(InputError, match="needed is RGB"):
        compiled.submit([np.zeros((4, 4), np.uint8)]).result()
    compiled.close()


def test_large_inputs_run_one_at_a_time_on_all_threads() -> None:
    assert runs_side_by_side((512, 512))
    assert not runs_side_by_side((513, 512))


def test_openvino_is_refused_where_it_cannot_serve(
    model: XPose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "engine.onnx"
    broken.write_bytes(b"no network")
    with pytest.raises(BackendError, match=r"does not accept .*--backend eager"):
        OpenVinoBackend(broken, model, SHAPE, "fp32")
    with pytest.raises(BackendError, match=r"fp32.* on this processor, not in fp16"):
        request_for(precision="fp16").key(model)
    with monkeypatch.context() as patch:
        patch.setattr(openvino, "is_fast_in_bfloat16", lambda: False)
        with pytest.raises(BackendError, match="in fp32 on this processor, not in bf16"):
            request_for(precision="bf16").key(model)
    with pytest.raises(BackendError, match="runs on CPUs"):
        dataclasses.replace(request_for(), device=torch.device("cuda")).key(model)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(BackendError, match="pip install openvino"):
        request_for().key(model)


def test_signal_after_networks_were_closed_does_not_end_the_process(tmp_path: Path) -> None:
    """A core of OpenVINO leaves a stack for signals behind that may be unmapped; in a process of its own."""
    script = """
        import signal, sys
        from pathlib import Path
        from engines.backends.openvino import _Requests, import_openvino
        openvino, path = import_openvino(), Path(sys.argv[1])
        taken = openvino.opset13.parameter([2])
        openvino.save_model(openvino.Model([openvino.opset13.relu(taken)], [taken]), path)
        networks = [_Requests(path, "fp32", 1, 1) for _ in range(2)]
        del networks[0]
        del networks[0]
        signal.signal(signal.SIGTERM, lambda *_: None)
        signal.raise_signal(signal.SIGTERM)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "network.xml")]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


def test_first_requests_of_two_threads_do_not_wait_for_each_other() -> None:
    """OpenVINO fills tables on first use, and lets other threads run meanwhile; in a process of its own."""
    script = """
        import sys, threading
        import numpy as np
        from engines.backends.openvino import core, import_openvino
        openvino = import_openvino()
        core()
        sys.setswitchinterval(1e-6)
        ready = threading.Barrier(4)
        def ask():
            ready.wait()
            openvino.Type.f32.to_dtype()
            openvino.Tensor(np.zeros(1, np.float32), shared_memory=True)
        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False, timeout=60)  # not for ever
    assert done.returncode == 0


def test_several_processes_do_not_share_one_core(tmp_path: Path) -> None:
    """Pinned threads of every process would be on the first cores."""
    library, path = openvino.import_openvino(), tmp_path / "network.xml"
    taken = library.opset13.parameter([2])
    library.save_model(library.Model([library.opset13.relu(taken)], [taken]), path)
    requests = openvino._Requests(path, "fp32", 1, 1)
    assert not requests._free.get().get_compiled_model().get_property("ENABLE_CPU_PINNING")


def test_openvino_has_nothing_to_report_its_use_with() -> None:
    """Its converters would; in a process of its own, since other tests may have imported it."""
    script = """
        import sys
        from engines.backends.openvino import import_openvino
        import_openvino().Core()
        assert sys.modules["openvino_telemetry"] is None
        from openvino.tools.ovc import telemetry_utils
        assert telemetry_utils.tm.__name__.endswith("telemetry_stub")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], stderr=subprocess.PIPE, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_a_small_engine_that_is_missing_is_built_on_first_use(
    model: XPose, tmp_path: Path, noise: list[NDArray[np.uint8]], caplog: pytest.LogCaptureFixture
) -> None:
    cache = EngineCache(tmp_path)
    builds = []

    def build_missing(request: BuildRequest) -> CachedEngine:
        builds.append(request.backend)
        return build_engine(model, prompts(), request, cache)

    for _ in range(2):
        with caplog.at_level("INFO"):
            name, compiled, _ = open_backend("auto", model, request_for(), cache, pytest.fail, build_missing)
        compiled.close()
        assert name == "openvino"
    assert builds == ["openvino"]
    assert caplog.text.count("building the engine of nano for this processor, which is done once") == 1
    large = dataclasses.replace(request_for(), shape=dataclasses.replace(SHAPE, input_hw=(544, 512)))
    with pytest.raises(EngineCacheError, match=r"build-engine --backend openvino .*--size 544x512"):
        open_backend("openvino", model, large, cache, pytest.fail, build_missing)


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
    backend = EagerBackend(copy.deepcopy(model), SHAPE.input_hw, 1, "fp32", CPU)
    eager = OpenedBackend("eager", backend, "fp32")
    with caplog.at_level("INFO"):
        opened = open_backend("auto", model, request_for(), EngineCache(tmp_path), lambda: eager)
    assert opened is eager
    assert "tensorrt: " in caplog.text
    (warning,) = (record for record in caplog.records if record.levelname == "WARNING")
    assert "no openvino engine for this configuration" in warning.getMessage()
    assert "python run_pipeline.py build-engine --backend openvino --model nano" in warning.getMessage()


def test_engine_that_was_asked_for_and_is_not_built_names_the_command(model: XPose, tmp_path: Path) -> None:
    with pytest.raises(EngineCacheError, match="build-engine --backend openvino"):
        open_backend("openvino", model, request_for(), EngineCache(tmp_path), eager=pytest.fail)


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
    pytest.importorskip("torch_tensorrt", reason="TensorRT is not installed")
    shape = dataclasses.replace(SHAPE, max_classes=4, max_keypoints=17)  # TensorRT's engines have these sizes
    request = dataclasses.replace(request_for("tensorrt", precision), shape=shape, device=torch.device("cuda"))
    cache = EngineCache(tmp_path)
    build_engine(model, prompts(), request, cache)
    name, compiled, _ = open_backend("tensorrt", copy.deepcopy(model), request, cache, eager=pytest.fail)
    assert name == "tensorrt"
    images = parity.bundled_images()
    assert isinstance(compiled, FittedBackend)
    compiled.make_room(prompts(1))
    compiled.set_prompts(prompts(1))
    alone = [compiled.submit([image]).result()[0] for image in images]
    under_way = [compiled.submit([image]) for image in images * 2]  # more than there are slots
    for raw, expected in zip((poses.result()[0] for poses in under_way), alone * 2, strict=True):
        np.testing.assert_array_equal(raw.boxes_G4, expected.boxes_G4)
    compiled.make_room(prompts(2))
    compiled.set_prompts(prompts(2))
    assert not np.array_equal(compiled.submit([images[0]]).result()[0].boxes_G4, alone[0].boxes_G4)
    compiled.close()
