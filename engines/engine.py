"""The engine: images and prompts in, poses in source pixels out.

    engine = Engine(EngineConfig(model="nano"))
    engine.set_prompts(parse_prompt("person", max_classes=8, max_keypoints=68))
    (detections,) = engine.infer([rgb_HW3])

To keep the hardware busy, submit several images before you wait for the first:

    pending = [engine.submit([rgb_HW3]) for rgb_HW3 in images]  # `engine.in_flight` of them run at the same time
    detections = [item.result()[0] for item in pending]

Any thread may replace the prompts while another one infers. New prompts apply from the next call of `submit` on; images
in flight keep theirs.
"""

import copy
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray

from engines.backends import PendingPoses
from engines.backends.choose import OpenedBackend, open_backend
from engines.backends.cuda_graph import CudaGraphBackend
from engines.backends.eager import EagerBackend
from engines.backends.fitted import FittedBackend
from engines.build import BuildRequest, build_engine
from engines.capacity import Capacity, capacity_for
from engines.checkpoint import RANDOM, load_weights, trained_categories
from engines.clip import Clip
from engines.config import EngineConfig
from engines.detections import Detections
from engines.engine_cache import CachedEngine, EngineCache
from engines.errors import BackendError, InputError, PromptError
from engines.export import EngineShape
from engines.nv12 import Image, Nv12
from engines.onnx_export import write_onnx
from engines.postprocess import detections_of
from engines.prompt_tensors import PromptTensors, without_spare
from engines.prompts import PromptClass, PromptEncoder, require_trained
from engines.scores import kept_of
from engines.skeletons import Skeleton, load_skeleton
from engines.visual_prompts import VisualWeights, visual_weights_trained
from engines.xpose import XPose

_log = logging.getLogger(__name__)
_P = ParamSpec("_P")
_T = TypeVar("_T")


@dataclass(frozen=True)
class Pending:
    """Images that an engine is working on. Made by `Engine.submit`."""

    _calls: tuple[PendingPoses, ...]
    _sizes_hw: tuple[tuple[int, int], ...]
    _prompts: tuple[PromptClass, ...]
    _prompt_id: int
    _thresholds: tuple[float, float]  # as `kept_of` returns them

    def done(self) -> bool:
        """Whether `result` would return at once."""
        return all(call.done() for call in self._calls)

    def result(self) -> list[Detections]:
        """Wait for the detections; one result per image, in order.

        Raises:
            InputError: an image is not RGB of uint8, or is empty.
            BackendError: the backend failed.
        """
        poses = [raw for call in self._calls for raw in call.result()]
        return [
            detections_of(raw, size_hw, self._prompts, self._prompt_id, *self._thresholds)
            for raw, size_hw in zip(poses, self._sizes_hw, strict=True)
        ]


