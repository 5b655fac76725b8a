"""The CUDA source without a GPU: its lanes on the host against the float64 reference, and NVRTC's verdict on it."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from engines.errors import BackendError
from engines.kernels import cuda, ms_deform_attn, nvrtc
from engines.kernels.reference import ms_deform_attn_reference
from tests.engines.kernels.cases import CASES, FLOAT32_TOLERANCE, Case, random_case
from tests.engines.kernels.host import run_on_host

CAPABILITIES = ((7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0))
HALVES = (torch.float16, torch.bfloat16)
VARIANTS = {
    f"{network} {part}, {str(dtype).removeprefix('torch.')}": cuda.Variant(dtype, heads, 32, levels, 4, reference_size)
    for network, heads, levels in (("swin-t", 8, 4), ("nano", 4, 3))
    for part, reference_size in (("encoder", 2), ("decoder", 4))
    for dtype in cuda.VALUE_CODES
}
PYRAMID = (100, 168, 50, 84, 25, 42, 13, 21)
SWIN_T = VARIANTS["swin-t encoder, float16"]
BY_CASE = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
BY_HALF = pytest.mark.parametrize("dtype", HALVES, ids=lambda dtype: str(dtype).removeprefix("torch."))


def _launch(case: Case, dtype: torch.dtype = torch.float32) -> cuda.Launch:
    sizes = [cells for size in case.sizes_L2 for cells in size]
    return cuda.launch_of(dtype, case.value_BSMD.shape, case.reference_BQLR.shape, case.offsets_BQMLP2.shape, sizes)


def _on_host(case: Case, dtype: torch.dtype = torch.float32, lanes: tuple[int, int] | None = None) -> Tensor:
    value, *others = case.tensors
    return run_on_host(_launch(case, dtype), value.to(dtype), *others, lanes=lanes)


def _exact(case: Case) -> Tensor:
    return ms_deform_attn_reference(case.value_BSMD.double(), case.sizes_L2, *(t.double() for t in case.tensors[1:]))


def _plain_half(case: Case, dtype: torch.dtype) -> Tensor:
    """Values and result rounded to half precision; locations, weights and sums in float32."""
    return ms_deform_attn_reference(case.value_BSMD.to(dtype), case.sizes_L2, *case.tensors[1:])


def _eager_half(case: Case, dtype: torch.dtype) -> Tensor:
    """As `_plain_half`, with references, offsets and logits rounded to half precision too."""
    limit = torch.finfo(dtype).max
    rounded = [tensor.to(dtype).float().nan_to_num(posinf=limit, neginf=-limit) for tensor in case.tensors[1:]]
    return ms_deform_attn_reference(case.value_BSMD.to(dtype), case.sizes_L2, *rounded)


def _error(got: Tensor, exact: Tensor) -> tuple[float, float]:
    """Largest and root-mean-square error."""
    difference = got.double() - exact
    return float(difference.abs().max()), float(difference.square().mean().sqrt())


@BY_CASE
def test_float32_lanes_agree_with_the_float64_reference(case: Case) -> None:
    out = _on_host(case)
    torch.testing.assert_close(out.double(), _exact(case), atol=FLOAT32_TOLERANCE, rtol=FLOAT32_TOLERANCE)


@BY_CASE
@BY_HALF
def test_half_precision_lanes_err_at_most_twice_as_much_as_eager_half_precision(case: Case, dtype: torch.dtype) -> None:
    exact = _exact(case)
    got = _on_host(case, dtype)
    assert _error(got, exact)[0] <= 2 * _error(_eager_half(case, dtype), exact)[0] + FLOAT32_TOLERANCE


@BY_CASE
@BY_HALF
def test_half_precision_lanes_err_at_most_twice_as_much_as_rounded_values_alone(case: Case, dtype: torch.dtype) -> None:
    """Stricter, by root mean square: guards the corners that are blended in float16."""
    exact = _exact(case)
    got = _on_host(case, dtype)
    assert _error(got, exact)[1] <= 2 * _error(_plain_half(case, dtype), exact)[1] + 1e-6


@pytest.mark.parametrize("dtype", cuda.VALUE_CODES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def test_a_location_that_is_not_a_number_reads_as_outside(dtype: torch.dtype) -> None:
    case = replace(CASES[0], offsets_BQMLP2=torch.full_like(CASES[0].offsets_BQMLP2, torch.nan))
    out = _on_host(case, dtype)
    assert bool((out == 0).all())


def test_one_compiled_variant_serves_every_batch_query_count_and_image_size() -> None:
    """So a new prompt or a new image size needs no compilation."""
    cases = [
        random_case("small", ((4, 5), (2, 3))),
        random_case("large", ((33, 17), (9, 40)), batch=3, queries=5, seed=1),
        random_case("one column", ((7, 1), (1, 7)), queries=9, seed=2),
    ]
    launches = [_launch(case) for case in cases]
    assert len({launch.variant for launch in launches}) == 1
    assert len({launch.numbers for launch in launches}) == len(cases)
    for case in cases:
        out = _on_host(case)
        torch.testing.assert_close(out.double(), _exact(case), atol=FLOAT32_TOLERANCE, rtol=FLOAT32_TOLERANCE)


@pytest.mark.parametrize(
    "sizes", [((3, 4), (2, 2)), ((5, 1), (1, 1)), ((1, 3),), ((3, 1),), ((1, 1), (1, 1), (1, 1))], ids=str
)
def test_no_lane_reads_outside_its_image(sizes: tuple[tuple[int, int], ...]) -> None:
    """Cells before and behind the image are infinite: a read of one would show as NaN, whatever its weight."""
    case = random_case("edges", sizes, queries=200, heads=2, points=2, spread=4.0)
    tokens = case.value_BSMD.shape[1]
    padded = torch.full((1, tokens + 2 * max(map(max, sizes)) + 4, 2, 32), torch.inf)
    start = (padded.shape[1] - tokens) // 2
    padded[:, start : start + tokens] = case.value_BSMD
    out = _on_host(replace(case, value_BSMD=padded[:, start : start + tokens]))
    torch.testing.assert_close(out.double(), _exact(case), atol=FLOAT32_TOLERANCE, rtol=FLOAT32_TOLERANCE)


@pytest.mark.parametrize("dtype", cuda.VALUE_CODES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def test_every_lane_writes_its_own_16_bytes_and_nothing_else(dtype: torch.dtype) -> None:
    """So every byte of the output is written exactly once, in whatever order the threads run."""
    case = random_case("small", ((3, 4), (2, 2)), batch=2, heads=3, queries=5)
    whole = _on_host(case, dtype)
    values = cuda.LOAD_BYTES // dtype.itemsize
    for lane in range(whole.numel() // values):
        out = _on_host(case, dtype, lanes=(lane, lane + 1)).flatten()
        own = slice(lane * values, (lane + 1) * values)
        assert torch.equal(out[own], whole.flatten()[own])
        assert int(out.isnan().sum()) == out.numel() - values


@pytest.mark.parametrize("queries", [1, 3450, 22_260])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_blocks_cover_every_thread_and_none_is_idle(variant: str, queries: int) -> None:
    launch = cuda.Launch(VARIANTS[variant], 8, queries, 22_260, PYRAMID[: 2 * VARIANTS[variant].levels])
    threads = queries * launch.variant.heads * launch.variant.depth * launch.variant.dtype.itemsize // cuda.LOAD_BYTES
    blocks, images, _ = launch.grid
    assert (blocks - 1) * cuda.BLOCK_THREADS < threads <= blocks * cuda.BLOCK_THREADS
    assert images == 8


@pytest.mark.parametrize("depth", [16, 32, 64, 128])
@pytest.mark.parametrize("dtype", cuda.VALUE_CODES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def test_what_the_kernel_is_said_to_take_compiles(dtype: torch.dtype, depth: int) -> None:
    assert cuda.takes(dtype, depth, levels=4, tokens=3)
    nvrtc.compile_source(cuda.SOURCE, replace(SWIN_T, dtype=dtype, depth=depth).macros(), (9, 0), "ptx")


def test_what_the_kernel_does_not_take_is_known_before_compilation() -> None:
    assert not cuda.takes(torch.float64, 32, 4, 100)
    assert not cuda.takes(torch.float16, 20, 4, 100), "20 halves are not a multiple of 16 bytes"
    assert not cuda.takes(torch.float16, 24, 4, 100), "three lanes are not a power of two"
    assert not cuda.takes(torch.float32, 256, 4, 100), "64 lanes are more than a warp"
    assert not cuda.takes(torch.float32, 32, 6, 100), "six levels are more than the kernel has arguments for"
    assert not cuda.takes(torch.float32, 32, 1, 2), "two tokens are too few for reads in pairs"


@pytest.mark.parametrize(
    ("variant", "capability"),
    [*((name, (9, 0)) for name in VARIANTS), *(("swin-t encoder, float16", other) for other in CAPABILITIES)],
    ids=str,
)
def test_at_most_one_register_spills_and_none_on_sm_90(variant: str, capability: tuple[int, int]) -> None:
    """`python -m benchmarks.kernel_resources` writes down the registers of every variant on every architecture."""
    compiled = nvrtc.compile_source(cuda.SOURCE, VARIANTS[variant].macros(), capability)
    assert compiled.code[:4] == b"\x7fELF"
    assert compiled.registers is not None
    assert compiled.spill_bytes is not None
    assert compiled.spill_bytes <= (0 if capability == (9, 0) else 8), "8: 4 stored and 4 loaded"
    assert compiled.registers * cuda.BLOCK_THREADS * 3 <= 65536, "fewer than three blocks fit on a multiprocessor"


def test_values_offsets_and_logits_are_read_16_bytes_at_a_time() -> None:
    code = nvrtc.compile_source(cuda.SOURCE, SWIN_T.macros(), (9, 0), "ptx").code.rstrip(b"\0").decode()
    loads = [line.split()[0] for line in code.splitlines() if line.strip().startswith("ld.global")]
    corners, own = 4 * SWIN_T.levels * SWIN_T.points, 3
    assert sum(".v4." in load for load in loads) == corners + own, "a lane reads 4 logits and 4 offsets of its own"
    assert sum(".v4." not in load for load in loads) <= SWIN_T.levels, "only references are narrower"
    assert "st.global.v4" in code


def test_a_sample_is_weighed_once_per_group_and_shared_by_shuffles() -> None:
    """Four lanes share a head of 32 float16 channels, so each computes a quarter of the 16 exponentials."""
    code = nvrtc.compile_source(cuda.SOURCE, SWIN_T.macros(), (9, 0), "ptx").code.rstrip(b"\0").decode()
    assert code.count("ex2.approx") == 4
    words, reductions = 4 * SWIN_T.levels * SWIN_T.points, 2 * 2
    assert code.count("shfl.sync") == words + reductions


def test_a_source_that_nvrtc_refuses_is_an_error_with_its_log() -> None:
    with pytest.raises(BackendError, match="multiple of 16 bytes"):
        nvrtc.compile_source(cuda.SOURCE, {**SWIN_T.macros(), "XPOSE_DEPTH": 20}, (9, 0))


@pytest.mark.parametrize("dtype", cuda.VALUE_CODES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def test_forward_launches_the_kernel_with_its_arguments_in_order(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything but the GPU: a fake kernel takes what the launch passes and computes it with the host's lanes."""
    case = random_case("two images", ((5, 7), (3, 4)), batch=2, queries=300, reference_size=4)
    launches = []

    def kernel_of(device_index: int | None, variant: cuda.Variant) -> Callable[..., None]:
        def kernel(grid: tuple[int, int, int], block: tuple[int, int, int], args: list[Tensor | int]) -> None:
            value, reference, offsets, logits, *numbers, out = args
            sizes = tuple(int(number) for number in numbers[2 : 2 + 2 * variant.levels])
            launch = cuda.Launch(variant, grid[1], int(numbers[0]), int(numbers[1]), sizes)
            assert (grid, block, tuple(numbers)) == (launch.grid, (cuda.BLOCK_THREADS, 1, 1), launch.numbers)
            out.copy_(run_on_host(launch, value, reference, offsets, logits))
            launches.append(launch)

        return kernel

    monkeypatch.setattr(cuda, "_kernel", kernel_of)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    value, reference, offsets, logits = case.tensors
    shifted = torch.empty(logits.numel() + 1)[1:].view(logits.shape).copy_(logits)  # not at a multiple of 16 bytes
    sizes = [cells for size in case.sizes_L2 for cells in size]
    out = cuda.forward(value.to(dtype), sizes, reference.double(), offsets, shifted)
    assert len(launches) == 1
    assert torch.equal(out, _on_host(case, dtype))


