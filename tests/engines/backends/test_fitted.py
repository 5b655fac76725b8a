"""Prompts run on the smallest built engine that holds them; engines are files of no content behind fake backends."""

import dataclasses
import logging
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from engines import engine as engine_module
from engines.backends import FinishedPoses, RawPoses
from engines.backends.choose import open_backend
from engines.backends.fitted import FittedBackend
from engines.build import BuildRequest
from engines.capacity import KEYPOINTS, Capacity, capacities_for, capacity_for
from engines.config import EngineConfig
from engines.engine import Engine, request_of
from engines.engine_cache import CachedEngine, EngineCache
from engines.errors import BackendError, CapacityError, EngineCacheError
from engines.export import EngineShape
from engines.prompt_tensors import PromptTensors, size_of, with_capacity, without_spare
from engines.prompts import PromptClass
from engines.skeletons import Skeleton
from engines.xpose import XPoseConfig
from tests.engines.test_engine_cache import KEY, write_plan

LARGEST = dataclasses.replace(KEY, batch=4)
PICTURE = np.zeros((8, 8, 3), np.uint8)


def prompts(classes: int, keypoints: int) -> PromptTensors:
    """Prompts in the capacity that a default configuration encodes to."""
    tensors = PromptTensors(
        torch.rand(classes, 512),
        torch.ones(classes, dtype=torch.bool),
        torch.rand(classes, keypoints, 512),
        torch.ones(classes, keypoints, dtype=torch.bool),
    )
    return with_capacity(tensors, Capacity(8, 68))


class Shelf:
    """A cache with engines of given capacities and batches, and the fake backends that were opened from it."""

    def __init__(self, root: Path) -> None:
        self.cache = EngineCache(root)
        self.opened: list[Fake] = []

    def build(self, classes: int, keypoints: int, batch: int = 1) -> Path:
        key = dataclasses.replace(KEY, max_classes=classes, max_keypoints=keypoints, batch=batch)
        return self.cache.build(key, "engine.plan", write_plan).path

    def backend(self) -> FittedBackend:
        return FittedBackend(LARGEST, self.cache, self._open)

    def _open(self, shape: EngineShape, cached: CachedEngine) -> "Fake":
        assert cached.manifest["key"]["max_classes"] == shape.max_classes
        self.opened.append(Fake(shape))
        return self.opened[-1]


class Fake:
    """A compiled backend that tells its capacity through the number of its groups and classes."""

    in_flight = 3

    def __init__(self, shape: EngineShape) -> None:
        self.shape, self.input_hw, self.batch = shape, shape.input_hw, shape.batch
        self.prompts: list[Capacity] = []
        self.calls = 0
        self.closed = False

    def set_prompts(self, prompts: PromptTensors) -> None:
        assert not self.closed
        self.prompts.append(size_of(prompts))

    def submit(self, images: Sequence[NDArray[np.uint8]]) -> FinishedPoses:
        assert not self.closed
        self.calls += 1
        classes, keypoints = self.shape.max_classes, self.shape.max_keypoints
        boxes_G4, logits_GC = np.full((1, 4), 0.5, np.float32), np.full((1, classes), 5.0, np.float32)
        poses = RawPoses(logits_GC, np.zeros(1, np.int64), boxes_G4, np.zeros((1, keypoints, 2), np.float32))
        return FinishedPoses([poses for _ in images])

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


def use(backend: FittedBackend, tensors: PromptTensors) -> None:
    backend.make_room(tensors)
    backend.set_prompts(tensors)


@pytest.mark.parametrize(
    ("needed", "capacity"),
    [
        ((1, 17), (1, 17)),
        ((1, 3), (1, 17)),
        ((3, 18), (4, 33)),
        ((5, 34), (8, 68)),
        ((8, 68), (8, 68)),
        ((9, 1), (16, 17)),
    ],
)
def test_capacity_is_the_smallest_of_the_ladder_that_holds_the_prompts(
    needed: tuple[int, int], capacity: tuple[int, int]
) -> None:
    assert capacity_for(Capacity(*needed)) == capacity
    assert capacity_for(Capacity(*capacity)) == capacity, "an engine of the ladder is found again"


def test_capacities_hold_what_is_needed_and_end_at_the_configured_most() -> None:
    found = capacities_for(Capacity(2, 20), Capacity(5, 68))
    assert found == [(2, 33), (4, 33), (8, 33), (2, 68), (4, 68), (8, 68)]
    assert len(capacities_for(Capacity(1, 1), Capacity(8, 68))) == 4 * len(KEYPOINTS)