class Engine:
    """One network with its prompts. `set_...` methods are thread-safe; all other methods belong to one thread."""

    def __init__(self, config: EngineConfig) -> None:
        """Load the weights and make the backend ready.

        Raises:
            CheckpointError: weights are absent or of another model.
            BackendError: this machine cannot run the backend.
        """
        self.config = config
        if config.threads:
            torch.set_num_threads(config.threads)
        self._visual_weights, self._encoder, opened = _in_passing_thread(_load, config)
        self.backend_name, self._backend, self.precision = opened
        if config.weights == RANDOM:
            _log.warning("the weights of %s are random: its poses mean nothing", config.model)
        self._thresholds: tuple[float, float] = kept_of(config.model, config.score_threshold, config.nms_iou)
        self._trained = trained_categories(config.model, config.weights)
        self._encoding = threading.Lock()
        self._swapping = threading.Lock()
        self._waiting: tuple[int, tuple[PromptClass, ...], PromptTensors] | None = None
        self._prompt_id = 0
        self._prompts: tuple[PromptClass, ...] = ()
        self._last_id = 0

    @property
    def input_hw(self) -> tuple[int, int] | None:
        """Fixed input size, or None where it follows each image."""
        return self._backend.input_hw

    @property
    def batch(self) -> int:
        """Images that one call of the network takes. `submit` takes any number; all of them wait for the slowest."""
        return self._backend.batch

    @property
    def in_flight(self) -> int:
        """Calls of `submit` that run at the same time. Further calls wait, so they add delay and no speed."""
        return self._backend.in_flight

    @property
    def on_gpu(self) -> bool:
        """Whether the network runs on a GPU."""
        return device_of(self.config).type == "cuda"

    def set_prompts(self, classes: Sequence[PromptClass]) -> int:
        """Look for these classes from the next call of `submit` on.

        Returns:
            the id that detections made with them will carry; ids count up from 1.
        Raises:
            PromptError: over capacity, or not among the classes that the model was trained on, or no compiled engine
                holds them. The old ones stay.
            BackendError: the compiled engine that holds them cannot be opened. The old ones stay.
        """
        with self._encoding:  # one at a time, so that ids follow the order of the calls
            if self._trained is not None:
                require_trained(classes, self._trained)
            if any(prompt_class.examples for prompt_class in classes) and not self._visual_weights.pos_proj_trained:
                _log.warning("example images will not help: %s", self._visual_weights)
            for example in (example for prompt_class in classes for example in prompt_class.examples):
                if shortcoming := example.shortcoming():
                    _log.warning("an example of %r will hardly help: %s", example.name, shortcoming)
            tensors = _in_passing_thread(
                self._encoder.encode, classes, self.config.max_classes, self.config.max_keypoints
            )
            if isinstance(self._backend, FittedBackend):
                self._backend.make_room(tensors)
            with self._swapping:
                self._last_id += 1
                self._waiting = (self._last_id, tuple(classes), tensors)
                return self._last_id

    @property
    def categories(self) -> Mapping[str, str] | None:
        """Classes that the model was trained on, each with its keypoint list; None where it takes any words."""
        return self._trained

    def set_thresholds(self, score_threshold: float, nms_iou: float) -> None:
        """Keep detections by these from the next call of `submit` on. Thread-safe.

        Args:
            score_threshold: detections above this score are kept.
            nms_iou: detections that overlap a better one by more than this IoU are dropped.
        """
        self._thresholds = (score_threshold, nms_iou)

    @property
    def takes_nv12(self) -> bool:
        """Whether images may be NV12 too: what runs in CUDA slots converts them on the GPU."""
        return isinstance(self._backend, CudaGraphBackend | FittedBackend)

    def submit(self, images: Sequence[Image]) -> Pending:
        """Start to look for the prompted classes in RGB images [H, W, 3] of any sizes and number.

        The images must not change before the result is there. A backend that works inside this call (see `in_flight`:
        1) may also raise here what `Pending.result` raises.

        Raises:
            PromptError: no prompts are set yet.
            InputError: an image is NV12, which this backend does not take; see `takes_nv12`.
        """
        if not self.takes_nv12 and any(isinstance(image, Nv12) for image in images):
            raise InputError(f"backend {self.backend_name} takes RGB images, got NV12; convert them")
        pixels = cast(Sequence[NDArray[np.uint8]], images)
        with self._swapping:
            waiting, self._waiting = self._waiting, None
        if waiting is not None:
            self._prompt_id, self._prompts, tensors = waiting
            self._backend.set_prompts(tensors)
        if not self._prompts:
            raise PromptError("nothing to look for: call set_prompts before submit")
        batch = self._backend.batch
        calls = tuple(self._backend.submit(pixels[start : start + batch]) for start in range(0, len(images), batch))
        sizes_hw = tuple(image.shape[:2] for image in images)
        return Pending(calls, sizes_hw, self._prompts, self._prompt_id, self._thresholds)

    def infer(self, images: Sequence[Image]) -> list[Detections]:
        """Submit images and wait for their detections; see `submit` and `Pending.result`."""
        return self.submit(images).result()

    def close(self) -> None:
        """Wait for the images in flight and release what the backend holds."""
        self._backend.close()


