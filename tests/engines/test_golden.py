"""The network gives the original model's numbers, on real photos under the goldens' weights."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from engines.xpose import XPoseOutput
from engines.xpose.selection import top_queries
from tests.engines.fill import filled
from tests.engines.golden import (
    SHIPPED,
    GoldenCase,
    GoldenImage,
    force_selections,
    golden_case,
    golden_network,
    load_case,
    official_state,
)
from tests.support import need_shared

SMALL, PADDED, BORDER = 0, 5, 6


def run(case: GoldenCase, dtype: torch.dtype) -> XPoseOutput:
    with torch.inference_mode():
        output = golden_network(case.weight_seed, dtype)(**case.inputs(dtype))
    assert isinstance(output, XPoseOutput)
    return output


def differences(output: XPoseOutput, row: int, image: GoldenImage, prefix: str) -> tuple[float, float, float]:
    """Largest differences of logits, boxes and keypoints of one image."""
    logits, boxes = image.tensor(f"{prefix}pred_logits").double(), image.tensor(f"{prefix}pred_boxes").double()
    keypoints_GK2 = image.tensor(f"{prefix}pred_keypoints").double().unflatten(-1, (-1, 2))
    ours_GK2 = output.keypoints_BGK2[row, :, : keypoints_GK2.shape[1]]
    return (
        float((output.logits_BGC[row, :, : logits.shape[1]].double() - logits).abs().max()),
        float((output.boxes_BG4[row].double() - boxes).abs().max()),
        float((ours_GK2.double() - keypoints_GK2).abs().max()),
    )


class Recorder:
    """Keeps what modules return, by name."""

    def __init__(self, model: nn.Module) -> None:
        self.outputs: dict[str, object] = {}
        self.handles = [
            module.register_forward_hook(self._keep(name)) for name, module in model.named_modules() if name
        ]

    def _keep(self, name: str) -> Callable[[nn.Module, object, object], None]:
        def keep(_module: nn.Module, _inputs: object, output: object) -> None:
            self.outputs[name] = output

        return keep

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *_exception: object) -> None:
        for handle in self.handles:
            handle.remove()

    def tensor(self, name: str, part: int | None = None) -> Tensor:
        output = self.outputs[name]
        if part is not None:
            assert isinstance(output, (tuple, list))
            output = output[part]
        assert isinstance(output, Tensor)
        return output[0]


def sample(t_CHW: Tensor) -> Tensor:
    channels, height, width = t_CHW.shape
    return t_CHW[:: max(channels // 16, 1), :: max(height // 4, 1), :: max(width // 4, 1)]


@pytest.mark.parametrize("seed", [0, 4])
def test_fill_makes_the_weights_of_the_goldens(seed: int) -> None:
    checks = json.loads(need_shared("golden/fill_check.json").read_text())[str(seed)]
    for key, weights in filled(seed):
        if key in checks:
            assert hashlib.sha256(weights.numpy().tobytes()).hexdigest()[:16] == checks[key], key


@dataclass(frozen=True)
class Float64Run:
    """One forced run of a case in float64, and what its modules returned."""

    image: GoldenImage
    output: XPoseOutput
    scores: list[Tensor]  # of the tokens, then of the queries after the box layers
    recorder: Recorder


@pytest.fixture(scope="module", params=[SMALL, BORDER])
def float64_run(request: pytest.FixtureRequest) -> Iterator[Float64Run]:
    case = golden_case(request.param)
    with pytest.MonkeyPatch.context() as monkeypatch:
        scores = force_selections(monkeypatch, case)
        with Recorder(golden_network(case.weight_seed, torch.float64)) as recorder:
            yield Float64Run(case.images[0], run(case, torch.float64), scores, recorder)


def test_float64_agrees_with_the_original_in_float64(float64_run: Float64Run) -> None:
    logits, boxes, keypoints = differences(float64_run.output, 0, float64_run.image, "f64.")
    # Issue 2 allows 2e-4 and 2e-6. The code of positions is float32 as in the original, and its powers are rounded as
    # the processor's vector instructions round them: logits agree to 1e-13 on some machines and to 1e-6 on others.
    assert logits < 1e-5
    assert boxes < 1e-6
    assert keypoints < 1e-6


def test_scores_rank_tokens_as_the_original_does(float64_run: Float64Run) -> None:
    tokens_BN, queries_BQ = float64_run.scores
    for scores_BQ, name in ((tokens_BN, "enc_scores"), (queries_BQ, "dec_scores")):
        assert float((scores_BQ[0] - float64_run.image.tensor(name)).abs().max()) < 2e-4
    free, forced = top_queries(tokens_BN, 900)[0], float64_run.image.tensor("top900").long()
    gap = (tokens_BN[0, free] - tokens_BN[0, forced]).abs()  # the original ranked by float32 scores
    assert float(gap.max()) < 2e-4


def test_every_stage_agrees_with_the_original(float64_run: Float64Run) -> None:
    """Where a number goes wrong is where this fails first."""
    image, recorder = float64_run.image, float64_run.recorder
    rows = image.tensor("mem.rows").long()
    checked = {f"feat{i}.samp": sample(recorder.tensor("backbone.0", i)) for i in range(3)}
    checked |= {f"src{i}.samp": sample(recorder.tensor(f"input_proj.{i}")) for i in range(4)}
    checked |= {"proj": recorder.tensor("projection"), "proj_kpt": recorder.tensor("projection_kpt")}
    encoder = "transformer.encoder"
    for i in range(6):
        take = rows if i == 5 else rows[::4]
        checked[f"fus{i}.rows"] = recorder.tensor(f"{encoder}.fusion_layers.{i}", 0)[rows[::4]]
        checked[f"fus{i}.text"] = recorder.tensor(f"{encoder}.fusion_layers.{i}", 1)
        checked[f"txt{i}.text"] = recorder.tensor(f"{encoder}.text_layers.{i}")
        checked[f"enc{i}.rows"] = recorder.tensor(f"{encoder}.layers.{i}")[take]
        layer = recorder.tensor(f"transformer.decoder.layers.{i}")
        checked[f"dec{i}"] = layer[:5] if i < 2 else layer.unflatten(0, (50, -1))[:5]
    checked["enc_output.rows"] = recorder.tensor("transformer.enc_output_norm")[rows[::4]]
    for name, ours in checked.items():
        np.testing.assert_allclose(ours, image.tensor(name).double(), rtol=1e-4, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("number", [None, BORDER])
def test_float32_agrees_with_the_original_in_float32(number: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a number: the case that the repository ships."""
    case = load_case(SHIPPED) if number is None else golden_case(number)
    force_selections(monkeypatch, case)
    logits, boxes, keypoints = differences(run(case, torch.float32), 0, case.images[0], "")
    assert logits < 1e-3
    assert boxes < 1e-5
    assert keypoints < 1e-5


@pytest.mark.timeout(900)
def test_padded_batch_of_unequal_prompts_agrees_with_the_original(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sizes, 1 and 2 classes, 17 and 9 keypoints: padding and spare capacity must change no number."""
    case = golden_case(PADDED)
    force_selections(monkeypatch, case)
    output = run(case, torch.float32)
    for row, image in enumerate(case.images):
        logits, boxes, keypoints = differences(output, row, image, "")
        assert logits < 1e-3
        assert boxes < 1e-5
        assert keypoints < 1e-5
    assert torch.isinf(output.logits_BGC[0, :, 1]).all()
    assert not output.class_BG[0].any()


def test_the_released_key_set_is_the_table_without_the_text_tower() -> None:
    names = official_state(4).keys()
    assert len(names) == 1015
    assert not [name for name in names if re.match(r"clip_model\.(?!visual)", name)]