@pytest.mark.parametrize("capacity", [(2, 5), (2, 9), (8, 68)])
def test_padding_to_a_capacity_keeps_the_prompts_and_marks_the_rest_as_spare(capacity: tuple[int, int]) -> None:
    tensors = prompts(2, 5)
    padded = with_capacity(tensors, Capacity(*capacity))
    assert padded.keypoints_CK512.shape == (*capacity, 512)
    assert padded.keypoint_valid_CK.shape == capacity
    assert size_of(padded) == (2, 5)
    for field in dataclasses.fields(PromptTensors):
        assert torch.equal(getattr(without_spare(padded), field.name), getattr(without_spare(tensors), field.name))


def test_the_smallest_built_engine_that_holds_the_prompts_runs_them(shelf: Shelf) -> None:
    for capacity in ((8, 68), (1, 17), (4, 33)):
        shelf.build(*capacity)
    backend = shelf.backend()
    for size, expected in (
        ((1, 17), (1, 17)),
        ((1, 18), (4, 33)),
        ((2, 4), (4, 33)),
        ((5, 1), (8, 68)),
        ((1, 1), (1, 17)),
    ):
        use(backend, prompts(*size))
        backend.submit([PICTURE]).result()
        running = next(fake for fake in shelf.opened if not fake.closed)
        assert (running.shape.max_classes, running.shape.max_keypoints) == expected
        assert running.prompts[-1] == size
        assert sum(not fake.closed for fake in shelf.opened) == 1, "the engine before is closed"


def test_prompts_of_the_same_size_open_nothing_again(shelf: Shelf) -> None:
    shelf.build(1, 17)
    backend = shelf.backend()
    for _ in range(3):
        use(backend, prompts(1, 17))
    assert len(shelf.opened) == 1


def test_frames_run_on_the_old_engine_until_the_prompts_change_over(shelf: Shelf) -> None:
    shelf.build(1, 17)
    shelf.build(2, 17)
    backend = shelf.backend()
    use(backend, prompts(1, 17))
    backend.make_room(prompts(2, 17))
    old, new = shelf.opened
    assert new.prompts == [(2, 17)], "its graphs are captured before a frame needs them"
    backend.submit([PICTURE])
    assert (old.calls, new.calls) == (1, 0)
    backend.set_prompts(prompts(2, 17))
    backend.submit([PICTURE])
    assert (old.calls, new.calls, old.closed) == (1, 1, True)


def test_a_later_change_that_is_being_prepared_survives_an_earlier_one(shelf: Shelf) -> None:
    """One thread opens the engine for B while the other changes over to A."""
    for classes in (1, 2, 4):
        shelf.build(classes, 17)
    backend = shelf.backend()
    use(backend, prompts(1, 17))
    backend.make_room(prompts(2, 17))
    backend.make_room(prompts(4, 17))
    backend.set_prompts(prompts(2, 17))
    backend.set_prompts(prompts(4, 17))
    assert [fake.closed for fake in shelf.opened] == [True, True, False]
    backend.close()
    assert all(fake.closed for fake in shelf.opened)


def test_the_refusal_names_the_command_and_the_old_prompts_stay(shelf: Shelf) -> None:
    shelf.build(1, 17)
    backend = shelf.backend()
    use(backend, prompts(1, 17))
    with pytest.raises(CapacityError, match=r"3 classes of 20 keypoints .*build-engine .*--classes 4 --keypoints 33"):
        backend.make_room(prompts(3, 20))
    backend.submit([PICTURE]).result()
    assert not shelf.opened[0].closed


