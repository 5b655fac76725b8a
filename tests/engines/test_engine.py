"""The engine as its callers see it, on the smallest model with seeded weights."""

import logging
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from engines.backends import FinishedPoses, RawPoses
from engines.backends.eager import EagerBackend
from engines.checkpoint import load_weights, save_weights, trained_categories
from engines.config import EngineConfig
from engines.detections import Detections
from engines.engine import Engine, device_of
from engines.errors import BackendError, CheckpointError, InputError, PromptError
from engines.nv12 import BT709, Nv12
from engines.prompts import PromptClass, PromptTensors, parse_prompt
from engines.skeletons import Skeleton
from engines.visual_prompts import Example


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def prompts_of(prompt: str) -> tuple[PromptClass, ...]:
    return parse_prompt(prompt, max_classes=8, max_keypoints=68)


def images_of(*sizes: tuple[int, int]) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


def random_engine(**options: object) -> Engine:
    return Engine(EngineConfig(weights="random", score_threshold=0.0, size=(64, 96), **options))  # type: ignore[arg-type]


def test_images_of_different_sizes_run_in_one_call() -> None:
    engine = random_engine(batch=2)
    assert engine.set_prompts(prompts_of("person,table")) == 1
    images = images_of((48, 64), (1, 1), (200, 30))
    together = engine.infer(images)
    assert len(together) == 3
    for image, found in zip(images, together, strict=True):
        (alone,) = engine.infer([image])
        assert len(found.scores_N) > 0
        assert found.keypoints_NK2.shape[1] == 17
        assert found.boxes_N4.dtype == found.keypoints_NK2.dtype == np.float32
        np.testing.assert_array_equal(found.class_N, alone.class_N)
        np.testing.assert_allclose(found.boxes_N4, alone.boxes_N4, atol=1e-3 * max(image.shape))
        np.testing.assert_allclose(found.keypoints_NK2, alone.keypoints_NK2, atol=1e-3 * max(image.shape))
        tables = found.class_N == 1
        assert np.isnan(found.keypoints_NK2[tables, 8:]).all()
        assert np.isfinite(found.keypoints_NK2[~tables]).all()
    assert engine.infer([]) == []
    engine.close()


def test_the_official_resize_follows_each_image_and_pads_with_a_mask() -> None:
    model, _ = load_weights("nano", "random")
    backend = EagerBackend(model, None, 2, "fp32", torch.device("cpu"))
    tensors = PromptTensors(
        torch.ones(1, 512), torch.ones(1, dtype=torch.bool), torch.ones(1, 2, 512), torch.ones(1, 2) > 0
    )
    backend.set_prompts(tensors)
    images = images_of((4, 100), (3, 120))  # 53 and 33 px high at the official size: little to compute
    for found in backend.submit(images).result():
        assert np.isfinite(found.boxes_G4).all()
        assert np.isfinite(found.keypoints_GK2).all()
    assert backend.input_hw is None


def test_spare_capacity_changes_no_number() -> None:
    image = images_of((64, 96))
    results = []
    for max_classes, max_keypoints in ((1, 8), (5, 68)):
        engine = random_engine(max_classes=max_classes, max_keypoints=max_keypoints)
        engine.set_prompts(prompts_of("table"))
        results.append(engine.infer(image)[0])
    np.testing.assert_array_equal(results[0].boxes_N4, results[1].boxes_N4)
    np.testing.assert_array_equal(results[0].keypoints_NK2, results[1].keypoints_NK2)


def test_prompts_change_between_two_calls() -> None:
    engine = random_engine()
    image = images_of((64, 96))
    with pytest.raises(PromptError, match="call set_prompts"):
        engine.infer(image)
    assert engine.set_prompts(prompts_of("person")) == 1
    (first,) = engine.infer(image)
    assert (first.prompt_id, first.prompts[0].name) == (1, "person")
    assert engine.set_prompts(prompts_of("table,chair")) == 2
    assert engine.set_prompts(prompts_of("table")) == 3
    (second,) = engine.infer(image)
    assert (second.prompt_id, second.prompts, second.keypoints_NK2.shape[1]) == (3, prompts_of("table"), 8)


def test_bad_prompts_leave_the_old_ones() -> None:
    engine = random_engine(max_classes=1, max_keypoints=17)
    engine.set_prompts(prompts_of("person"))
    for prompt in ("person,dog", "face"):
        with pytest.raises(PromptError, match="this engine takes 1"):
            engine.set_prompts(prompts_of(prompt))
    (found,) = engine.infer(images_of((64, 96)))
    assert found.prompt_id == 1


