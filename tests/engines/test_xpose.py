"""What the network promises of any weights: capacity, padding, dtypes, sizes, export, gradients."""

import dataclasses
import itertools

import pytest
import torch
from torch import Tensor

from engines.errors import InputError
from engines.xpose import XPose, XPoseConfig, XPoseOutput
from engines.xpose.geometry import pyramid_geometry
from engines.xpose.layers import circle_of_offsets, inverse_sigmoid, sine_code
from engines.xpose.swin import region_mask, relative_position_index
from tests.engines.fill import fill_tensor

SIDE = 128  # px: 84 tokens, fewer than the 100 queries
CLASSES, KEYPOINTS = 3, 19


TINY = XPoseConfig(
    embed_dim=16, depths=(1, 2, 2, 1), num_heads=(1, 2, 2, 4), window=5, level_stages=(2, 3), hidden_dim=64, heads=2,
    points=2, encoder_layers=2, decoder_layers=4, queries=100, groups=20, feedforward=64, text_feedforward=64,
    text_heads=2, fusion_dim=64, fusion_heads=2, visual_width=32, label_book=10,
)  # fmt: skip
SEED = 2  # of weights under which boxes fall to more than one class


def filled_network() -> XPose:
    """A tiny network under the goldens' rule for weights, whose every part shows."""
    network = XPose(TINY).eval().requires_grad_(requires_grad=False)
    noise = {
        key: fill_tensor(SEED, key, tuple(value.shape)) if value.is_floating_point() else value
        for key, value in network.state_dict().items()
    }
    network.load_state_dict(noise)
    return network


@pytest.fixture(scope="module")
def network() -> XPose:
    return filled_network().double()


def inputs(batch: int = 1, height: int = SIDE, width: int = SIDE) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(7)
    return {
        "pixels_B3HW": torch.randn(batch, 3, height, width, generator=generator, dtype=torch.float64),
        "objects_BC512": torch.randn(batch, CLASSES, 512, generator=generator, dtype=torch.float64),
        "keypoints": torch.randn(batch, CLASSES, KEYPOINTS, 512, generator=generator, dtype=torch.float64),
    }


def run(network: XPose, **arguments: Tensor) -> XPoseOutput:
    with torch.inference_mode():
        output = network(**arguments)
    assert isinstance(output, XPoseOutput)
    return output


def test_parameters_have_the_sizes_that_were_decided() -> None:
    assert XPoseConfig.swin_l().window == 12
    state = XPose(XPoseConfig.swin_l()).state_dict()
    assert state["input_proj.3.0.weight"].shape == (256, 1536, 3, 3)
    assert state["backbone.0.layers.2.blocks.17.attn.relative_position_index"].shape == (144, 144)
    assert state["backbone.0.layers.3.blocks.0.attn.relative_position_bias_table"].shape == (529, 48)


def test_outputs_are_fractions_with_a_class_per_group(network: XPose) -> None:
    output = run(network, **inputs())
    groups = network.config.groups
    assert output.boxes_BG4.shape == (1, groups, 4)
    assert output.logits_BGC.shape == (1, groups, CLASSES)
    assert output.keypoints_BGK2.shape == (1, groups, KEYPOINTS, 2)
    for fractions in (output.boxes_BG4, output.keypoints_BGK2):
        assert float(fractions.min()) >= 0
        assert float(fractions.max()) <= 1
    assert output.class_BG.dtype == torch.int64
    assert len(output.class_BG.unique()) > 1, "these weights should offer more than one class"


def test_spare_capacity_changes_no_number(network: XPose) -> None:
    """Spare rows hold large noise, so that anything that reads them shows."""
    exact = inputs()
    tight = run(network, **exact)
    spare_objects = torch.cat((exact["objects_BC512"], torch.full((1, 2, 512), 9.0, dtype=torch.float64)), dim=1)
    spare_keypoints = torch.full((1, CLASSES + 2, KEYPOINTS + 4, 512), -7.0, dtype=torch.float64)
    spare_keypoints[:, :CLASSES, :KEYPOINTS] = exact["keypoints"]
    keypoint_valid = torch.zeros((1, CLASSES + 2, KEYPOINTS + 4), dtype=torch.bool)
    keypoint_valid[:, :CLASSES, :KEYPOINTS] = True
    roomy = run(
        network,
        pixels_B3HW=exact["pixels_B3HW"],
        objects_BC512=spare_objects,
        keypoints=spare_keypoints,
        object_valid_BC=torch.tensor([[True] * CLASSES + [False] * 2]),
        keypoint_valid=keypoint_valid,
    )
    torch.testing.assert_close(roomy.boxes_BG4, tight.boxes_BG4, rtol=0, atol=1e-10)
    torch.testing.assert_close(roomy.logits_BGC[..., :CLASSES], tight.logits_BGC, rtol=1e-10, atol=1e-9)
    torch.testing.assert_close(roomy.keypoints_BGK2[:, :, :KEYPOINTS], tight.keypoints_BGK2, rtol=0, atol=1e-10)
    assert torch.equal(roomy.class_BG, tight.class_BG)
    assert bool((roomy.logits_BGC[..., CLASSES:] == -torch.inf).all())


