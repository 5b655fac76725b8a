"""Encoded prompts, as backends take them. Importing this module needs no text or configuration packages."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class PromptTensors:
    """Prompts padded to a capacity of C classes, K keypoints; vectors float32, masks bool, True on real entries."""

    objects_C512: Tensor
    object_valid_C: Tensor
    keypoints_CK512: Tensor
    keypoint_valid_CK: Tensor


def without_spare(prompts: PromptTensors) -> PromptTensors:
    """Return the prompts without unused capacity. No result changes."""
    classes = int(prompts.object_valid_C.sum())
    keypoints = int(prompts.keypoint_valid_CK.sum(dim=1).max())
    return PromptTensors(
        objects_C512=prompts.objects_C512[:classes],
        object_valid_C=prompts.object_valid_C[:classes],
        keypoints_CK512=prompts.keypoints_CK512[:classes, :keypoints],
        keypoint_valid_CK=prompts.keypoint_valid_CK[:classes, :keypoints],
    )
