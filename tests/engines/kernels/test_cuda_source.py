"""The CUDA source without a GPU: its threads on the host against the float64 reference, and NVRTC's verdict on it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from engines.errors import BackendError
from engines.kernels import cuda, ms_deform_attn, nvrtc
from engines.kernels.reference import ms_deform_attn_reference
from tests.engines.kernels.cases import CASES, FLOAT32_TOLERANCE, Case, random_case
from tests.engines.kernels.host import host_library, run_on_host

CAPABILITIES = ((7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0))
ENCODER = cuda.Launch(True, 1, 22_223, 22_223, 8, 32, 4, 2, (100, 167, 50, 84, 25, 42, 13, 21))
SHAPES = {
    "encoder": ENCODER,
    "decoder": cuda.Launch(True, 1, 3450, 22_223, 8, 32, 4, 4, ENCODER.sizes),
    "nano": cuda.Launch(True, 8, 8400, 8400, 4, 32, 4, 2, (80, 80, 40, 40, 20, 20)),
    "float32": cuda.Launch(False, 1, 22_223, 22_223, 8, 32, 4, 2, ENCODER.sizes),
}


def _launch(case: Case, half: bool) -> cuda.Launch:
    sizes = [cells for size in case.sizes_L2 for cells in size]
    value, reference, offsets, _ = case.tensors
    return cuda.launch_of(half, value.shape, reference.shape, offsets.shape, sizes)


def _run_on_host(case: Case, half: bool) -> Tensor:
    value = case.value_BSMD.to(torch.float16 if half else torch.float32)
    return run_on_host(_launch(case, half), value, *case.tensors[1:])


def _exact(case: Case) -> Tensor:
    return ms_deform_attn_reference(case.value_BSMD.double(), case.sizes_L2, *(t.double() for t in case.tensors[1:]))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_float32_threads_agree_with_the_float64_reference(case: Case) -> None:
    out = _run_on_host(case, half=False)
    torch.testing.assert_close(out.double(), _exact(case), atol=FLOAT32_TOLERANCE, rtol=FLOAT32_TOLERANCE)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_float16_threads_err_at_most_twice_as_much_as_eager_half_precision(case: Case) -> None:
    """Eager half precision rounds the values, the offsets, the logits and the result to float16."""
    exact = _exact(case)
    halved = [tensor.half().float().nan_to_num(posinf=65504.0, neginf=-65504.0) for tensor in case.tensors[1:]]
    eager = ms_deform_attn_reference(case.value_BSMD.half(), case.sizes_L2, *halved)
    got = _run_on_host(case, half=True)
    assert (got.double() - exact).abs().max() <= 2 * (eager.double() - exact).abs().max() + FLOAT32_TOLERANCE


@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
def test_every_thread_writes_its_own_16_bytes_and_nothing_else(half: bool) -> None:
    """So every byte of the output is written exactly once, in whatever order the threads run."""
    case = random_case("small", ((3, 4), (2, 2)), batch=2, heads=3, queries=5)
    dtype = torch.float16 if half else torch.float32
    value, *others = case.value_BSMD.to(dtype), *case.tensors[1:]
    out = torch.full((2, 5, 96), torch.nan, dtype=dtype)
    library = host_library(_launch(case, half))
    threads = library.xpose_threads()
    assert threads * cuda.LOAD_BYTES == out.numel() * out.element_size()
    lanes = cuda.LOAD_BYTES // out.element_size()
    for thread in range(threads):
        out.fill_(torch.nan)
        library.xpose_run_one(thread, *(t.data_ptr() for t in (value, *others, out)))
        written = torch.nonzero(~out.flatten().isnan()).flatten().tolist()
        assert written == list(range(thread * lanes, (thread + 1) * lanes))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_blocks_cover_every_thread_and_none_is_idle(shape: str) -> None:
    launch = SHAPES[shape]
    threads = launch.batch * launch.queries * launch.heads * launch.depth * (2 if launch.half else 4) // 16
    assert (launch.blocks - 1) * cuda.BLOCK_THREADS < threads <= launch.blocks * cuda.BLOCK_THREADS


@pytest.mark.parametrize("capability", CAPABILITIES, ids=lambda capability: f"sm_{capability[0]}{capability[1]}")
def test_nvrtc_compiles_the_kernel(capability: tuple[int, int], record_property: Callable[[str, object], None]) -> None:
    """Registers and spills go into the report (`--junitxml`) and, with `-s`, onto the screen."""
    for half in (True, False):
        launch = SHAPES["encoder"] if half else SHAPES["float32"]
        compiled = nvrtc.compile_source(cuda.SOURCE, launch.macros(), capability)
        assert compiled.code[:4] == b"\x7fELF"
        assert compiled.registers is not None
        name = f"sm_{capability[0]}{capability[1]} {'float16' if half else 'float32'}"
        record_property(name, f"{compiled.registers} registers, {compiled.spill_bytes} bytes spilled")
        print(f"{name}: {compiled.registers} registers, {compiled.spill_bytes} bytes spilled")


@pytest.mark.parametrize("shape", SHAPES)
def test_nothing_spills_to_local_memory_on_sm_90(shape: str) -> None:
    compiled = nvrtc.compile_source(cuda.SOURCE, SHAPES[shape].macros(), (9, 0))
    assert (compiled.stack_bytes, compiled.spill_bytes) == (0, 0)


def test_values_are_read_16_bytes_at_a_time() -> None:
    code = nvrtc.compile_source(cuda.SOURCE, ENCODER.macros(), (9, 0), "ptx").code.rstrip(b"\0").decode()
    wide = code.count("ld.global.nc.v4") + code.count("ld.global.v4") + code.count("ld.global.nc.L1")
    assert wide >= 4 * 4 * 4, "four corners of four points of four levels"
    assert "st.global.v4" in code


def test_a_source_that_nvrtc_refuses_is_an_error_with_its_log() -> None:
    with pytest.raises(BackendError, match="multiple of 16 bytes"):
        nvrtc.compile_source(cuda.SOURCE, {**ENCODER.macros(), "XPOSE_DEPTH": 20}, (9, 0))


def _on_gpu(case: Case, dtype: torch.dtype) -> Tensor:
    value, *others = (tensor.cuda() for tensor in case.tensors)
    return ms_deform_attn(value.to(dtype), case.sizes_L2, *others)


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_gpu_agrees_with_the_float64_reference(case: Case) -> None:
    out = _on_gpu(case, torch.float32).cpu()
    torch.testing.assert_close(out.double(), _exact(case), atol=FLOAT32_TOLERANCE, rtol=FLOAT32_TOLERANCE)


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_gpu_float16_errs_at_most_twice_as_much_as_eager_half_precision(case: Case) -> None:
    exact = _exact(case)
    halved = [tensor.half().float().nan_to_num(posinf=65504.0, neginf=-65504.0) for tensor in case.tensors[1:]]
    eager = ms_deform_attn_reference(case.value_BSMD.half(), case.sizes_L2, *halved)
    got = _on_gpu(case, torch.float16).cpu()
    assert (got.double() - exact).abs().max() <= 2 * (eager.double() - exact).abs().max() + FLOAT32_TOLERANCE


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
