"""The detections of one image. This module does not import torch.

Legend: N detections, K keypoint slots (the longest list among the prompts).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from engines.prompts import PromptClass


@dataclass(frozen=True, eq=False)
class Detections:
    """The detections of one image, in pixels of that image: x right, y down, (0, 0) the upper left corner.

    Attributes:
        boxes_N4: left, top, right, bottom; float32.
        scores_N: sigmoid of the class logit, float32.
        class_N: index into `prompts`, int64.
        keypoints_NK2: x, y; float32; NaN beyond the class's own list.
        prompt_id: number of the prompts that were used, as `Engine.set_prompts` returned it.
        prompts: these prompts.
    """

    boxes_N4: NDArray[np.float32]
    scores_N: NDArray[np.float32]
    class_N: NDArray[np.int64]
    keypoints_NK2: NDArray[np.float32]
    prompt_id: int
    prompts: tuple[PromptClass, ...]

    @classmethod
    def empty(cls, prompts: tuple[PromptClass, ...], prompt_id: int) -> Self:
        """Return the detections of an image in which nothing was found."""
        slots = max((len(prompt.skeleton.keypoints) for prompt in prompts), default=0)
        return cls(
            np.zeros((0, 4), np.float32),
            np.zeros(0, np.float32),
            np.zeros(0, np.int64),
            np.zeros((0, slots, 2), np.float32),
            prompt_id,
            prompts,
        )
