"""The compiled form of window attention: what the plain one says, wherever it is allowed to stand in for it."""

import pytest
import torch

from engines.kernels import cpu
from engines.xpose.swin import WindowAttention

WINDOW = 4


def attention(dim: int, heads: int) -> WindowAttention:
    torch.manual_seed(0)
    layer = WindowAttention(dim, heads, WINDOW).eval()
    torch.nn.init.normal_(layer.relative_position_bias_table)
    return layer


@pytest.mark.parametrize("shift", [0, WINDOW // 2])
@pytest.mark.parametrize(("dim", "heads"), [(48, 4), (96, 8), (192, 8)])
def test_it_says_what_the_plain_form_says(dim: int, heads: int, shift: int, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = attention(dim, heads)
    x_BHWC = 3 * torch.randn(2, 3 * WINDOW, 5 * WINDOW, dim)
    calls = []
    compiled = cpu.window_attention
    monkeypatch.setattr(cpu, "window_attention", lambda *inputs: calls.append(inputs) or compiled(*inputs))
    with torch.inference_mode():
        fast = layer(x_BHWC, shift)
        exact = layer.double()(x_BHWC.double(), shift)
    assert len(calls) == 1, "float64 takes the plain form, float32 the compiled one"
    torch.testing.assert_close(fast.double(), exact, rtol=1e-5, atol=1e-5)


def test_large_scores_do_not_overflow() -> None:
    layer = attention(48, 4)
    with torch.inference_mode():
        out = layer(1e4 * torch.randn(1, WINDOW, WINDOW, 48), 0)
    assert bool(out.isfinite().all())


def test_it_stands_aside_for_gradients_autocast_and_other_windows() -> None:
    weight = attention(48, 4).qkv.weight
    with torch.no_grad():
        assert cpu.window_attention_available(weight, 12, WINDOW)
        assert not cpu.window_attention_available(weight, 12, 7)
        assert not cpu.window_attention_available(weight, 16, WINDOW)
        assert not cpu.window_attention_available(weight.bfloat16(), 12, WINDOW)
        with torch.autocast("cpu", torch.bfloat16):
            assert not cpu.window_attention_available(weight, 12, WINDOW)
    assert not cpu.window_attention_available(weight, 12, WINDOW)


def test_an_exported_program_calls_it_by_name() -> None:
    layer = attention(48, 4)
    x_BHWC = torch.randn(1, WINDOW, 2 * WINDOW, 48)
    with torch.no_grad():
        program = torch.export.export(layer, (x_BHWC, 2))
        assert torch.ops.xpose.window_attention.default in {node.target for node in program.graph.nodes}
        torch.testing.assert_close(program.module()(x_BHWC, 2), layer(x_BHWC, 2), rtol=0, atol=0)


def test_operator_passes_the_checks_of_torch_library() -> None:
    """All of PyTorch's own but those of gradients, which it has none of."""
    qkv_BHWC, bias_MTT = torch.randn(1, WINDOW, 2 * WINDOW, 3 * 48), torch.randn(4, WINDOW**2, WINDOW**2)
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    verdicts = torch.library.opcheck(
        torch.ops.xpose.window_attention.default, (qkv_BHWC, bias_MTT, 2), test_utils=checks
    )
    assert verdicts == dict.fromkeys(checks, "SUCCESS")
