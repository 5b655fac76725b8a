"""The network as one exported program: the interchange from which every engine is compiled.

The program has a fixed input size, batch and prompt capacity. Prompts are inputs, never baked in, so that they can be
swapped between two frames. What depends on prompts alone is computed once, outside the program.

Shape suffixes: B batch, H height, W width, C classes and K keypoints of the capacity, D channels, G groups.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from engines.precision import place
from engines.prompt_tensors import PromptTensors
from engines.xpose import XPose
from engines.xpose.model import Prompts


@dataclass(frozen=True)
class EngineShape:
    """The fixed sizes of a compiled engine: input in pixels, images per call, prompt capacity."""

    input_hw: tuple[int, int]
    batch: int
    max_classes: int
    max_keypoints: int


class DetectorInputs(NamedTuple):
    """What a compiled engine takes, in this order; all but the pixels change only with the prompts."""

    pixels_B3HW: Tensor  # float32, normalised
    text_CD: Tensor
    object_valid_C: Tensor  # bool
    keypoints_CKD: Tensor
    keypoint_offsets_CK2: Tensor
    keypoint_valid_CK: Tensor  # bool


class Detector(nn.Module):
    """XPose behind flat inputs; gives boxes [B, G, 4], logits [B, G, C], classes [B, G] and keypoints [B, G, K, 2]."""

    def __init__(self, model: XPose) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        pixels_B3HW: Tensor,
        text_CD: Tensor,
        object_valid_C: Tensor,
        keypoints_CKD: Tensor,
        keypoint_offsets_CK2: Tensor,
        keypoint_valid_CK: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Run the network; every image of the batch is offered the same prompts."""
        batch = pixels_B3HW.shape[0]
        prompts = Prompts(
            text_BCD=text_CD.expand(batch, *text_CD.shape),
            object_valid_BC=object_valid_C.expand(batch, *object_valid_C.shape),
            keypoints_BCKD=keypoints_CKD.expand(batch, *keypoints_CKD.shape),
            keypoint_offsets_BCK2=keypoint_offsets_CK2.expand(batch, *keypoint_offsets_CK2.shape),
            keypoint_sizes_K2=self.model.transformer.decoder.keypoint_sizes(keypoints_CKD.shape[1]),
            keypoint_valid_BCK=keypoint_valid_CK.expand(batch, *keypoint_valid_CK.shape),
        )
        output = self.model.detect(pixels_B3HW, prompts)
        return output.boxes_BG4, output.logits_BGC, output.class_BG, output.keypoints_BGK2


@torch.inference_mode()
def detector_inputs(model: XPose, pixels_B3HW: Tensor, prompts: PromptTensors) -> DetectorInputs:
    """Compute a compiled engine's inputs from pixels and from the prompts' embeddings, on the device of `model`."""
    device = model.transformer.level_embed.device
    encoded = model.encode_prompts(
        prompts.objects_C512[None].to(device),
        prompts.keypoints_CK512[None].to(device),
        prompts.object_valid_C[None].to(device),
        prompts.keypoint_valid_CK[None].to(device),
    )
    assert encoded.object_valid_BC is not None
    assert encoded.keypoint_valid_BCK is not None
    return DetectorInputs(
        pixels_B3HW.to(device),
        encoded.text_BCD[0],
        encoded.object_valid_BC[0],
        encoded.keypoints_BCKD[0],
        encoded.keypoint_offsets_BCK2[0],
        encoded.keypoint_valid_BCK[0],
    )


def example_inputs(model: XPose, shape: EngineShape) -> DetectorInputs:
    """Inputs of the right shapes and types, with made-up contents, for tracing."""
    generator = torch.Generator().manual_seed(0)
    width = model.config.text_dim
    prompts = PromptTensors(
        objects_C512=torch.randn(shape.max_classes, width, generator=generator),
        object_valid_C=torch.ones(shape.max_classes, dtype=torch.bool),
        keypoints_CK512=torch.randn(shape.max_classes, shape.max_keypoints, width, generator=generator),
        keypoint_valid_CK=torch.ones(shape.max_classes, shape.max_keypoints, dtype=torch.bool),
    )
    pixels_B3HW = torch.randn(shape.batch, 3, *shape.input_hw, generator=generator)
    return DetectorInputs(*(tensor.clone() for tensor in detector_inputs(model, pixels_B3HW, prompts)))


def export(model: XPose, shape: EngineShape, precision: str) -> ExportedProgram:
    """Trace the network at fixed sizes.

    Args:
        model: its parameters are placed for `precision` (`engines.precision`), in place.
        precision: "fp32", "fp16" or "bf16".
    """
    model = place(model, precision).eval().requires_grad_(False)
    inputs = tuple(example_inputs(model, shape))
    with torch.no_grad():
        return torch.export.export(Detector(model), inputs)
