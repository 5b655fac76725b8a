"""Encoded prompts, as backends take them. Importing this module needs no text or configuration packages."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import pad

from engines.capacity import Capacity


@dataclass(frozen=True)
class PromptTensors:
    """Prompts padded to a capacity of C classes, K keypoints; vectors float32, masks bool, True on real entries.

    Real entries come first.
    """

    objects_C512: Tensor
    object_valid_C: Tensor
    keypoints_CK512: Tensor
    keypoint_valid_CK: Tensor


def size_of(prompts: PromptTensors) -> Capacity:
    """Return how many classes there are, and the keypoints of the class that has most."""
    return Capacity(int(prompts.object_valid_C.sum()), int(prompts.keypoint_valid_CK.sum(dim=1).max()))


def without_spare(prompts: PromptTensors) -> PromptTensors:
    """Return the prompts without unused capacity. No result changes."""
    classes, keypoints = size_of(prompts)
    return PromptTensors(
        objects_C512=prompts.objects_C512[:classes],
        object_valid_C=prompts.object_valid_C[:classes],
        keypoints_CK512=prompts.keypoints_CK512[:classes, :keypoints],
        keypoint_valid_CK=prompts.keypoint_valid_CK[:classes, :keypoints],
    )


def with_capacity(prompts: PromptTensors, capacity: Capacity) -> PromptTensors:
    """Return the prompts padded to a capacity, which must hold them. No result changes."""
    tight = without_spare(prompts)
    classes = capacity.classes - len(tight.objects_C512)
    keypoints = capacity.keypoints - tight.keypoint_valid_CK.shape[1]
    return PromptTensors(
        objects_C512=pad(tight.objects_C512, (0, 0, 0, classes)),
        object_valid_C=pad(tight.object_valid_C, (0, classes)),
        keypoints_CK512=pad(tight.keypoints_CK512, (0, 0, 0, keypoints, 0, classes)),
        keypoint_valid_CK=pad(tight.keypoint_valid_CK, (0, keypoints, 0, classes)),
    )
