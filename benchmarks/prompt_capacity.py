"""Floating-point operations of one image by the engine's capacity for prompts.

    python -m benchmarks.prompt_capacity [--record]

The operations of a compiled engine depend on its capacity, not on the prompts. The engine that a person needs is built
by `build-engine --classes 1 --keypoints 17`. All capacities of `engines.capacity` are counted in their order, the
cheapest first, up to the default of 8 classes and 68 keypoints. PyTorch's `FlopCounterMode` counts the operations on
tensors without contents; a multiplication and an addition count as two.
"""

import argparse
from typing import Any
from unittest.mock import patch

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula

from benchmarks._record import record
from engines.capacity import Capacity, capacities_for
from engines.checkpoint import MODELS
from engines.export import Detector, DetectorInputs, EngineShape
from engines.kernels import cpu
from engines.xpose import XPose

CAPACITIES = capacities_for(Capacity(1, 1), Capacity(8, 68))
SIZES = {"nano": None, "swin-t": (800, 1344)}


@register_flop_formula(torch.ops.xpose.ms_deform_attn)
def _deform_attn_flops(value: Any, reference: Any, offsets: Any, logits: Any, sizes: str, *_: Any, **__: Any) -> int:
    """Count the operations of the sampling: for four corners of each point, a product and a sum per channel."""
    batch, queries, heads, levels, points, _two = offsets
    return int(batch * queries * heads * levels * points * value[3] * 4 * 2)


def inputs_of(config: Any, shape: EngineShape) -> DetectorInputs:
    """Return inputs of the right shapes, without contents."""
    classes, keypoints, width = shape.max_classes, shape.max_keypoints, config.hidden_dim
    return DetectorInputs(
        torch.empty(shape.batch, 3, *shape.input_hw),
        torch.empty(classes, width),
        torch.empty(classes, dtype=torch.bool),
        torch.empty(classes, keypoints, width),
        torch.empty(classes, keypoints, 2),
        torch.empty(classes, keypoints, dtype=torch.bool),
    )


def gigaflops(name: str, capacity: Capacity) -> float:
    """Count the operations of one image at one capacity."""
    config = MODELS[name][0]()
    shape = EngineShape(SIZES[name] or config.input_hw, 1, *capacity)
    detector = Detector(XPose(config)).eval().requires_grad_(False)
    with (
        patch.object(cpu, "window_attention_available", lambda *_: False),
        torch.no_grad(),
        FakeTensorMode(allow_non_fake_inputs=True),
        FlopCounterMode(display=False) as counter,
    ):
        detector(*inputs_of(config, shape))
    return float(counter.get_total_flops()) / 1e9


def main() -> None:
    """Count, print; record on request."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    rows = []
    for name in SIZES:
        for capacity in CAPACITIES:
            found = gigaflops(name, capacity)
            rows.append(
                {"model": name, "classes": capacity.classes, "keypoints": capacity.keypoints, "gflop": round(found, 2)}
            )
            print(rows[-1], flush=True)
    if options.record:
        print(record("prompt_capacity", rows))


if __name__ == "__main__":
    main()
