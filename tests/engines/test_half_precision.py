"""Half precision, where the placement puts it, costs little more than storing the weights in it."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.half_emulation import HalfEmulation
from benchmarks.half_precision import study
from engines.backends.eager import EagerBackend
from engines.precision import place
from engines.xpose import XPose, XPoseConfig
from engines.xpose.layers import Linear

SMALL, BORDER = 0, 6


@pytest.mark.timeout(600)
@pytest.mark.parametrize("case", [SMALL, BORDER])
def test_drift_is_at_most_twice_that_of_half_stored_weights(case: int) -> None:
    """The floor is what no half-precision engine can beat; the goldens' random weights magnify every rounding."""
    row = study(case)
    for figure in ("box_median", "box_p95", "keypoint_median", "keypoint_p95"):
        assert row[f"ours_{figure}"] <= 2 * row[f"weights_{figure}"], figure


def test_emulation_rounds_as_half_arithmetic_with_wide_sums_does() -> None:
    """One linear map: operands and result rounded to float16, the sum in float32."""
    torch.manual_seed(0)
    layer = Linear(64, 32).half()
    x = torch.randn(5, 64)
    program = torch.export.export(layer, (x,))
    expected = torch.nn.functional.linear(x.half().float(), layer.weight.float(), layer.bias.float()).half().float()
    with torch.inference_mode():
        torch.testing.assert_close(HalfEmulation(program).run(x), expected, rtol=0, atol=0)


def test_under_autocast_a_linear_map_takes_half_inputs_as_they_are() -> None:
    """Training in bfloat16: a cast up to the weight's float32, only to be cast down again, is memory traffic."""
    layer, x = Linear(64, 32), torch.randn(5, 64, dtype=torch.bfloat16)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as taken, torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    casts = [event.input_shapes[0] for event in taken.events() if event.name == "aten::_to_copy"]
    assert y.dtype == torch.bfloat16
    assert sorted(casts) == [[32], [32, 64]]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_placement_keeps_what_makes_coordinates_in_float32(precision: str) -> None:
    half = {"fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    dtypes = {name: tensor.dtype for name, tensor in place(XPose(XPoseConfig.nano()), precision).named_parameters()}
    layer = "transformer.encoder.layers.0"
    for name in ("self_attn.value_proj.weight", "self_attn.output_proj.bias", "linear1.weight", "linear2.weight"):
        assert dtypes[f"{layer}.{name}"] == half
    assert dtypes["transformer.decoder.layers.0.self_attn.in_proj_weight"] == half
    assert dtypes["backbone.0.layers.0.blocks.0.attn.qkv.weight"] == half
    for name in ("self_attn.sampling_offsets.weight", "self_attn.attention_weights.weight", "norm1.weight"):
        assert dtypes[f"{layer}.{name}"] == torch.float32
    for name in ("bbox_embed.0.layers.2.weight", "transformer.decoder.ref_point_head.layers.0.weight"):
        assert dtypes[name] == torch.float32
    assert dtypes["transformer.encoder.fusion_layers.0.attn.v_proj.weight"] == torch.float32


def test_the_eager_backend_turns_tf32_off() -> None:
    """It is the reference for compiled engines, and what a user gets who asks for fp32."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    EagerBackend(XPose(XPoseConfig.nano()), (64, 96), 1, "fp32", torch.device("cpu")).close()
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


def test_unknown_precision_is_refused_with_what_is_allowed() -> None:
    with pytest.raises(ValueError, match="fp32, fp16, bf16"):
        place(XPose(XPoseConfig.nano()), "int8")