class Echo:
    """A backend whose only group says which prompts it was given."""

    input_hw = (32, 32)
    batch = 1
    in_flight = 2

    def __init__(self) -> None:
        self.keypoints = 0

    def set_prompts(self, prompts: PromptTensors) -> None:
        self.keypoints = int(prompts.keypoint_valid_CK.sum())

    def submit(self, images: Sequence[NDArray[np.uint8]]) -> FinishedPoses:
        box = np.array([[0.5, 0.5, 1.0, 1.0]], dtype=np.float32)
        keypoints = np.zeros((1, self.keypoints, 2), dtype=np.float32)
        logits = np.full((1, 8), 5.0, dtype=np.float32)
        return FinishedPoses([RawPoses(logits, np.zeros(1, dtype=np.int64), box, keypoints) for _ in images])

    def close(self) -> None:
        self.keypoints = 0


def test_nv12_is_refused_where_the_backend_takes_rgb() -> None:
    engine = random_engine()
    engine.set_prompts(prompts_of("person"))
    assert not engine.takes_nv12
    with pytest.raises(InputError, match="eager takes RGB images, got NV12"):
        engine.submit([Nv12(np.zeros((6, 4), np.uint8), BT709)])


def test_images_in_flight_keep_the_prompts_that_they_were_submitted_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engines.engine._open_backend", lambda config, model, clip: ("echo", Echo(), "fp32"))
    engine = random_engine(batch=3)
    assert (engine.batch, engine.in_flight) == (1, 2), "the backend decides, whatever was asked for"
    engine.set_prompts(prompts_of("person"))
    first = engine.submit(images_of((8, 8), (4, 12)))
    engine.set_prompts(prompts_of("table"))
    second = engine.submit(images_of((8, 8)))
    assert first.done()
    assert [(found.prompt_id, found.keypoints_NK2.shape[1]) for found in second.result()] == [(2, 8)]
    assert [(found.prompt_id, found.keypoints_NK2.shape[1]) for found in first.result()] == [(1, 17), (1, 17)]
    assert [found.boxes_N4[0].tolist() for found in first.result()] == [[0, 0, 8, 8], [0, 0, 12, 4]]


@pytest.mark.timeout(60)
def test_prompts_set_by_other_threads_never_mix(monkeypatch: pytest.MonkeyPatch) -> None:
    """Id, classes and tensors of a result belong together, whoever swaps them meanwhile."""
    monkeypatch.setattr("engines.engine._open_backend", lambda config, model, clip: ("echo", Echo(), "fp32"))
    engine = random_engine()
    choices = [prompts_of(name) for name in ("person", "table", "chair", "sofa")]
    given: dict[int, tuple[PromptClass, ...]] = {engine.set_prompts(choices[0]): choices[0]}
    stop = threading.Event()

    def swap(start: int) -> None:
        turn = start
        while not stop.is_set():
            given[engine.set_prompts(choices[turn % 4])] = choices[turn % 4]
            turn += 1

    swappers = [threading.Thread(target=swap, args=(start,)) for start in range(2)]
    for thread in swappers:
        thread.start()
    seen: list[Detections] = []
    deadline_s = time.monotonic() + 30
    while len(seen) < 300 or (seen[-1].prompt_id <= 12 and time.monotonic() < deadline_s):
        seen.append(engine.infer(images_of((8, 8)))[0])  # however fast this machine infers, prompts must change
    stop.set()
    for thread in swappers:
        thread.join(timeout=10)
        assert not thread.is_alive()
    ids = [found.prompt_id for found in seen]
    assert ids == sorted(ids)
    assert len(set(ids)) > 3
    assert sorted(given) == list(range(1, len(given) + 1))
    for found in seen:
        assert found.prompts == given[found.prompt_id]
        assert found.keypoints_NK2.shape == (1, len(found.prompts[0].skeleton.keypoints), 2)


