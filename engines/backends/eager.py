"""The network as plain PyTorch: every size, every device, nothing to build.

The compiled backends are compared with it.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from engines.backends import FinishedPoses
from engines.backends.compiled import raw_poses
from engines.errors import BackendError
from engines.precision import forbid_tf32, place
from engines.preprocess import letterbox_batch, official_batch
from engines.prompt_tensors import PromptTensors, without_spare
from engines.xpose import XPose
from engines.xpose.model import Prompts


class EagerBackend:
    """Runs an XPose; `input_hw` None means the official resize, which follows each image.

    The images of a call are one batch. The work is done inside `submit`.
    """

    def __init__(
        self, model: XPose, input_hw: tuple[int, int] | None, batch: int, precision: str, device: torch.device
    ) -> None:
        self.input_hw = input_hw
        self._device = device
        self.batch = batch
        self.in_flight = 1
        forbid_tf32()
        self._model = place(model, precision).eval().to(device)
        self._prompts: Prompts | None = None

    @torch.inference_mode()
    def set_prompts(self, prompts: PromptTensors) -> None:
        """Encode the prompts once, without spare capacity, which changes no number."""
        prompts = without_spare(prompts)
        self._prompts = self._model.encode_prompts(
            prompts.objects_C512[None].to(self._device),
            prompts.keypoints_CK512[None].to(self._device),
            None,
            prompts.keypoint_valid_CK[None].to(self._device),
        )

    @torch.inference_mode()
    def submit(self, images: Sequence[NDArray[np.uint8]]) -> FinishedPoses:
        """Run images of any sizes."""
        if self._prompts is None:
            raise BackendError("no prompts are set: call set_prompts first")
        batch = official_batch(images) if self.input_hw is None else letterbox_batch(images, self.input_hw)
        padding_BHW = None if batch.padding_BHW is None else batch.padding_BHW.to(self._device)
        output = self._model.detect(
            batch.pixels_B3HW(self._device), repeat_prompts(self._prompts, len(images)), padding_BHW
        )
        results = (output.boxes_BG4, output.logits_BGC, output.class_BG, output.keypoints_BGK2)
        return FinishedPoses(raw_poses([result.cpu() for result in results], batch.placements))

    def close(self) -> None:
        """Stop; a later `submit` is an error."""
        self._prompts = None


def repeat_prompts(prompts: Prompts, count: int) -> Prompts:
    """Offer the same prompts to every image of a batch."""
    per_image = {
        name: value.expand(count, *value.shape[1:])
        for name, value in prompts._asdict().items()
        if value is not None and name != "keypoint_sizes_K2"
    }
    return prompts._replace(**per_image)
