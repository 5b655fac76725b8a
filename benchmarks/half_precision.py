"""Error of half precision in the coordinates, on the goldens. The original's selections are forced.

    python -m benchmarks.half_precision            # every golden; each takes minutes

Three uses of float16 are compared with the same network in float32, by emulated rounding (`benchmarks.half_emulation`):

* weights: all weights stored in float16, arithmetic in float32: the smallest error that a float16 engine can have;
* ours: the exported graph, in float16 where `engines.precision` uses it;
* locations too: the same, with the reference points and sampling offsets rounded, too, as in a kernel whose arguments
  must all have the same type.

The goldens' weights are random, which increases every rounding error. Drift is in fractions of the image.
"""

import copy
import sys
from collections.abc import Callable
from typing import TypeVar

import pytest
import torch
from torch import Tensor, nn

from benchmarks._record import record
from benchmarks.half_emulation import HalfEmulation, round_to_half
from engines.precision import place
from engines.xpose import XPose, XPoseOutput
from tests.engines.golden import GoldenCase, force_selections, golden_case, golden_network

Result = TypeVar("Result")
DEFORMABLE = frozenset({"xpose.ms_deform_attn.default"})
CASES = range(7)


class Positional(nn.Module):
    """The network with its inputs in order, as an exported program takes them; returns boxes and keypoints."""

    def __init__(self, model: XPose) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Run with `XPose.forward`'s arguments."""
        output = self.model(*inputs)
        return output.boxes_BG4, output.keypoints_BGK2


def study(number: int) -> dict[str, object]:
    """Measure one golden; returns a row."""
    case = golden_case(number)
    inputs = tuple(case.inputs(torch.float32).values())
    model = golden_network(case.weight_seed, torch.float32)
    exact = _forced(case, lambda: tuple(model(*inputs)))
    rounded = copy.deepcopy(model)
    for parameter in rounded.parameters():
        parameter.data = round_to_half(parameter.data)
    floor = _forced(case, lambda: tuple(rounded(*inputs)))
    placed = Positional(place(copy.deepcopy(model), "fp16")).eval()
    program = _forced(case, lambda: torch.export.export(placed, inputs))
    with torch.inference_mode():
        ours = HalfEmulation(program).run(*inputs)
        locations = HalfEmulation(program, round_also=DEFORMABLE).run(*inputs)
    reference = (XPoseOutput(*exact).boxes_BG4, XPoseOutput(*exact).keypoints_BGK2)
    floor = (XPoseOutput(*floor).boxes_BG4, XPoseOutput(*floor).keypoints_BGK2)
    row: dict[str, object] = {"case": number}
    for name, found in (("weights", floor), ("ours", ours), ("locations", locations)):
        row |= {f"{name}_{key}": value for key, value in drift(reference, found).items()}
    return row


def drift(reference: tuple[Tensor, ...], found: tuple[Tensor, ...]) -> dict[str, float]:
    """Median, 95th percentile and largest absolute difference of box and keypoint coordinates."""
    figures = {}
    for name, expected, got in zip(("box", "keypoint"), reference, found, strict=True):
        difference = (got - expected).abs().flatten()
        figures[f"{name}_median"] = float(difference.median())
        figures[f"{name}_p95"] = float(difference.quantile(0.95))
        figures[f"{name}_max"] = float(difference.max())
    return figures


def _forced(case: GoldenCase, run: Callable[[], Result]) -> Result:
    """Run with the original's selections in place of ours."""
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        force_selections(patch, case)
        return run()


def main() -> None:
    """Measure every golden and record the rows."""
    numbers = [int(argument) for argument in sys.argv[1:]] or list(CASES)
    rows = []
    for number in numbers:
        row = study(number)
        rows.append(row)
        ratios = {
            key: row[f"ours_{key}"] / row[f"weights_{key}"]  # type: ignore[operator]
            for key in ("box_median", "box_p95", "keypoint_median", "keypoint_p95")
        }
        print(
            f"case {number}: ours over the floor: " + ", ".join(f"{key} {value:.2f}" for key, value in ratios.items())
        )
    print(record("half_precision", rows))


if __name__ == "__main__":
    main()