def test_the_named_command_builds_what_the_prompts_need(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the refusal names, given back as configuration, is the engine that is found afterwards."""
    shelf.build(1, 17)
    with pytest.raises(CapacityError) as refused:
        shelf.backend().make_room(prompts(3, 20))
    found = re.search(r"--classes (\d+) --keypoints (\d+)", str(refused.value))
    assert found is not None
    config = EngineConfig(max_classes=int(found[1]), max_keypoints=int(found[2]), device="cpu")
    request = request_of(config, type("Network", (), {"config": XPoseConfig.nano()})())
    assert request is not None
    shelf.build(request.shape.max_classes, request.shape.max_keypoints)
    use(shelf.backend(), prompts(3, 20))


def test_a_larger_engine_than_needed_is_a_warning_with_the_command_for_a_faster_one(
    shelf: Shelf, caplog: pytest.LogCaptureFixture
) -> None:
    shelf.build(8, 68)
    backend = shelf.backend()
    with caplog.at_level(logging.WARNING):
        use(backend, prompts(8, 68))
        assert not caplog.records
        use(backend, prompts(1, 17))
    (warning,) = caplog.records
    assert "1 class of 17 keypoints run on an engine for 8 classes of 68 keypoints" in warning.getMessage()
    assert "--classes 1 --keypoints 17" in warning.getMessage()


def test_a_damaged_engine_is_passed_over_with_a_warning(shelf: Shelf, caplog: pytest.LogCaptureFixture) -> None:
    shelf.build(1, 17).write_bytes(b"half")
    shelf.build(2, 17)
    backend = shelf.backend()
    use(backend, prompts(1, 17))
    assert shelf.opened[0].shape.max_classes == 2
    assert "truncated or altered" in caplog.text


@pytest.mark.parametrize(("built", "expected"), [((1, 2, 4, 8), 4), ((1, 2), 2), ((1,), 1)])
def test_the_largest_built_batch_up_to_the_configured_one_is_taken(
    shelf: Shelf, built: tuple[int, ...], expected: int
) -> None:
    """So a camera more needs no other engine: its images go in calls of their own."""
    for batch in built:
        shelf.build(1, 17, batch)
    backend = shelf.backend()
    use(backend, prompts(1, 17))
    assert backend.batch == expected


def test_without_any_engine_the_error_names_the_command_when_the_backend_is_opened(shelf: Shelf) -> None:
    with pytest.raises(EngineCacheError, match=r"--classes 8 --keypoints 68 .*1 and 17 for people"):
        shelf.backend()


def test_tensorrt_is_opened_by_the_size_of_the_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = EngineShape(KEY.input_hw, 1, 8, 68)
    request = BuildRequest("auto", "nano", shape, "fp16", torch.device("cpu"))
    monkeypatch.setattr(BuildRequest, "key", lambda request, model: dataclasses.replace(KEY, backend=request.backend))
    opened: list[EngineShape] = []

    def open_engine(request: BuildRequest, cached: CachedEngine, model: object) -> Fake:
        opened.append(request.shape)
        return Fake(request.shape)

    monkeypatch.setattr("engines.backends.choose.open_engine", open_engine)
    shelf = Shelf(tmp_path)
    shelf.build(1, 17)
    name, backend, _ = open_backend("tensorrt", None, request, shelf.cache, pytest.fail)  # type: ignore[arg-type]
    assert isinstance(backend, FittedBackend)
    use(backend, prompts(1, 17))
    assert (name, opened) == ("tensorrt", [dataclasses.replace(shape, max_classes=1, max_keypoints=17)])


def test_an_engine_changes_over_with_its_prompts_and_keeps_the_old_ones_when_refused(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf.build(1, 17)
    shelf.build(2, 33)
    monkeypatch.setattr(
        engine_module, "_open_backend", lambda config, model, clip: ("tensorrt", shelf.backend(), "fp32")
    )
    engine = Engine(EngineConfig(weights="random", max_classes=4))
    names = [f"point {index}" for index in range(20)]
    mug, lamp = PromptClass("mug", Skeleton("mug", ("rim",))), PromptClass("lamp", Skeleton("lamp", tuple(names)))
    monkeypatch.setattr(
        engine._encoder, "encode", lambda classes, *most: prompts(len(classes), 20 if lamp in classes else 1)
    )
    monkeypatch.setattr(engine, "_trained", None)
    with pytest.raises(CapacityError, match="build-engine"):
        engine.set_prompts((mug, lamp, PromptClass("dish", Skeleton("dish", ("rim",)))))
    assert engine.set_prompts((mug,)) == 1
    assert engine.infer([PICTURE])[0].keypoints_NK2.shape[1] == 1
    with pytest.raises(CapacityError, match="build-engine"):
        engine.set_prompts((mug, lamp, PromptClass("dish", Skeleton("dish", ("rim",)))))
    assert engine.infer([PICTURE])[0].prompt_id == 1
    assert engine.set_prompts((mug, lamp)) == 2
    found = engine.infer([PICTURE])[0]
    assert (found.prompt_id, found.keypoints_NK2.shape[1]) == (2, 20)
    engine.close()


def test_nothing_runs_before_there_are_prompts(shelf: Shelf) -> None:
    shelf.build(1, 17)
    with pytest.raises(BackendError, match="call set_prompts"):
        shelf.backend().submit([PICTURE])
