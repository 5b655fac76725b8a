"""Slots and CUDA graphs without a GPU: a fake stream runs what was queued when somebody waits, and not before."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from engines import engine
from engines.backends import RawPoses, slots
from engines.backends.cuda_graph import CudaGraphBackend
from engines.backends.eager import EagerBackend
from engines.backends.slots import IN_FLIGHT, CudaStream, Slot, tensors_read_by
from engines.checkpoint import load_weights
from engines.errors import BackendError
from engines.nv12 import BT709, Nv12
from engines.prompt_tensors import PromptTensors
from engines.xpose import XPose, XPoseConfig
from tests.engines.backends.fake_gpu import Cuda, FakeStream, Torch, prepare

INPUT_HW = (64, 96)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The network is small: a second thread costs more than it gains where other processes use the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def streams() -> list[FakeStream]:
    return []


@pytest.fixture
def backend(streams: list[FakeStream]) -> CudaGraphBackend:
    def new_slot(network: Callable[[Tensor], Sequence[Tensor]], batch: int, input_hw: tuple[int, int]) -> Slot:
        streams.append(FakeStream())
        return Slot(network, batch, input_hw, streams[-1], prepare)

    return CudaGraphBackend(_model(), INPUT_HW, 2, "fp32", torch.device("cpu"), new_slot)


def _model() -> XPose:
    torch.manual_seed(0)
    return XPose(XPoseConfig.nano()).eval()


@functools.cache
def _eager() -> EagerBackend:
    return EagerBackend(_model(), INPUT_HW, 1, "fp32", torch.device("cpu"))


def _prompts(seed: int, classes: int = 1, keypoints: int = 5) -> PromptTensors:
    draw = torch.Generator().manual_seed(seed)
    return PromptTensors(
        objects_C512=torch.randn(classes, 512, generator=draw),
        object_valid_C=torch.ones(classes, dtype=torch.bool),
        keypoints_CK512=torch.randn(classes, keypoints, 512, generator=draw),
        keypoint_valid_CK=torch.ones(classes, keypoints, dtype=torch.bool),
    )


def _images(count: int) -> list[NDArray[np.uint8]]:
    """Pictures of different sizes, each larger than the one before."""
    draw = np.random.default_rng(0)
    return [draw.integers(0, 256, (40 + 7 * i, 50 + 11 * i, 3), dtype=np.uint8) for i in range(count)]


def _expected(prompts: PromptTensors, image: NDArray[np.uint8]) -> RawPoses:
    _eager().set_prompts(prompts)
    (poses,) = _eager().submit([image]).result()
    return poses


def _assert_same(got: RawPoses, expected: RawPoses) -> None:
    for field in ("logits_GC", "class_G", "boxes_G4", "keypoints_GK2"):
        np.testing.assert_allclose(getattr(got, field), getattr(expected, field), rtol=1e-4, atol=1e-5)


def test_submit_computes_nothing_before_somebody_waits(backend: CudaGraphBackend, streams: list[FakeStream]) -> None:
    backend.set_prompts(_prompts(1))
    pending = backend.submit(_images(1))
    assert [len(stream.waiting) for stream in streams] == [1, 0, 0]
    assert not pending.done()
    (poses,) = pending.result()
    assert pending.done()
    _assert_same(poses, _expected(_prompts(1), _images(1)[0]))


def test_calls_in_flight_keep_their_own_pictures(backend: CudaGraphBackend) -> None:
    """More calls than slots: a slot gives its result up before it takes the next call."""
    backend.set_prompts(_prompts(1))
    images = _images(2 * IN_FLIGHT)
    pending = [backend.submit([image]) for image in images]
    for image, take in zip(images, pending, strict=True):
        (poses,) = take.result()
        _assert_same(poses, _expected(_prompts(1), image))
        assert take.result()[0] is poses, "a result is the same each time"


def test_a_call_gives_one_result_per_image(backend: CudaGraphBackend) -> None:
    backend.set_prompts(_prompts(1))
    images = _images(2)
    for got, image in zip(backend.submit(images).result(), images, strict=True):
        _assert_same(got, _expected(_prompts(1), image))
    assert len(backend.submit(images[:1]).result()) == 1


def test_nv12_goes_to_the_gpu_as_it_is_beside_rgb_of_other_sizes(backend: CudaGraphBackend) -> None:
    """Half the bytes of RGB; the colours reach the kernel, which the fake one takes for grey."""
    backend.set_prompts(_prompts(1))
    luma, rgb_HW3 = np.random.default_rng(1).integers(0, 256, (48, 70), dtype=np.uint8), _images(3)[2]
    planes = np.concatenate([luma, np.full((24, 70), 128, np.uint8)])
    grey_HW3 = luma[..., None].repeat(3, axis=-1)
    got = [*backend.submit([Nv12(planes, BT709), rgb_HW3]).result(), *backend.submit([rgb_HW3]).result()]
    for poses, image in zip(got, (grey_HW3, rgb_HW3, rgb_HW3), strict=True):
        _assert_same(poses, _expected(_prompts(1), image))


def test_prompts_of_the_same_number_are_swapped_between_two_calls_without_a_capture(
    backend: CudaGraphBackend, streams: list[FakeStream]
) -> None:
    (image,) = _images(1)
    backend.set_prompts(_prompts(1))
    before = backend.submit([image])
    backend.set_prompts(_prompts(2))
    after = backend.submit([image])
    assert len(streams) == IN_FLIGHT
    _assert_same(before.result()[0], _expected(_prompts(1), image))
    _assert_same(after.result()[0], _expected(_prompts(2), image))


def test_prompts_of_another_number_capture_again(backend: CudaGraphBackend, streams: list[FakeStream]) -> None:
    (image,) = _images(1)
    backend.set_prompts(_prompts(1))
    before = backend.submit([image])
    backend.set_prompts(_prompts(2, classes=2, keypoints=7))
    assert len(streams) == 2 * IN_FLIGHT
    _assert_same(backend.submit([image]).result()[0], _expected(_prompts(2, classes=2, keypoints=7), image))
    _assert_same(before.result()[0], _expected(_prompts(1), image))


def test_without_prompts_there_is_an_error_and_after_close_too(backend: CudaGraphBackend) -> None:
    with pytest.raises(BackendError, match="set_prompts"):
        backend.submit(_images(1))
    backend.set_prompts(_prompts(1))
    pending = backend.submit(_images(1))
    backend.close()
    assert len(pending.result()) == 1, "a call in flight still gives its result"
    with pytest.raises(BackendError, match="set_prompts"):
        backend.submit(_images(1))


def test_tf32_is_off_for_the_graphs_too() -> None:
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    CudaGraphBackend(_model(), INPUT_HW, 1, "fp32", torch.device("cpu"), lambda *network: pytest.fail("no prompts yet"))
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


def test_what_a_graph_reads_from_outside_is_known() -> None:
    weight, cache = torch.rand(3, 3), {}

    def run() -> Tensor:
        if "bias" not in cache:
            cache["bias"] = torch.rand(3)
        return (torch.ones(2, 3) @ weight.T + cache["bias"]).relu()

    run()
    reads = {tensor.untyped_storage().data_ptr() for tensor in tensors_read_by(run)}
    assert reads == {weight.data_ptr(), cache["bias"].data_ptr()}


def test_a_slot_keeps_what_its_graph_reads_when_the_networks_cache_drops_it() -> None:
    """The geometry of an input size lives in a cache of four sizes; a graph reads it by address."""
    model = _model()
    prompts = model.encode_prompts(torch.randn(1, 1, 512), torch.randn(1, 5, 512))

    def network(pixels_B3HW: Tensor) -> Sequence[Tensor]:
        output = model.detect(pixels_B3HW, prompts)
        return output.boxes_BG4, output.logits_BGC, output.class_BG, output.keypoints_BGK2

    with torch.inference_mode():
        slot = Slot(network, 1, INPUT_HW, FakeStream(), prepare)
        kept = {id(tensor.untyped_storage()) for tensor in slot._reads}
        sizes = {tensor.shape for tensor in slot._reads}
    assert len(kept) > len(list(model.parameters())) / 2
    assert any(shape[-1:] == (model.config.hidden_dim,) and len(shape) == 3 for shape in sizes), "the position code"


class _Forbidden(TorchDispatchMode):
    """Notes what a CUDA graph cannot capture: tensors made of host data, and results read back by the host."""

    OPERATORS = ("lift_fresh", "_local_scalar_dense", "nonzero", "masked_select")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if any(name in str(func) for name in self.OPERATORS):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.fixture
def forbidden() -> Iterator[_Forbidden]:
    with torch.inference_mode():
        yield _Forbidden()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_after_the_first_run_the_network_does_nothing_that_a_cuda_graph_cannot_capture(
    precision: str, forbidden: _Forbidden
) -> None:
    from engines.precision import place

    model = place(_model(), precision)
    prompts = model.encode_prompts(torch.randn(1, 1, 512), torch.randn(1, 5, 512))
    pixels_B3HW = torch.randn(1, 3, *INPUT_HW)
    model.detect(pixels_B3HW, prompts)
    with forbidden:
        model.detect(pixels_B3HW, prompts)
    assert forbidden.found == []


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    fake = Cuda()
    monkeypatch.setattr(slots, "torch", Torch(fake))
    return fake


def test_capture_concerns_its_own_thread_and_waits_sleep(cuda: Cuda) -> None:
    """By default a capture fails when any thread calls CUDA, and an event's wait burns a core."""
    stream = CudaStream(torch.device("cuda", 1))
    stream.capture(lambda: None)
    assert cuda.capture_modes == ["thread_local"]
    assert cuda.events == [True]


def test_a_stream_queues_and_captures_on_its_own_gpu(cuda: Cuda) -> None:
    devices: list[int] = []
    for index in (1, 0):
        stream = CudaStream(torch.device("cuda", index))
        stream.queue(lambda: devices.append(cuda.current))
        stream.capture(lambda: devices.append(cuda.current))
    assert devices == [1, 1, 0, 0]
    assert cuda.current == 0


@pytest.mark.parametrize(
    ("resize", "device", "expected"),
    [("letterbox", "cuda", "graphs"), ("official", "cuda", "plain"), ("letterbox", "cpu", "plain")],
)
def test_eager_replays_cuda_graphs_on_a_gpu_where_the_input_size_is_fixed(
    resize: Literal["letterbox", "official"], device: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "device_of", lambda config: torch.device(device))
    monkeypatch.setattr(engine, "CudaGraphBackend", lambda *arguments: "graphs")
    monkeypatch.setattr(engine, "EagerBackend", lambda *arguments: "plain")
    monkeypatch.setattr(engine, "open_backend", lambda *arguments: arguments[4]())
    config = engine.EngineConfig(model="nano", backend="eager", resize=resize)
    assert engine._open_backend(config, *load_weights("nano", "random")) == ("eager", expected, "fp32")
