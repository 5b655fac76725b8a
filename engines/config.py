"""The settings of an engine. Needs no torch, so that a configuration is checked at once."""

import re
from dataclasses import dataclass
from typing import Literal

from engines.capacity import MAX_KEYPOINTS
from engines.errors import InputError


@dataclass(frozen=True)
class EngineConfig:
    """Which model to run, and how.

    Attributes:
        model: "nano", "swin-t" or "swin-l".
        weights: a file; "" uses the model's own; "random" uses random weights, whose poses mean nothing.
        backend: "auto" takes the first of "tensorrt" (needs `build-engine`), "openvino" (built on first use where the
            input is small, else by `build-engine`) and "eager" that can run.
        device: "auto" (a GPU where there is one), "cpu", "cuda", or "cuda:1" and so on for one of several GPUs.
        precision: "fp32", or "bf16" or "fp16" for the parts that tolerate it (`engines.precision`). "auto" is fp32; but
            OpenVINO computes in bf16 where the processor is fast in it and the engine passes its comparison with
            PyTorch.
        resize: "letterbox" (fixed size) or "official" (shorter side 800, follows each image).
        size: height and width of the letterbox; None is the model's own.
        max_classes, max_keypoints: the most that prompts may have. TensorRT runs them on the smallest built engine that
            holds them (`engines.capacity`).
        batch: most images per call of the network. OpenVINO runs them one by one, side by side. TensorRT takes the
            largest batch that is built; with batch 1, images run side by side.
        score_threshold: detections above this score are kept, and can start a track. None: the model's own.
        doubtful_score: in videos, detections above this score continue a track. None: the model's own.
        nms_iou: detections that overlap a better one by more than this IoU are dropped. Lower it if you see duplicates.
            None: the model's own.
        threads: number of PyTorch's threads in this process; 0 does not change it.
    """

    model: str = "nano"
    weights: str = ""
    backend: Literal["auto", "tensorrt", "openvino", "eager"] = "auto"
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    resize: Literal["letterbox", "official"] = "letterbox"
    size: tuple[int, int] | None = None
    max_classes: int = 8
    max_keypoints: int = MAX_KEYPOINTS
    batch: int = 1
    score_threshold: float | None = None
    doubtful_score: float | None = None
    nms_iou: float | None = None
    threads: int = 0

    def __post_init__(self) -> None:
        for key, least in (("max_classes", 1), ("max_keypoints", 1), ("batch", 1), ("threads", 0)):
            if getattr(self, key) < least:
                raise InputError(f"{key} is {getattr(self, key)}, allowed is {least} or more")
        if self.max_keypoints > MAX_KEYPOINTS:
            raise InputError(f"max_keypoints is {self.max_keypoints}, the network has {MAX_KEYPOINTS} slots")
        for key in ("score_threshold", "doubtful_score", "nms_iou"):
            value = getattr(self, key)
            if value is not None and not 0 <= value <= 1:
                raise InputError(f"{key} is {value}, allowed is 0 to 1")
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise InputError(f"device is {self.device!r}, allowed are auto, cpu, cuda, cuda:0, cuda:1, and so on")
        if self.size is not None and min(self.size) < 32:
            raise InputError(f"size is {self.size} (height, width), allowed is 32 px and more")
        if self.resize == "official" and self.size is not None:
            raise InputError("size is given, but resize = 'official' follows each image; leave one of them out")