def _in_passing_thread(function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Run in a short-lived thread so that its OpenMP workers are freed with it.

    OpenMP workers belong to the thread that first needed them and live as long. While a process has more of them than
    cores, GNU's OpenMP puts all of them to sleep between two operators, and waking them takes about as long as the
    operators of a small network.
    """
    with ThreadPoolExecutor(1) as passing:
        return passing.submit(function, *args, **kwargs).result()


def _load(config: EngineConfig) -> tuple[VisualWeights, PromptEncoder, OpenedBackend]:
    model, clip = load_weights(config.model, config.weights)
    return visual_weights_trained(model), _prompt_encoder(model, clip), _open_backend(config, model, clip)


def build(config: EngineConfig, progress: Callable[[str], None] = lambda step: None) -> CachedEngine:
    """Build a compiled engine for an `Engine` of this configuration; "auto" takes TensorRT where a GPU is.

    Its capacity is the smallest of `engines.capacity` that holds the configured one.

    Args:
        progress: told each step as it begins.
    Raises:
        CheckpointError: weights are absent or of another model.
        BackendError: this machine cannot build it; the message says what to install.
        EngineCacheError: the engine differs from PyTorch, or cannot be stored; nothing is left behind.
    """
    backend = config.backend
    if backend == "auto":
        backend = "tensorrt" if torch.cuda.is_available() else "openvino"
    model, clip = load_weights(config.model, config.weights)
    request = request_of(config, model)
    if request is None or backend == "eager":
        raise BackendError("nothing to build: only tensorrt and openvino with a fixed input size are compiled")
    return _build(config, model, clip, request.for_backend(backend), progress)


def _build(
    config: EngineConfig, model: XPose, clip: Clip, request: BuildRequest, progress: Callable[[str], None]
) -> CachedEngine:
    person = _parity_prompt(config.max_keypoints)
    prompts = _prompt_encoder(model, clip).encode([person], 1, len(person.skeleton.keypoints))
    return build_engine(model, prompts, request, EngineCache(), progress)


def export_onnx(config: EngineConfig, path: Path, classes: Sequence[PromptClass] = ()) -> list[Path]:
    """Write the network as ONNX with a description, and `classes`, if any, as encoded prompts; return the files.

    Args:
        config: its model, weights, size, batch, score_threshold and nms_iou count.
        path: where to; its name ends in .onnx.
    Raises:
        CheckpointError: weights are absent or of another model.
        InputError: the configuration has no fixed size or another precision than fp32, or a file cannot be written.
        PromptError: the model was not trained on one of the classes, or a list of keypoints is too long.
    """
    if config.resize == "official" or config.precision not in ("auto", "fp32"):
        raise InputError(
            f"resize is {config.resize!r} and precision {config.precision!r}, but an ONNX file has a fixed size and "
            "float32 weights: leave both at their defaults; the runtime that loads the file may reduce the precision"
        )
    model, clip = load_weights(config.model, config.weights)
    prompts = None
    if classes:
        trained = trained_categories(config.model, config.weights)
        if trained is not None:
            require_trained(classes, trained)
        encoder = _prompt_encoder(model, clip)
        prompts = classes, without_spare(encoder.encode(classes, len(classes), config.max_keypoints))
    score_threshold, nms_iou = kept_of(config.model, config.score_threshold, config.nms_iou)
    facts = {"model": config.model, "score_threshold": score_threshold, "nms_iou": nms_iou}
    shape = EngineShape(config.size or model.config.input_hw, config.batch, config.max_classes, config.max_keypoints)
    return write_onnx(path, model.eval().requires_grad_(False), shape, prompts, facts)


def _prompt_encoder(model: XPose, clip: Clip) -> PromptEncoder:
    """Copy what the encoder takes of the network: a backend moves and casts it while other threads encode prompts."""
    return PromptEncoder(clip, copy.deepcopy(model.pos_proj), model.padding.weight.detach().clone())


def _parity_prompt(max_keypoints: int) -> PromptClass:
    """A person, who is in the bundled images, with as many keypoints as the capacity allows."""
    person = load_skeleton("person")
    keypoints = person.keypoints[:max_keypoints]
    return PromptClass("person", Skeleton(person.name, keypoints))


def request_of(config: EngineConfig, model: XPose) -> BuildRequest | None:
    """Return the largest compiled engine that `config` would use; None where the input size follows each image.

    Raises:
        BackendError: the device is not there.
    """
    if config.resize == "official":
        return None
    device, input_hw = device_of(config), config.size or model.config.input_hw
    batch = config.batch if device.type == "cuda" else 1
    shape = EngineShape(input_hw, batch, *capacity_for(Capacity(config.max_classes, config.max_keypoints)))
    return BuildRequest(config.backend, config.model, shape, config.precision, device)


def device_of(config: EngineConfig) -> torch.device:
    """Return the device that `config` means.

    Raises:
        BackendError: it is not there.
    """
    name = config.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type != "cuda":
        return device
    if not torch.cuda.is_available():
        raise BackendError(f"device is {name}, but PyTorch sees no GPU here; take cpu")
    index, count = torch.cuda.current_device() if device.index is None else device.index, torch.cuda.device_count()
    if index >= count:
        raise BackendError(f"device is {name}, but PyTorch sees {count} GPUs here, cuda:0 to cuda:{count - 1}")
    return torch.device("cuda", index)


def _open_backend(config: EngineConfig, model: XPose, clip: Clip) -> OpenedBackend:
    request = request_of(config, model)
    input_hw = None if request is None else request.shape.input_hw

    def eager() -> OpenedBackend:
        device, precision = device_of(config), "fp32" if config.precision == "auto" else config.precision
        if device.type == "cuda" and input_hw is not None:
            graphs = CudaGraphBackend(model, input_hw, config.batch, precision, device)
            return OpenedBackend("eager", graphs, precision)
        # Sums of a batch of two are rounded otherwise than those of one image. A camera's poses must not depend on
        # whether another one had a frame at the same time, so a CPU gets one image per call.
        batch = config.batch if device.type == "cuda" else 1
        return OpenedBackend("eager", EagerBackend(model, input_hw, batch, precision, device), precision)

    def build_missing(wanted: BuildRequest) -> CachedEngine:
        return _build(config, model, clip, wanted, lambda step: None)

    # Random weights cannot pass the comparison with PyTorch: their scores are all but equal.
    build = None if config.weights == RANDOM else build_missing
    return open_backend(config.backend, model, request, EngineCache(), eager, build)