def test_one_list_equals_the_same_list_for_every_class(network: XPose) -> None:
    arguments = inputs()
    one_list = arguments["keypoints"][:, 0]
    valid = torch.arange(KEYPOINTS)[None] % 3 != 2
    shared = run(network, **{**arguments, "keypoints": one_list, "keypoint_valid": valid})
    repeated = {
        "keypoints": one_list[:, None].expand(-1, CLASSES, -1, -1),
        "keypoint_valid": valid[:, None].expand(-1, CLASSES, -1),
    }
    listed = run(network, **{**arguments, **repeated})
    for ours, theirs in zip(shared, listed, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


def test_each_box_takes_the_keypoints_of_its_own_class(network: XPose) -> None:
    """Changing the list of one class moves the keypoints of its boxes and of no other."""
    arguments = inputs()
    before = run(network, **arguments)
    changed = arguments["keypoints"].clone()
    changed[:, 1] = changed[:, 1].flip(1)
    after = run(network, **{**arguments, "keypoints": changed})
    assert torch.equal(before.class_BG, after.class_BG)
    moved = (before.keypoints_BGK2 - after.keypoints_BGK2).abs().amax((-1, -2)) > 1e-6
    assert torch.equal(moved, before.class_BG == 1)


def test_a_padding_mask_of_nothing_equals_no_mask(network: XPose) -> None:
    arguments = inputs(batch=2)
    unmasked = run(network, **arguments)
    masked = run(network, **arguments, padding_BHW=torch.zeros(2, SIDE, SIDE, dtype=torch.bool))
    for ours, theirs in zip(masked, unmasked, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)


def test_padded_cells_reach_no_output(network: XPose, monkeypatch: pytest.MonkeyPatch) -> None:
    """The backbone sees padding as black, like the original; from the neck on, what it made of it must not matter."""
    arguments = inputs(batch=2)
    half = SIDE // 2  # on the edge of a cell of every level
    padding = torch.zeros(2, SIDE, SIDE, dtype=torch.bool)
    padding[0, :, half:] = True
    padding[1, half:] = True
    before = run(network, **arguments, padding_BHW=padding)
    with torch.inference_mode():
        maps = network.feature_maps(arguments["pixels_B3HW"])
        for level in maps:
            height, width = level.shape[2:]
            level[0, :, :, width // 2 :] = 100.0
            level[1, :, height // 2 :] = -100.0
    monkeypatch.setattr(network, "feature_maps", lambda _pixels: [level.clone() for level in maps])
    after = run(network, **arguments, padding_BHW=padding)
    for ours, theirs in zip(after, before, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)


def test_batch_equals_its_images(network: XPose) -> None:
    arguments = inputs(batch=2)
    together = run(network, **arguments)
    for row in range(2):
        alone = run(network, **{name: tensor[row : row + 1] for name, tensor in arguments.items()})
        for ours, theirs in zip(together, alone, strict=True):
            torch.testing.assert_close(ours[row : row + 1], theirs, rtol=0, atol=1e-9)


@pytest.mark.parametrize("size", [(1, 1), (33, 257), (70, 40)])
def test_any_size_runs_with_fewer_tokens_than_queries(network: XPose, size: tuple[int, int]) -> None:
    output = run(network, **inputs(height=size[0], width=size[1]))
    for values in (output.boxes_BG4, output.keypoints_BGK2, output.logits_BGC):
        assert bool(values.isfinite().all())
    assert output.boxes_BG4.shape[1] <= network.config.groups


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_dtype_runs_with_coordinates_in_at_least_float32(dtype: torch.dtype) -> None:
    network = filled_network().to(dtype)
    output = run(network, **{name: tensor.to(dtype) for name, tensor in inputs().items()})
    assert output.boxes_BG4.dtype == torch.float32
    assert output.keypoints_BGK2.dtype == torch.float32
    assert bool(output.keypoints_BGK2.isfinite().all())


def test_float32_stays_close_to_float64(network: XPose, monkeypatch: pytest.MonkeyPatch) -> None:
    """Selections of float64 forced, as neighbours may trade ranks."""
    chosen: list[Tensor] = []

    def remember(scores_BQ: Tensor, count: int) -> Tensor:
        chosen.append(scores_BQ.topk(count).indices)
        return chosen[-1]

    monkeypatch.setattr("engines.xpose.model.top_queries", remember)
    exact = run(network, **inputs())
    replay = iter(chosen)
    monkeypatch.setattr("engines.xpose.model.top_queries", lambda _scores, _count: next(replay))
    rough = run(filled_network(), **{name: tensor.float() for name, tensor in inputs().items()})
    assert float((exact.keypoints_BGK2 - rough.keypoints_BGK2).abs().max()) < 1e-4


def test_wrong_shapes_are_named(network: XPose) -> None:
    arguments = inputs()
    many = torch.zeros(1, 69, 512, dtype=torch.float64)
    for change, words in (
        ({"keypoints": many}, "69 keypoints, but the network takes 1 to 68"),
        ({"keypoints": many[:, :0]}, "0 keypoints"),
        ({"keypoints": many[0]}, "keypoints must be"),
        ({"objects_BC512": torch.zeros(1, 0, 512, dtype=torch.float64)}, "at least 1 class"),
        ({"objects_BC512": torch.zeros(2, CLASSES, 512, dtype=torch.float64)}, r"objects must have the shape \[1, 3"),
        ({"padding_BHW": torch.zeros(1, 4, 4, dtype=torch.bool)}, "padding must have the shape"),
        ({"keypoint_valid": torch.ones(1, KEYPOINTS, dtype=torch.bool)}, "keypoint_valid must have the shape"),
        ({"pixels_B3HW": torch.zeros(3, 8, 8, dtype=torch.float64)}, "pixels must have 4 dimensions"),
    ):
        with pytest.raises(InputError, match=words):
            network(**{**arguments, **change})


@pytest.mark.parametrize("strict", [True, False])
def test_exports_with_fixed_shapes(strict: bool) -> None:
    """All masks given, as a compiled engine has them; the program must give the eager numbers."""
    network = filled_network()
    arguments = {name: tensor.float() for name, tensor in inputs().items()}
    arguments["object_valid_BC"] = torch.tensor([[True, True, False]])
    arguments["keypoint_valid"] = torch.ones(1, CLASSES, KEYPOINTS, dtype=torch.bool)
    arguments["padding_BHW"] = torch.zeros(1, SIDE, SIDE, dtype=torch.bool)
    program = torch.export.export(network, (), kwargs=arguments, strict=strict)
    for ours, theirs in zip(program.module()(**arguments), run(network, **arguments), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_every_parameter_that_can_learn_gets_a_gradient() -> None:
    """Only what has no influence gets none: queries and keys of the text layers, and the parts of other prompts."""
    network = filled_network().train().requires_grad_(requires_grad=True)
    output = network(**{name: tensor.float() for name, tensor in inputs(batch=2).items()})
    (output.boxes_BG4.sum() + output.keypoints_BGK2.square().sum() + output.logits_BGC.sum()).backward()
    idle = {
        name
        for name, parameter in network.named_parameters()
        if parameter.grad is None or not bool(parameter.grad.any())
    }
    assert idle == {"label_enc.weight", "pos_proj.weight", "pos_proj.bias", "padding.weight"}


def test_drop_path_acts_in_training_only() -> None:
    config = dataclasses.replace(TINY, drop_path=0.9, fusion_drop_path=0.9)
    network = XPose(config)
    arguments = {name: tensor.float() for name, tensor in inputs().items()}
    trained = [network.train().feature_maps(arguments["pixels_B3HW"])[0] for _ in range(2)]
    tested = [network.eval().feature_maps(arguments["pixels_B3HW"])[0] for _ in range(2)]
    assert not torch.equal(*trained)
    assert torch.equal(*tested)


def test_initial_values_are_those_of_the_released_code() -> None:
    network = XPose(TINY)
    attention = network.transformer.encoder.layers[0].get_submodule("self_attn")
    assert not bool(attention.get_parameter("sampling_offsets.weight").any())
    assert not bool(attention.get_parameter("attention_weights.bias").any())
    for head in ("bbox_embed.0", "pose_embed.0", "transformer.enc_out_bbox_embed"):
        assert not bool(network.get_parameter(f"{head}.layers.2.weight").any())
    assert bool(network.get_parameter("pose_hw_embed.0.layers.2.weight").any())
    fusion = network.transformer.encoder.fusion_layers[0]
    assert bool((fusion.get_parameter("gamma_v") == 1e-4).all())


def test_first_sampling_points_stand_in_a_circle() -> None:
    offsets_MLP2 = circle_of_offsets(heads=8, levels=4, points=4).unflatten(0, (8, 4, 4, 2))
    circle = [(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]
    torch.testing.assert_close(offsets_MLP2[:, 2, 0], torch.tensor(circle, dtype=torch.float32), rtol=0, atol=1e-6)
    torch.testing.assert_close(offsets_MLP2[:, 1, 3], 4 * offsets_MLP2[:, 1, 0])


@pytest.mark.parametrize(
    ("fraction", "logit"),
    [
        (0, -6.907755), (0.0005, -6.907255), (0.001, -6.906755), (0.25, -1.098612),
        (0.5, 0), (0.9, 2.197224), (0.999, 6.906754), (1, 6.907755),
    ],
)  # fmt: skip
def test_inverse_sigmoid_clamps_at_a_thousandth(fraction: float, logit: float) -> None:
    assert float(inverse_sigmoid(torch.tensor(fraction, dtype=torch.float64))) == pytest.approx(logit, abs=2e-6)


def test_image_positions_are_the_released_ones() -> None:
    geometry = pyramid_geometry(((2, 3),), 256, None, torch.device("cpu"))
    first, last = geometry.position_BND[0, 0], geometry.position_BND[0, 5]
    torch.testing.assert_close(first[:4], torch.tensor([0.000001, -1.0, 0.143172, -0.989698]), rtol=0, atol=2e-6)
    torch.testing.assert_close(first[128:132], torch.tensor([0.866026, -0.5, 0.909871, -0.414890]), rtol=0, atol=2e-6)
    channels = [126, 127, 254, 255]
    torch.testing.assert_close(last[channels], torch.tensor([0.323299, 0.946297] * 2), rtol=0, atol=2e-6)


def test_query_positions_are_the_released_ones() -> None:
    with torch.device("meta"):
        decoder = XPose(XPoseConfig.swin_t()).transformer.decoder
    code = decoder.code_references(torch.tensor([[[0.25, 0.5, 0.1, 0.2]]], dtype=torch.float64))[0, 0]
    expected = {
        0: [0, -1, 0.408751, -0.912646], 128: [1, 0, 0.977918, 0.208991],
        256: [0.587785, 0.809017, 0.517650, 0.855593], 384: [0.951057, 0.309017, 0.885794, 0.464078],
    }  # fmt: skip
    for start, values in expected.items():
        ours = code[start : start + 4]
        torch.testing.assert_close(ours, torch.tensor(values, dtype=torch.float64), rtol=0, atol=2e-6)


def test_sine_code_interleaves_sines_and_cosines() -> None:
    code = sine_code(torch.tensor([0.5], dtype=torch.float64), 4, temperature=100.0)[0]
    angles = torch.tensor([0.5, 0.05], dtype=torch.float64)
    torch.testing.assert_close(code, torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(), rtol=1e-6, atol=1e-7)


def test_relative_index_is_the_released_one() -> None:
    index = relative_position_index(7)
    for (query, key), row in {
        (0, 0): 84, (0, 1): 83, (1, 0): 85, (0, 7): 71, (7, 0): 97, (0, 48): 0, (48, 0): 168, (10, 33): 43,
    }.items():  # fmt: skip
        assert int(index[query, key]) == row


def test_shifted_windows_tell_regions_apart() -> None:
    """Rows 0-6, 7-10 and 11-13 of a grid of 14 are the three regions, and the same for columns."""
    mask_NTT = region_mask(14, 14, 7, torch.device("cpu"))
    assert not bool(mask_NTT[0].any())
    rows = [0 if row < 4 else 1 for row in range(7)]  # of the lower windows
    for query, key in itertools.product(range(7), repeat=2):
        assert bool(mask_NTT[2, 7 * query, 7 * key]) == (rows[query] != rows[key])
    assert float(mask_NTT.min()) == -100.0


def test_padding_masks_shrink_to_the_released_counts() -> None:
    """401 x 416 pixels with 320 x 300 valid."""
    padding = torch.ones(1, 401, 416, dtype=torch.bool)
    padding[:, :320, :300] = False
    sizes = ((51, 52), (26, 26), (13, 13), (7, 7))
    geometry = pyramid_geometry(sizes, 8, padding, torch.device("cpu"))
    cells = torch.tensor([[width, height] for height, width in sizes])
    valid = (geometry.valid_ratio_BL2[0] * cells).round().long()
    assert valid.tolist() == [[38, 41], [19, 21], [10, 11], [6, 6]]


def test_proposals_near_the_border_are_not_offered() -> None:
    geometry = pyramid_geometry(((100, 134),), 8, None, torch.device("cpu"))
    offered = geometry.offered_BN1.reshape(100, 134)
    assert not bool(offered[0].any())
    assert bool(offered[1, 1])
    assert bool((geometry.proposal_BN4[0, 0] == torch.inf).all())
