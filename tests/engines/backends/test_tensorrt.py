"""The TensorRT backend on a pretended GPU: which device, what it reads, and when.

The fakes stand for the CUDA layer of PyTorch and for a deserialised plan; no number of a network is computed.
"""

import ctypes
import enum
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from engines.backends import tensorrt, tensorrt_api
from engines.backends.slots import IN_FLIGHT, Network, Slot
from engines.backends.tensorrt import OUTPUTS, TensorRTBackend
from engines.errors import BackendError
from engines.export import EngineShape
from engines.preprocess import normalise
from engines.xpose import XPose
from tests.engines.backends.fake_gpu import Cuda, FakeStream, Torch, prepare
from tests.engines.test_build import SHAPE, TINY, prompts

Mode = enum.Enum("Mode", "INPUT OUTPUT")
Type = enum.Enum("Type", "FLOAT HALF BF16 BOOL INT32 INT64")
SIZES = {
    "pixels_b3hw": ((1, 3, *SHAPE.input_hw), Type.FLOAT), "text_cd": ((3, 64), Type.FLOAT),
    "object_valid_c": ((3,), Type.BOOL), "keypoints_ckd": ((3, 4, 64), Type.FLOAT),
    "keypoint_offsets_ck2": ((3, 4, 2), Type.FLOAT), "keypoint_valid_ck": ((3, 4), Type.BOOL),
    "output3": ((1, 4, 4, 2), Type.FLOAT), "output1": ((1, 4, 3), Type.FLOAT),
    "output0": ((1, 4, 4), Type.FLOAT), "output2": ((1, 4), Type.INT64),
}  # fmt: skip
FILLED = {"output0": 0.25, "output1": 2.0, "output2": 1, "output3": 0.5}


class Plan:
    """A deserialised engine that fills its outputs with known numbers, plus the mean of the pixels in the logits."""

    num_io_tensors = len(SIZES)

    def __init__(self, cuda: Cuda) -> None:
        self.cuda, self.made_on, self.masks = cuda, [cuda.current], []

    def get_tensor_name(self, index: int) -> str:
        return list(SIZES)[index]

    def get_tensor_mode(self, name: str) -> Any:
        return Mode.OUTPUT if name.startswith("output") else Mode.INPUT

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return SIZES[name][0]

    def get_tensor_dtype(self, name: str) -> Any:
        return SIZES[name][1]

    def create_execution_context(self) -> Any:
        addresses: dict[str, int] = {}
        dtypes = {Type.FLOAT: np.float32, Type.BOOL: np.bool_, Type.INT64: np.int64}

        def at(name: str) -> Any:
            shape, kind = SIZES[name]
            size = int(np.prod(shape)) * np.dtype(dtypes[kind]).itemsize
            memory = (ctypes.c_char * size).from_address(addresses[name])
            return np.frombuffer(memory, dtypes[kind]).reshape(shape)

        def execute(stream: int) -> bool:
            self.masks.append((at("object_valid_c").copy(), at("keypoint_valid_ck").copy()))
            assert stream == Cuda().Stream.cuda_stream
            self.made_on.append(self.cuda.current)
            for name, number in FILLED.items():
                at(name)[...] = number
            at("output1")[...] += at("pixels_b3hw").mean()
            return True

        def set_address(name: str, address: int) -> bool:
            addresses[name] = address
            return True

        return SimpleNamespace(set_tensor_address=set_address, execute_async_v3=execute)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    fake = Cuda()
    monkeypatch.setattr(tensorrt, "torch", Torch(fake))
    return fake