def _on_gpu(case: Case, dtype: torch.dtype) -> Tensor:
    value, *others = (tensor.cuda() for tensor in case.tensors)
    return ms_deform_attn(value.to(dtype), case.sizes_L2, *others)


@pytest.mark.gpu
@BY_CASE
def test_gpu_agrees_with_the_float64_reference(case: Case) -> None:
    out = _on_gpu(case, torch.float32).cpu()
    torch.testing.assert_close(out.double(), _exact(case), atol=FLOAT32_TOLERANCE, rtol=FLOAT32_TOLERANCE)


@pytest.mark.gpu
@BY_CASE
@BY_HALF
def test_gpu_half_precision_errs_at_most_twice_as_much_as_eager_half_precision(case: Case, dtype: torch.dtype) -> None:
    exact = _exact(case)
    got = _on_gpu(case, dtype).cpu()
    assert _error(got, exact)[0] <= 2 * _error(_eager_half(case, dtype), exact)[0] + FLOAT32_TOLERANCE


@pytest.mark.gpu
@BY_CASE
@BY_HALF
def test_gpu_and_host_lanes_give_nearly_the_same_half_precision(case: Case, dtype: torch.dtype) -> None:
    """They differ only where the exponential's last bit turns a rounding over."""
    if case.value_BSMD.shape[1] < 3:
        pytest.skip("the kernel takes three tokens or more")
    step = torch.finfo(dtype).eps
    torch.testing.assert_close(_on_gpu(case, dtype).cpu(), _on_host(case, dtype), rtol=2 * step, atol=2 * step)


@pytest.mark.gpu
def test_gpu_gradients_agree_with_those_of_the_cpu() -> None:
    case = CASES[0]
    gradients = []
    for device in ("cpu", "cuda"):
        leaves = [tensor.to(device).detach().requires_grad_() for tensor in case.tensors]
        out = ms_deform_attn(leaves[0], case.sizes_L2, *leaves[1:])
        gradients.append([gradient.cpu() for gradient in torch.autograd.grad(out.square().sum(), leaves)])
    for on_cpu, on_gpu in zip(*gradients, strict=True):
        torch.testing.assert_close(on_gpu, on_cpu, atol=1e-3, rtol=1e-3)


@pytest.mark.gpu
def test_gpu_kernel_replays_in_a_cuda_graph() -> None:
    case = CASES[0]
    value, *others = (tensor.cuda() for tensor in case.tensors)
    expected = ms_deform_attn(value, case.sizes_L2, *others)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = ms_deform_attn(value, case.sizes_L2, *others)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(out, expected)
