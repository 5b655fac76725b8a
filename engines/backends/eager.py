"""The network as plain PyTorch: every size, every device, nothing to build. The reference for the compiled backends."""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray

from engines.backends import RawPoses
from engines.errors import BackendError
from engines.precision import place
from engines.preprocess import letterbox_batch, official_batch
from engines.prompts import PromptTensors
from engines.xpose import XPose, XPoseOutput
from engines.xpose.model import Prompts

SMALL_PX = 512 * 512  # of an input, up to which its images run side by side on a CPU


class EagerBackend:
    """Runs an XPose; `input_hw` None means the official resize, which follows each image.

    The images of a call are one batch. On a CPU, images of a small input run side by side instead, each on one of
    PyTorch's threads: their operators are too short to be shared out well. A single image has all threads.
    """

    def __init__(
        self, model: XPose, input_hw: tuple[int, int] | None, batch: int, precision: str, device: torch.device
    ) -> None:
        self.input_hw = input_hw
        self._device = device
        self._side_by_side: ThreadPoolExecutor | None = None
        if device.type == "cpu" and input_hw is not None and math.prod(input_hw) <= SMALL_PX:
            threads = torch.get_num_threads()
            batch = max(batch, threads)
            self._side_by_side = ThreadPoolExecutor(threads, "eager")
        self.batch = batch
        self._model = place(model, precision).eval().to(device)
        self._prompts: Prompts | None = None

    @torch.inference_mode()
    def set_prompts(self, prompts: PromptTensors) -> None:
        """Project the prompts once; spare capacity is cut off, which changes no number."""
        classes = int(prompts.object_valid_C.sum())
        keypoints = int(prompts.keypoint_valid_CK.sum(dim=1).max())
        self._prompts = self._model.encode_prompts(
            prompts.objects_C512[None, :classes].to(self._device),
            prompts.keypoints_CK512[None, :classes, :keypoints].to(self._device),
            None,
            prompts.keypoint_valid_CK[None, :classes, :keypoints].to(self._device),
        )

    def submit(self, images: Sequence[NDArray[np.uint8]]) -> Callable[[], list[RawPoses]]:
        """Run images of any sizes."""
        if self._side_by_side is None or len(images) == 1:
            poses = self._run(images)
        else:
            poses = self._run_side_by_side(images, self._side_by_side)
        return lambda: poses

    def _run_side_by_side(self, images: Sequence[NDArray[np.uint8]], pool: ThreadPoolExecutor) -> list[RawPoses]:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # the pool's threads take the count over when they begin, MKL from call to call
        try:
            return [poses for (poses,) in pool.map(lambda image: self._run([image]), images)]
        finally:
            torch.set_num_threads(threads)

    @torch.inference_mode()
    def _run(self, images: Sequence[NDArray[np.uint8]]) -> list[RawPoses]:
        if self._prompts is None:
            raise BackendError("no prompts are set: call set_prompts first")
        batch = official_batch(images) if self.input_hw is None else letterbox_batch(images, self.input_hw)
        padding_BHW = None if batch.padding_BHW is None else batch.padding_BHW.to(self._device)
        output = self._model.detect(batch.pixels_B3HW(self._device), _repeat(self._prompts, len(images)), padding_BHW)
        output = XPoseOutput(*(tensor.cpu() for tensor in output))
        return [
            RawPoses(
                logits_GC=output.logits_BGC[row].float().numpy(),
                class_G=output.class_BG[row].numpy(),
                boxes_G4=placement.boxes_to_image(output.boxes_BG4[row].float().numpy()),
                keypoints_GK2=placement.points_to_image(output.keypoints_BGK2[row].float().numpy()),
            )
            for row, placement in enumerate(batch.placements)
        ]

    def close(self) -> None:
        """Stop; a later `infer` is an error."""
        self._prompts = None
        if self._side_by_side is not None:
            self._side_by_side.shutdown()


def _repeat(prompts: Prompts, count: int) -> Prompts:
    """Offer the same prompts to every image of a batch."""
    per_image = {
        name: value.expand(count, *value.shape[1:])
        for name, value in prompts._asdict().items()
        if value is not None and name != "keypoint_sizes_K2"
    }
    return prompts._replace(**per_image)
