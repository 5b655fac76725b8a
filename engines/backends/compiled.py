"""What every compiled backend does around its engine: encode prompts and name results.

Shape suffixes as in `engines.export`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from engines.backends import RawPoses
from engines.capacity import Capacity
from engines.errors import BackendError
from engines.export import DetectorInputs, detector_inputs
from engines.preprocess import Placement
from engines.prompt_tensors import PromptTensors, size_of, with_capacity, without_spare
from engines.xpose import XPose


class EncodedPrompts:
    """Encodes prompts with the float32 network, which a compiled engine leaves outside.

    Args:
        keep_spare: False for an engine that takes any number of prompts: spare capacity is then cut off.
    """

    def __init__(self, model: XPose, max_classes: int, max_keypoints: int, *, keep_spare: bool = True) -> None:
        self._model = model
        self._capacity = Capacity(max_classes, max_keypoints)
        self._keep_spare = keep_spare
        self._inputs: DetectorInputs | None = None

    def set(self, prompts: PromptTensors) -> DetectorInputs:
        """Encode prompts, padded to the engine's capacity.

        Raises:
            BackendError: there are more prompts than the engine has room for.
        """
        needed = size_of(prompts)
        if not self._capacity.holds(needed):
            raise BackendError(f"the prompts have {needed}, but the engine was built for {self._capacity}")
        prompts = with_capacity(prompts, self._capacity) if self._keep_spare else without_spare(prompts)
        inputs = detector_inputs(self._model, torch.empty(0), prompts)
        self._inputs = DetectorInputs(*(tensor.contiguous() for tensor in inputs))  # engines read memory as traced
        return self._inputs

    def get(self) -> DetectorInputs:
        """Return the encoded prompts; the pixels among them are empty."""
        if self._inputs is None:
            raise BackendError("no prompts are set: call set_prompts first")
        return self._inputs


def raw_poses(results: Sequence[Tensor], placements: Sequence[Placement]) -> list[RawPoses]:
    """Turn an engine's four results, on the host, into poses as fractions of each source image."""
    boxes_BG4, logits_BGC, class_BG, keypoints_BGK2 = results
    return [
        RawPoses(
            logits_GC=logits_BGC[row].float().numpy(),
            class_G=class_BG[row].long().numpy(),
            boxes_G4=placement.boxes_to_image(boxes_BG4[row].float().numpy()),
            keypoints_GK2=placement.points_to_image(keypoints_BGK2[row].float().numpy()),
        )
        for row, placement in enumerate(placements)
    ]
