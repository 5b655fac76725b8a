"""Networks to convert: small ones of random sizes with random weights, and the inputs that they run on."""

import random
from dataclasses import dataclass

import torch

from engines.export import DetectorInputs, EngineShape, detector_inputs
from engines.prompt_tensors import PromptTensors
from engines.xpose import XPose, XPoseConfig


@dataclass(frozen=True)
class Case:
    """One network to convert."""

    config: XPoseConfig
    shape: EngineShape


def random_case(seed: int) -> Case:
    """Draw sizes that our kernels take: 16, 32 or 64 channels in a head, and 32 groups of channels in the neck.

    Every third network is convolutional.
    """
    draw = random.Random(seed)
    stages = draw.choice((2, 3))
    heads, depth = draw.choice(((1, 32), (2, 16), (2, 32), (4, 16), (1, 64)))
    first = draw.choice((8, 16))
    config = XPoseConfig(
        backbone="efficientnet_lite0" if seed % 3 == 0 else "swin",
        embed_dim=first,
        depths=tuple(draw.choice((1, 2)) for _ in range(stages)),
        num_heads=tuple(draw.choice((1, 2)) for _ in range(stages)),
        window=draw.choice((2, 4, 7)),
        level_stages=tuple(range(draw.randrange(stages), stages)),
        hidden_dim=heads * depth,
        heads=heads,
        points=draw.choice((1, 2, 4)),
        encoder_layers=draw.choice((1, 2)),
        decoder_layers=draw.choice((2, 3)),
        box_layers=1,
        queries=draw.randrange(6, 20),
        groups=draw.randrange(1, 6),
        feedforward=draw.choice((32, 48)),
        text_feedforward=32,
        text_heads=draw.choice((1, 2)),
        fusion_dim=draw.choice((32, 64)),
        fusion_heads=draw.choice((1, 2)),
        visual_width=32,
    )
    size = (draw.randrange(64, 130), draw.randrange(64, 130))
    shape = EngineShape(size, draw.choice((1, 2)), draw.choice((1, 3)), draw.choice((1, 4, 5)))
    return Case(config, shape)


def smallest_case() -> Case:
    """A network with one of each of its parts, which converts fast."""
    config = XPoseConfig(
        embed_dim=8,
        depths=(1,),
        num_heads=(1,),
        window=4,
        level_stages=(0,),
        hidden_dim=32,
        heads=1,
        points=2,
        encoder_layers=1,
        decoder_layers=2,
        box_layers=1,
        queries=8,
        groups=3,
        feedforward=32,
        text_feedforward=32,
        text_heads=1,
        fusion_dim=32,
        fusion_heads=1,
        visual_width=32,
    )
    return Case(config, EngineShape((64, 96), 1, 2, 4))


def random_network(config: XPoseConfig, seed: int) -> XPose:
    """Make a network whose heads do not start at zero, which would hide every error before them."""
    torch.manual_seed(seed)
    model = XPose(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("layers.2.weight"):
            torch.nn.init.normal_(parameter, std=0.05)
    return model


def random_inputs(model: XPose, shape: EngineShape, seed: int) -> DetectorInputs:
    """Draw pixels and prompts; the last class is absent, and classes have different numbers of keypoints."""
    generator = torch.Generator().manual_seed(seed)
    classes, keypoints, width = shape.max_classes, shape.max_keypoints, model.config.text_dim
    counts_C1 = torch.randint(1, keypoints + 1, (classes, 1), generator=generator)
    prompts = PromptTensors(
        objects_C512=torch.randn(classes, width, generator=generator),
        object_valid_C=torch.arange(classes) < max(classes - 1, 1),
        keypoints_CK512=torch.randn(classes, keypoints, width, generator=generator),
        keypoint_valid_CK=torch.arange(keypoints) < counts_C1,
    )
    pixels_B3HW = torch.randn(shape.batch, 3, *shape.input_hw, generator=generator)
    return DetectorInputs(*(tensor.clone() for tensor in detector_inputs(model, pixels_B3HW, prompts)))
