"""The operator as the network, the trainer and the exporter see it, on a CPU."""

import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor

from engines.kernels import cpu, ms_deform_attn
from engines.kernels.compiler import build_library, find_compiler
from engines.kernels.reference import ms_deform_attn_reference
from tests.engines.kernels.cases import CASES, FLOAT32_TOLERANCE, Case, random_case

BY_NAME = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def _exact(case: Case) -> Tensor:
    return ms_deform_attn_reference(
        case.value_BSMD.double(), case.sizes_L2, *(tensor.double() for tensor in case.tensors[1:])
    )


def _gradients(case: Case, dtype: torch.dtype) -> list[Tensor]:
    leaves = [tensor.to(dtype).requires_grad_() for tensor in case.tensors]
    out = ms_deform_attn(leaves[0], case.sizes_L2, *leaves[1:])
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    return list(torch.autograd.grad(out, leaves, weights))


def test_the_compiled_form_is_what_runs_here() -> None:
    """Guards all tests below: they would pass just as well on the plain form."""
    case = CASES[0]
    assert cpu.available(case.value_BSMD, case.offsets_BQMLP2)


@BY_NAME
def test_compiled_form_agrees_with_the_float64_reference(case: Case) -> None:
    got = ms_deform_attn(case.value_BSMD, case.sizes_L2, *case.tensors[1:])
    torch.testing.assert_close(got.double(), _exact(case), atol=FLOAT32_TOLERANCE, rtol=FLOAT32_TOLERANCE)


@BY_NAME
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_half_precision_errs_at_most_twice_as_much_as_the_plain_form(case: Case, dtype: torch.dtype) -> None:
    """Both read values in half precision and sum in float32; the plain form's error is the rounding itself."""
    value = case.value_BSMD.to(dtype)
    exact = _exact(case)
    plain = ms_deform_attn_reference(value, case.sizes_L2, *case.tensors[1:])
    got = ms_deform_attn(value, case.sizes_L2, *case.tensors[1:])
    assert got.dtype == dtype
    assert (got.double() - exact).abs().max() <= 2 * (plain.double() - exact).abs().max() + FLOAT32_TOLERANCE


@pytest.mark.parametrize(
    "case",
    [case for case in CASES if case.name not in ("on borders", "far outside")],
    ids=lambda case: case.name,
)
def test_compiled_gradients_agree_with_those_of_the_float64_reference(case: Case) -> None:
    """On a border the derivative jumps, and float32 may stand on the other side than float64: those are left out."""
    for got, exact in zip(_gradients(case, torch.float32), _gradients(case, torch.float64), strict=True):
        scale = exact.abs().max().clamp_min(1.0)
        torch.testing.assert_close(got.double() / scale, exact / scale, atol=1e-5, rtol=1e-4)


def test_gradients_far_outside_are_zero_and_finite() -> None:
    case = next(case for case in CASES if case.name == "far outside")
    value, reference, offsets, logits = _gradients(case, torch.float32)
    assert all(bool((gradient == 0).all()) for gradient in (value, reference, offsets, logits))


def test_a_location_that_is_not_a_number_reads_as_outside() -> None:
    case = CASES[0]
    offsets = torch.full_like(case.offsets_BQMLP2, torch.nan)
    out = ms_deform_attn(case.value_BSMD, case.sizes_L2, case.reference_BQLR, offsets, case.logits_BQMLP)
    assert bool((out == 0).all())


def test_operator_passes_the_checks_of_torch_library() -> None:
    """Schema, fake tensors, autograd registration and AOT dispatch, by PyTorch's own checker."""
    case = random_case("small", ((3, 4), (2, 2)), heads=2, queries=3)
    leaves = [tensor.clone().requires_grad_() for tensor in case.tensors]
    verdicts = torch.library.opcheck(torch.ops.xpose.ms_deform_attn.default, (*leaves, "3x4,2x2"))
    assert set(verdicts.values()) == {"SUCCESS"}


class _Layer(torch.nn.Module):
    def __init__(self, sizes_L2: tuple[tuple[int, int], ...]) -> None:
        super().__init__()
        self.sizes_L2 = sizes_L2

    def forward(self, value: Tensor, reference: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
        return ms_deform_attn(value, self.sizes_L2, reference, offsets, logits)


@pytest.mark.parametrize("strict", [True, False])
def test_export_keeps_the_operator_whole(strict: bool) -> None:
    case = CASES[0]
    layer = _Layer(case.sizes_L2)
    program = torch.export.export(layer, case.tensors, strict=strict)
    called = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert called == [torch.ops.xpose.ms_deform_attn.default]
    assert torch.equal(program.module()(*case.tensors), layer(*case.tensors))


def test_threads_do_not_change_the_result() -> None:
    case = random_case("many queries", queries=700)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = ms_deform_attn(case.value_BSMD, case.sizes_L2, *case.tensors[1:])
        torch.set_num_threads(2)
        together = ms_deform_attn(case.value_BSMD, case.sizes_L2, *case.tensors[1:])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(alone, together)


def test_without_a_compiler_the_plain_form_runs_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    cpu._library.cache_clear()
    try:
        case = CASES[0]
        with caplog.at_level(logging.WARNING):
            for _ in range(2):
                got = ms_deform_attn(case.value_BSMD, case.sizes_L2, *case.tensors[1:])
        torch.testing.assert_close(got.double(), _exact(case), atol=1e-4, rtol=1e-4)
        _gradients(case, torch.float32)
        assert [record.message for record in caplog.records] == [
            "no C++ compiler found (g++, clang++ or $CXX): attention runs in plain PyTorch, which is slower"
        ]
    finally:
        cpu._library.cache_clear()


def test_a_library_is_compiled_once_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiler = find_compiler()
    assert compiler is not None
    source = tmp_path / "one.cpp"
    source.write_text('extern "C" int one() { return 1; }')
    first = build_library("one", compiler, [source], ["-O1"])
    stamp = first.stat().st_mtime_ns
    assert build_library("one", compiler, [source], ["-O1"]) == first
    assert first.stat().st_mtime_ns == stamp
    assert list(first.parent.iterdir()) == [first], "a temporary folder was left behind"


@pytest.mark.parametrize("wrong", ["tokens", "offsets", "logits", "reference"])
def test_shapes_that_disagree_are_refused_with_both_named(wrong: str) -> None:
    value, reference, offsets, logits = CASES[0].tensors
    arguments = {
        "tokens": (value[:, 1:], reference, offsets, logits),
        "offsets": (value, reference, offsets[:, :, :-1], logits),
        "logits": (value, reference, offsets, logits[..., :-1]),
        "reference": (value, reference[..., :1], offsets, logits),
    }[wrong]
    with pytest.raises(ValueError, match=r"but (must be|the levels)"):
        ms_deform_attn(arguments[0], CASES[0].sizes_L2, *arguments[1:])