@pytest.fixture
def plans(cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> list[Plan]:
    made: list[Plan] = []

    class Runtime:
        def __init__(self, logger: Any) -> None: ...

        def deserialize_cuda_engine(self, data: bytes) -> Plan:
            made.append(Plan(cuda))
            return made[-1]

    monkeypatch.setattr(tensorrt, "logger", lambda trt: None)
    fake = SimpleNamespace(Runtime=Runtime, TensorIOMode=Mode, DataType=Type)
    monkeypatch.setattr(tensorrt, "import_tensorrt", lambda: fake)
    return made


class OnGpu(FakeStream):
    """A stream of one of several GPUs; its tensors lie on the host."""

    def __init__(self, cuda: Cuda, index: int) -> None:
        super().__init__()
        self._cuda, self._index = cuda, index

    def queue(self, work: Callable[[], None]) -> None:
        super().queue(lambda: self._there(work))

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        return super().capture(lambda: self._there(run))

    def _there(self, work: Callable[[], None]) -> None:
        with self._cuda.device(torch.device("cuda", self._index)):
            work()


def backend_on(cuda: Cuda, index: int, tmp_path: Path, batch: int = 1) -> TensorRTBackend:
    path = tmp_path / "engine.plan"
    path.write_bytes(b"plan")

    def new_slot(network: Network, batch: int, input_hw: tuple[int, int]) -> Slot:
        return Slot(network, batch, input_hw, OnGpu(cuda, index), prepare)

    shape = EngineShape(SHAPE.input_hw, batch, 3, 4)
    return TensorRTBackend(path, XPose(TINY).eval(), shape, torch.device("cuda", index), new_slot)


def test_nothing_runs_before_there_are_prompts_and_never_on_an_empty_mask(
    cuda: Cuda, plans: list[Plan], tmp_path: Path
) -> None:
    backend = backend_on(cuda, 0, tmp_path)
    assert plans[0].masks == []
    with pytest.raises(BackendError, match="call set_prompts"):
        backend.submit([np.zeros((8, 8, 3), np.uint8)])
    backend.set_prompts(prompts())
    backend.submit([np.zeros((8, 8, 3), np.uint8)]).result()
    assert len(plans[0].masks) > IN_FLIGHT + 1  # each slot warms up and captures, then one frame
    for classes, keypoints in plans[0].masks:
        assert classes.any()
        assert keypoints.any()


def test_outputs_are_found_by_name_in_whatever_order_the_plan_has_them(
    cuda: Cuda, plans: list[Plan], tmp_path: Path
) -> None:
    assert [name for name in SIZES if name in OUTPUTS] != list(OUTPUTS)
    backend = backend_on(cuda, 0, tmp_path)
    backend.set_prompts(prompts())
    (poses,) = backend.submit([np.zeros((*SHAPE.input_hw, 3), np.uint8)]).result()
    black = float(normalise(torch.zeros(1, 1, 1, 3, dtype=torch.uint8)).mean())
    np.testing.assert_allclose(poses.logits_GC, FILLED["output1"] + black, atol=1e-5)
    assert (poses.class_G == FILLED["output2"]).all()
    np.testing.assert_allclose(poses.boxes_G4, FILLED["output0"])
    np.testing.assert_allclose(poses.keypoints_GK2, FILLED["output3"])


def test_engines_on_two_gpus_run_in_one_process_each_on_its_own(cuda: Cuda, plans: list[Plan], tmp_path: Path) -> None:
    backends = [backend_on(cuda, index, tmp_path) for index in (1, 0)]
    for backend in backends:
        backend.set_prompts(prompts())
    for backend in backends:
        backend.submit([np.zeros((8, 8, 3), np.uint8)]).result()
        backend.close()
    assert [set(plan.made_on) for plan in plans] == [{1}, {0}]
    assert cuda.current == 0


def test_calls_in_flight_read_their_own_pictures_and_the_prompts_of_their_time(
    cuda: Cuda, plans: list[Plan], tmp_path: Path
) -> None:
    backend = backend_on(cuda, 0, tmp_path)
    backend.set_prompts(prompts(keypoints=(2, 3)))
    plans[0].masks.clear()
    pending = [backend.submit([np.full((8, 8, 3), level, np.uint8)]) for level in range(2 * IN_FLIGHT)]
    assert not pending[-1].done()
    backend.set_prompts(prompts(keypoints=(4,)))
    pending.append(backend.submit([np.full((8, 8, 3), 200, np.uint8)]))
    logits = [call.result()[0].logits_GC[0, 0] for call in pending]
    assert logits == sorted(logits), "the brighter the picture, the higher the score"
    assert len(set(logits)) == len(logits)
    assert [int(classes.sum()) for classes, _ in plans[0].masks] == [2] * (2 * IN_FLIGHT) + [1]


def test_a_plan_with_other_names_is_refused(
    cuda: Cuda, plans: list[Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SIZES, "output9", SIZES["output1"])
    monkeypatch.delitem(SIZES, "output1")
    monkeypatch.setattr(Plan, "num_io_tensors", len(SIZES))
    with pytest.raises(BackendError, match=r"the plan has .*output9.*, but output0, .* are needed"):
        backend_on(cuda, 0, tmp_path)


def test_tensorrt_s_messages_go_to_logging(caplog: pytest.LogCaptureFixture) -> None:
    severity = enum.Enum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE")

    class ILogger:
        Severity = severity

    messages = tensorrt_api.logger(SimpleNamespace(ILogger=ILogger))  # type: ignore[arg-type]
    with caplog.at_level(logging.DEBUG, logger="engines"):
        for level in severity:
            messages.log(level, "100 % of it")
    assert [record.levelname for record in caplog.records] == ["CRITICAL", "ERROR", "WARNING", "INFO", "DEBUG"]
    assert {record.name for record in caplog.records} == {"engines.backends.tensorrt_api"}
    assert caplog.records[0].getMessage() == "100 % of it"
