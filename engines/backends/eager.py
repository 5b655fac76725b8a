"""The network as plain PyTorch: every size, every device, nothing to build. The reference for the compiled backends."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from engines.backends import FinishedPoses, RawPoses
from engines.backends.side_by_side import SideBySide, runs_side_by_side
from engines.errors import BackendError
from engines.precision import place
from engines.preprocess import letterbox_batch, official_batch
from engines.prompts import PromptTensors, without_spare
from engines.xpose import XPose, XPoseOutput
from engines.xpose.model import Prompts


class EagerBackend:
    """Runs an XPose; `input_hw` None means the official resize, which follows each image.

    The images of a call are one batch, or run side by side on a CPU where the input is small.
    """

    def __init__(
        self, model: XPose, input_hw: tuple[int, int] | None, batch: int, precision: str, device: torch.device
    ) -> None:
        self.input_hw = input_hw
        self._device = device
        self._side_by_side = SideBySide() if runs_side_by_side(device, input_hw) else None
        self.batch = batch if self._side_by_side is None else self._side_by_side.count
        self.in_flight = 1
        self._model = place(model, precision).eval().to(device)
        self._prompts: Prompts | None = None

    @torch.inference_mode()
    def set_prompts(self, prompts: PromptTensors) -> None:
        """Project the prompts once; spare capacity is cut off, which changes no number."""
        prompts = without_spare(prompts)
        self._prompts = self._model.encode_prompts(
            prompts.objects_C512[None].to(self._device),
            prompts.keypoints_CK512[None].to(self._device),
            None,
            prompts.keypoint_valid_CK[None].to(self._device),
        )

    def submit(self, images: Sequence[NDArray[np.uint8]]) -> FinishedPoses:
        """Run images of any sizes."""
        return FinishedPoses(
            self._run(images) if self._side_by_side is None else self._side_by_side.map(self._run, images)
        )

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
            self._side_by_side.close()


def _repeat(prompts: Prompts, count: int) -> Prompts:
    """Offer the same prompts to every image of a batch."""
    per_image = {
        name: value.expand(count, *value.shape[1:])
        for name, value in prompts._asdict().items()
        if value is not None and name != "keypoint_sizes_K2"
    }
    return prompts._replace(**per_image)