def test_neither_loading_nor_prompts_leave_threads_behind() -> None:
    """Left over, they would slow every inference down; in a process of its own, since those of other tests count."""
    script = """
        import os
        import time
        import torch
        from engines.config import EngineConfig
        from engines.engine import Engine, device_of
        from engines.prompts import parse_prompt
        torch.set_num_threads(2)
        before = len(os.listdir("/proc/self/task"))
        engine = Engine(EngineConfig(weights="random"))
        engine.set_prompts(parse_prompt("person", max_classes=8, max_keypoints=68))
        time.sleep(1.0)  # threads end a little after they are joined
        print(len(os.listdir("/proc/self/task")) - before)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0"


def test_random_weights_warn_and_absent_ones_explain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="engines"):
        random_engine()
    assert "its poses mean nothing" in caplog.text
    monkeypatch.setattr("engines.checkpoint.NANO_FILE", tmp_path / "nano.safetensors")
    with pytest.raises(CheckpointError, match="--weights random"):
        Engine(EngineConfig())
    with pytest.raises(CheckpointError, match=r"absent\.pth"):
        Engine(EngineConfig(model="swin-t", weights=str(tmp_path / "absent.pth")))
    with pytest.raises(CheckpointError, match="nano, swin-t, swin-l"):
        Engine(EngineConfig(model="resnet", weights="random"))


def test_a_closed_vocabulary_is_kept_with_the_weights(tmp_path: Path) -> None:
    path = tmp_path / "own.safetensors"
    model, clip = load_weights("nano", "random")
    save_weights(path, model, clip, categories={"person": "person", "dog": "animal_in_AP10K"})
    assert trained_categories("nano", str(path)) == {"person": "person", "dog": "animal_in_AP10K"}
    assert trained_categories("nano", "random") is None
    engine = Engine(EngineConfig(weights=str(path), size=(64, 96), backend="eager"))
    engine.set_prompts(prompts_of("Dog"))
    with pytest.raises(PromptError, match="not trained on 'cat'; its classes are person, dog"):
        engine.set_prompts(prompts_of("cat"))
    save_weights(path, model, clip)
    assert trained_categories("nano", str(path)) is None


def test_an_example_image_is_a_prompt_and_untrained_weights_say_so(caplog: pytest.LogCaptureFixture) -> None:
    points = np.array([[30, 20, 2], [60, 40, 2]], dtype=np.float32)
    (image,) = images_of((64, 96))
    example = Example("mug", Skeleton("mug", ("rim", "handle")), image, (10.0, 5.0, 80.0, 60.0), points)
    engine = random_engine()
    with caplog.at_level(logging.WARNING, logger="engines"):
        engine.set_prompts(parse_prompt("mug", examples=[example], max_classes=8, max_keypoints=68))
    assert "example images will not help" in caplog.text
    assert "hardly help" not in caplog.text
    weak = Example("mug", Skeleton("mug", ("rim", "handle")), image, (10.0, 5.0, 40.0, 30.0), points)
    with caplog.at_level(logging.WARNING, logger="engines"):
        engine.set_prompts(parse_prompt("mug", examples=[weak], max_classes=8, max_keypoints=68))
    assert "an example of 'mug' will hardly help: its object is 30 px large" in caplog.text
    (found,) = engine.infer([image])
    assert found.keypoints_NK2.shape[1] == 2


def test_half_precision_answers_in_float32() -> None:
    engine = random_engine(precision="bf16")
    engine.set_prompts(prompts_of("person"))
    (found,) = engine.infer(images_of((64, 96)))
    assert found.boxes_N4.dtype == found.keypoints_NK2.dtype == np.float32
    assert np.isfinite(found.keypoints_NK2).all()


def test_a_gpu_may_be_named_by_its_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    expected = {"cpu": torch.device("cpu"), "cuda:0": torch.device("cuda", 0)}
    expected |= dict.fromkeys(("auto", "cuda", "cuda:1"), torch.device("cuda", 1))
    for name, device in expected.items():
        assert device_of(EngineConfig(device=name)) == device
    with pytest.raises(BackendError, match="device is cuda:2, but PyTorch sees 2 GPUs here, cuda:0 to cuda:1"):
        device_of(EngineConfig(device="cuda:2"))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"batch": 0}, "batch is 0, allowed is 1"),
        ({"device": "tpu"}, "allowed are auto, cpu, cuda"),
        ({"max_keypoints": 69}, "68 slots"),
        ({"score_threshold": 1.5}, "score_threshold is 1.5"),
        ({"nms_iou": -0.1}, "nms_iou"),
        ({"size": (16, 64)}, "32 px"),
        ({"resize": "official", "size": (320, 320)}, "leave one of them out"),
    ],
)
def test_settings_out_of_range_are_named(options: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        EngineConfig(**options)  # type: ignore[arg-type]


def test_an_image_that_is_none_is_refused() -> None:
    engine = random_engine()
    engine.set_prompts(prompts_of("person"))
    with pytest.raises(InputError, match="needed is RGB of uint8"):
        engine.infer([np.zeros((4, 4), dtype=np.uint8)])
