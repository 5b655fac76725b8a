"""Every kind of layer against numpy, and every rule against a network that breaks it: run by `test_layers`."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from tests.trt_standin import report
from tests.trt_standin.activate import activate

activate()
import tensorrt as trt  # noqa: E402

from engines.kernels import plugin  # noqa: E402
from engines.kernels.reference import ms_deform_attn_reference  # noqa: E402
from tests.engines.kernels.cases import random_case  # noqa: E402
from tests.trt_standin.layer import Layer, RuleError, Tensor  # noqa: E402
from tests.trt_standin.network import Builder, BuilderConfig, Network, Runtime  # noqa: E402

TYPES = {
    np.dtype(np.float32): trt.DataType.FLOAT, np.dtype(np.float16): trt.DataType.HALF,
    np.dtype(np.int32): trt.DataType.INT32, np.dtype(np.int64): trt.DataType.INT64, np.dtype(bool): trt.DataType.BOOL,
}  # fmt: skip
RNG = np.random.default_rng(0)
Array = np.ndarray[Any, Any]


def floats(*shape: int, dtype: Any = np.float32) -> Array:
    return RNG.standard_normal(shape).astype(dtype)


def run(add: Callable[..., Layer], *arrays: Array, tf32: bool = False, outputs: int = 1) -> list[Array]:
    """Build a network around one layer, send the engine through its plan, and compute it."""
    network = Network()
    inputs = [network.add_input(f"input{index}", TYPES[a.dtype], a.shape) for index, a in enumerate(arrays)]
    layer = add(network, *inputs)
    for index in range(outputs):
        layer.get_output(index).name = f"output{index}"
        network.mark_output(layer.get_output(index))
    config = BuilderConfig()
    if not tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    plan = Builder(None).build_engine_with_config(network, config).serialize()
    engine = Runtime(None).deserialize_cuda_engine(plan)
    results = engine.run({f"input{index}": torch.from_numpy(a) for index, a in enumerate(arrays)})
    return [results[f"output{index}"].numpy() for index in range(outputs)]


def changed(layer: Layer, **attributes: Any) -> Layer:
    for name, value in attributes.items():
        setattr(layer, name, value)
    return layer


def constant(network: Network, array: Array) -> Tensor:
    return network.add_constant(array.shape, array).get_output(0)


def equal(got: list[Array], *wanted: Array, tolerance: float = 1e-6) -> None:
    for have, want in zip(got, wanted, strict=True):
        assert have.shape == want.shape, f"shape {have.shape}, not {want.shape}"
        assert have.dtype == want.dtype, f"type {have.dtype}, not {want.dtype}"
        np.testing.assert_allclose(have, want, rtol=tolerance, atol=tolerance)


def check_constants_casts_and_shapes() -> None:
    x = np.array([[-1.7, 0.0, 2.9]], np.float32)
    equal(run(lambda n, a: n.add_cast(a, trt.DataType.INT32), x), np.array([[-1, 0, 2]], np.int32))
    equal(run(lambda n, a: n.add_cast(a, trt.DataType.BOOL), x), np.array([[True, False, True]]))
    equal(run(lambda n, a: n.add_cast(a, trt.DataType.HALF), x), x.astype(np.float16))
    equal(run(lambda n, a: n.add_identity(a), x), x)
    equal(run(lambda n, a: n.add_shape(a), x), np.array([1, 3], np.int64))
    for array in (x, x.astype(np.float16), x > 0, np.arange(3, dtype=np.int64)):
        equal(run(lambda n, array=array: n.add_constant(array.shape, array)), array)


def check_elementwise() -> None:
    a, b = floats(2, 1, 3), np.abs(floats(1, 4, 3)) + 0.5
    op = trt.ElementWiseOperation
    floating = {
        op.SUM: a + b, op.PROD: a * b, op.MAX: np.maximum(a, b), op.MIN: np.minimum(a, b), op.SUB: a - b, op.DIV: a / b,
        op.FLOOR_DIV: np.floor(a / b), op.EQUAL: a == b, op.GREATER: a > b, op.LESS: a < b,
    }  # fmt: skip
    for kind, wanted in floating.items():
        equal(run(lambda n, x, y, kind=kind: n.add_elementwise(x, y, kind), a, b), wanted)
    equal(run(lambda n, x, y: n.add_elementwise(x, y, op.POW), b, b), b**b)
    i, j = np.array([7, -7, 6], np.int32), np.array([2, 2, -4], np.int32)
    equal(run(lambda n, x, y: n.add_elementwise(x, y, op.DIV), i, j), np.array([3, -3, -1], np.int32))
    equal(run(lambda n, x, y: n.add_elementwise(x, y, op.FLOOR_DIV), i, j), np.array([3, -4, -2], np.int32))
    p, q = np.array([True, True, False]), np.array([True, False, False])
    for kind, wanted in ((op.AND, p & q), (op.OR, p | q), (op.XOR, p ^ q)):
        equal(run(lambda n, x, y, kind=kind: n.add_elementwise(x, y, kind), p, q), wanted)


def check_half_precision_rounds_once() -> None:
    a, b = floats(4, 5, dtype=np.float16), floats(4, 5, dtype=np.float16)
    wanted = (a.astype(np.float64) * b.astype(np.float64)).astype(np.float16)
    equal(run(lambda n, x, y: n.add_elementwise(x, y, trt.ElementWiseOperation.PROD), a, b), wanted, tolerance=0)


def check_unary_and_activation() -> None:
    x, kind = floats(3, 4), trt.UnaryOperation
    positive = np.abs(x) + 0.1
    for op, wanted in ((kind.LOG, np.log(positive)), (kind.SQRT, np.sqrt(positive)), (kind.RECIP, 1 / positive)):
        equal(run(lambda n, a, op=op: n.add_unary(a, op), positive), wanted, tolerance=1e-5)
    erf = np.vectorize(math.erf)(x).astype(np.float32)
    for op, wanted in {
        kind.EXP: np.exp(x), kind.ABS: np.abs(x), kind.NEG: -x, kind.SIN: np.sin(x), kind.COS: np.cos(x),
        kind.CEIL: np.ceil(x), kind.FLOOR: np.floor(x), kind.ERF: erf, kind.SIGN: np.sign(x), kind.ROUND: np.rint(x),
        kind.ISINF: np.isinf(x), kind.ISNAN: np.isnan(x),
    }.items():  # fmt: skip
        equal(run(lambda n, a, op=op: n.add_unary(a, op), x), wanted)
    equal(run(lambda n, a: n.add_unary(a, kind.NOT), x > 0), ~(x > 0))
    act = trt.ActivationType
    for op, wanted in {
        act.RELU: np.maximum(x, 0), act.SIGMOID: 1 / (1 + np.exp(-x)), act.TANH: np.tanh(x),
        act.LEAKY_RELU: np.where(x >= 0, x, 0.25 * x), act.CLIP: np.clip(x, 0.25, 0.75),
        act.HARD_SIGMOID: np.clip(0.25 * x + 0.75, 0, 1),
        act.GELU_ERF: (0.5 * x * (1 + np.vectorize(math.erf)(x / np.sqrt(2)))).astype(np.float32),
    }.items():  # fmt: skip
        equal(run(lambda n, a, op=op: changed(n.add_activation(a, op), alpha=0.25, beta=0.75), x), wanted)


def check_select() -> None:
    condition, a, b = floats(2, 1, 1) > 0, floats(2, 3, 1), floats(1, 3, 4)
    equal(run(lambda n, c, x, y: n.add_select(c, x, y), condition, a, b), np.where(condition, a, b))


def check_shuffle() -> None:
    x = floats(2, 3, 4)
    first, second = trt.Permutation([2, 0, 1]), (1, 0, 2)
    wanted = x.transpose(2, 0, 1).reshape(4, 3, 2).transpose(1, 0, 2)

    def turned(n: Network, a: Tensor) -> Layer:
        return changed(n.add_shuffle(a), first_transpose=first, reshape_dims=(0, 3, -1), second_transpose=second)

    equal(run(turned, x), wanted)

    def dynamic(n: Network, a: Tensor) -> Layer:
        layer = n.add_shuffle(a)
        layer.set_input(1, constant(n, np.array([6, 4], np.int64)))
        return layer

    equal(run(dynamic, x), x.reshape(6, 4))


def check_slice() -> None:
    x, mode = floats(4, 5), trt.SampleMode
    equal(run(lambda n, a: n.add_slice(a, (3, 0), (2, 3), (-2, 2)), x), x[3::-2, 0::2])
    equal(run(lambda n, a: n.add_slice(a, (1, 0), (3, 5), (0, 1)), x), np.repeat(x[1:2], 3, axis=0))
    wrapped = np.take(np.take(x, np.arange(2, 7) % 4, 0), np.arange(-1, 6) % 5, 1)
    equal(run(lambda n, a: changed(n.add_slice(a, (2, -1), (5, 7), (1, 1)), mode=mode.WRAP), x), wrapped)
    clamped = x[np.clip(np.arange(-1, 5), 0, 3)]
    equal(run(lambda n, a: changed(n.add_slice(a, (-1, 0), (6, 5), (1, 1)), mode=mode.CLAMP), x), clamped)

    def filled(n: Network, a: Tensor) -> Layer:
        layer = changed(n.add_slice(a, (-1, 0), (6, 7), (1, 1)), mode=mode.FILL)
        layer.set_input(4, constant(n, np.array([7.0], np.float32)))
        return layer

    equal(run(filled, x), np.pad(x, ((1, 1), (0, 2)), constant_values=7.0))

    def dynamic(n: Network, a: Tensor) -> Layer:
        layer = n.add_slice(a, (0, 0), (0, 0), (1, 1))
        size = n.add_elementwise(
            n.add_shape(a).get_output(0), constant(n, np.array([1, 2], np.int64)), trt.ElementWiseOperation.SUB
        )
        layer.set_input(2, size.get_output(0))
        return layer

    equal(run(dynamic, x), x[:3, :3])


def check_squeezing_and_concatenation() -> None:
    x, y = floats(2, 3), floats(2, 4)
    axes = np.array([0, -1], np.int64)
    equal(run(lambda n, a: n.add_unsqueeze(a, constant(n, axes)), x), x[None, :, :, None])
    equal(run(lambda n, a: n.add_squeeze(a, constant(n, axes)), x[None, :, :, None]), x)
    equal(run(lambda n, a, b: changed(n.add_concatenation([a, b]), axis=1), x, y), np.concatenate((x, y), 1))


def check_gather() -> None:
    x = floats(3, 4, 5)
    index = np.array([[2, 0], [1, 1]], np.int32)
    equal(run(lambda n, a, i: n.add_gather(a, i, 1), x, index), np.take(x, index, 1))
    rows = RNG.integers(0, 4, (3, 2, 5)).astype(np.int32)
    each = changed_gather(trt.GatherMode.ELEMENT, axis=1)
    equal(run(each, x, rows), np.take_along_axis(x, rows.astype(np.int64), 1))
    places = np.stack((RNG.integers(0, 3, (6,)), RNG.integers(0, 4, (6,))), -1).astype(np.int64)
    equal(run(changed_gather(trt.GatherMode.ND), x, places), x[places[:, 0], places[:, 1]])
    inner = RNG.integers(0, 4, (3, 2, 1)).astype(np.int32)
    wanted = np.stack([x[at][inner[at, :, 0]] for at in range(3)])
    equal(run(changed_gather(trt.GatherMode.ND, num_elementwise_dims=1), x, inner), wanted)


def changed_gather(mode: Any, **attributes: Any) -> Callable[..., Layer]:
    return lambda n, a, i: changed(n.add_gather_v2(a, i, mode), **attributes)


def check_matrix_multiply() -> None:
    op = trt.MatrixOperation
    a, b = floats(2, 1, 4, 3), floats(1, 5, 2, 3)
    wanted = np.einsum("abij,cdkj->adik", a, b)
    equal(run(lambda n, x, y: n.add_matrix_multiply(x, op.NONE, y, op.TRANSPOSE), a, b), wanted)
    turned = a.swapaxes(2, 3).copy()
    equal(run(lambda n, x, y: n.add_matrix_multiply(x, op.TRANSPOSE, y, op.TRANSPOSE), turned, b), wanted)
    short = np.array([[1 + 2**-10, 1 + 2**-12]], np.float32)
    one = np.eye(2, dtype=np.float32)
    got = run(lambda n, x, y: n.add_matrix_multiply(x, op.NONE, y, op.NONE), short, one, tf32=True)
    equal(got, np.array([[1 + 2**-10, 1]], np.float32), tolerance=0)


def check_convolution() -> None:
    x, kernel, bias = floats(2, 4, 6, 7), floats(6, 2, 3, 2), floats(6)

    def add(n: Network, a: Tensor) -> Layer:
        layer = n.add_convolution_nd(a, 6, (3, 2), trt.Weights(kernel), trt.Weights(bias))
        return changed(
            layer, num_groups=2, stride_nd=(2, 1), pre_padding=(1, 0), post_padding=(2, 1), dilation_nd=(1, 2)
        )

    padded = np.pad(x, ((0, 0), (0, 0), (1, 2), (0, 1)))
    wanted = np.zeros((2, 6, 4, 6), np.float32)
    for image, out, row, column in itertools.product(range(2), range(6), range(4), range(6)):
        group = out // 3
        window = padded[image, 2 * group : 2 * group + 2, 2 * row : 2 * row + 3, column : column + 3 : 2]
        wanted[image, out, row, column] = (window * kernel[out]).sum() + bias[out]
    equal(run(add, x), wanted, tolerance=1e-5)
    deep = floats(4, 1, 3, 3)
    got = run(lambda n, a: changed(n.add_convolution_nd(a, 4, (3, 3), trt.Weights(deep)), num_groups=4), x)
    wanted = np.zeros((2, 4, 4, 5), np.float32)
    for row, column in itertools.product(range(4), range(5)):
        wanted[:, :, row, column] = (x[:, :, row : row + 3, column : column + 3] * deep[None, :, 0]).sum((2, 3))
    equal(got, wanted, tolerance=1e-5)


def check_attention() -> None:
    query, key, value = floats(2, 4, 3, 8), floats(2, 2, 5, 8), floats(2, 2, 5, 8)
    softmax = trt.AttentionNormalizationOp.SOFTMAX
    keys, values = key.repeat(2, 1), value.repeat(2, 1)
    scores = np.einsum("bhqd,bhkd->bhqk", query, keys)

    def shares(x: Array) -> Array:
        e = np.exp(x - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    def wanted(x: Array) -> Array:
        return np.einsum("bhqk,bhkd->bhqd", shares(x), values)

    equal(
        run(lambda n, q, k, v: n.add_attention(q, k, v, softmax, False), query, key, value),
        wanted(scores),
        tolerance=1e-5,
    )
    seen = RNG.random((2, 1, 3, 5)) > 0.4
    seen[..., 0] = True
    masked = lambda n, q, k, v, m: changed(n.add_attention(q, k, v, softmax, False), mask=m)  # noqa: E731
    equal(run(masked, query, key, value, seen), wanted(np.where(seen, scores, -np.inf)), tolerance=1e-5)
    bias = floats(1, 4, 3, 5)
    equal(run(masked, query, key, value, bias), wanted(scores + bias), tolerance=1e-5)


def check_normalisation_and_softmax() -> None:
    x, scale, bias = floats(2, 3, 8) * 3 + 1, floats(1, 1, 8), floats(1, 1, 8)
    centred = x - x.mean(-1, keepdims=True)
    wanted = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-3) * scale + bias
    norm = lambda n, a, s, b: changed(n.add_normalization(a, s, b, 1 << 2), epsilon=1e-3)  # noqa: E731
    equal(run(norm, x, scale, bias), wanted, tolerance=1e-5)
    y = floats(2, 6, 4, 5)
    ones, zeros = np.ones((1, 3, 1, 1), np.float32), np.zeros((1, 3, 1, 1), np.float32)
    grouped = y.reshape(2, 3, -1)
    centred = grouped - grouped.mean(-1, keepdims=True)
    wanted = (centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)).reshape(y.shape)
    group = lambda n, a, s, b: changed(n.add_normalization(a, s, b, 0b1100), num_groups=3)  # noqa: E731
    equal(run(group, y, ones, zeros), wanted, tolerance=1e-5)
    e = np.exp(y - y.max(1, keepdims=True))
    equal(run(lambda n, a: changed(n.add_softmax(a), axes=1 << 1), y), e / e.sum(1, keepdims=True), tolerance=1e-5)


def check_reduce_and_topk() -> None:
    x, op = floats(3, 4, 5), trt.ReduceOperation
    for kind, wanted in {
        op.SUM: x.sum((0, 2)),
        op.MAX: x.max((0, 2)),
        op.MIN: x.min((0, 2)),
        op.AVG: x.mean((0, 2)),
    }.items():
        equal(run(lambda n, a, kind=kind: n.add_reduce(a, kind, 0b101, False), x), wanted, tolerance=1e-5)
    equal(run(lambda n, a: n.add_reduce(a, op.SUM, 0b010, True), x), x.sum(1, keepdims=True), tolerance=1e-5)
    order = np.argsort(-x, axis=1, kind="stable")[:, :2]
    top = lambda n, a: n.add_topk(a, trt.TopKOperation.MAX, 2, 1 << 1)  # noqa: E731
    equal(run(top, x, outputs=2), np.take_along_axis(x, order, 1), order.astype(np.int32))


def check_plugin() -> None:
    plugin.register_converter()
    import tensorrt.plugin as trtp

    for dtype, tolerance in ((np.float32, 1e-5), (np.float16, 2e-3)):
        case = random_case("plugin", ((4, 6), (2, 3)), heads=2, queries=7, batch=2)
        arrays = [case.value_BSMD.numpy().astype(dtype), *(tensor.numpy() for tensor in case.tensors[1:])]
        create = lambda n, *t: n.add_plugin(trtp.op.xpose.ms_deform_attn(*t, sizes="4x6,2x3"), aot=True)  # noqa: E731
        exact = ms_deform_attn_reference(
            torch.from_numpy(arrays[0]).double(), case.sizes_L2, *(tensor.double() for tensor in case.tensors[1:])
        )
        equal(run(create, *arrays), exact.numpy().astype(dtype), tolerance=tolerance)


Broken = tuple[type[Exception], Callable[..., Layer], list[Array]]


def broken_rules() -> dict[str, Broken]:
    """Layers that TensorRT's documentation forbids: the error that each must give, the layer, and its inputs."""
    half, single, wide = floats(2, 3, dtype=np.float16), floats(2, 3), floats(1, 2, 3, 3, dtype=np.float16)
    query, key, kernel = floats(1, 2, 3, 8), floats(1, 2, 5, 8), floats(1, 2, 1, 1)
    total, softmax, none = trt.ElementWiseOperation.SUM, trt.AttentionNormalizationOp.SOFTMAX, trt.MatrixOperation.NONE
    most = trt.TopKOperation.MAX

    def attend(n: Network, q: Tensor, k: Tensor, mask: Tensor) -> Layer:
        return changed(n.add_attention(q, k, k, softmax, False), mask=mask)

    def freed(n: Network, a: Tensor) -> Layer:
        numbers = torch.ones(3)
        layer = n.add_constant((3,), trt.Weights(trt.DataType.FLOAT, numbers.data_ptr(), 3))
        numbers += 1
        return layer

    def extra_input(n: Network, a: Tensor) -> Layer:
        layer = n.add_identity(a)
        layer.set_input(1, a)
        return layer

    def convolve(n: Network, a: Tensor) -> Layer:
        return n.add_convolution_nd(a, 1, (1, 1), trt.Weights(kernel))

    def joined(n: Network, a: Tensor, b: Tensor) -> Layer:
        return changed(n.add_concatenation([a, b]), axis=0)

    rule = RuleError
    return {
        "types of an operation differ": (rule, lambda n, a, b: n.add_elementwise(a, b, total), [half, single]),
        "ranks of an operation differ": (rule, lambda n, a, b: n.add_elementwise(a, b, total), [single, single[0]]),
        "sum of booleans": (rule, lambda n, a: n.add_elementwise(a, a, total), [single > 0]),
        "a PyTorch tensor for an input": (TypeError, lambda n, a: n.add_identity(torch.ones(3)), [single]),
        "no such attribute": (AttributeError, lambda n, a: changed(n.add_identity(a), precision=1), [single]),
        "no such input": (rule, extra_input, [single]),
        "no such layer": (AttributeError, lambda n, a: n.add_einsum([a], "ij->ji"), [single]),
        "mask of one row": (rule, attend, [query, key, np.ones((1, 1, 1, 5), bool)]),
        "mask of another type": (rule, attend, [query, key, floats(1, 1, 3, 5, dtype=np.float16)]),
        "more than 3840 of the top": (rule, lambda n, a: n.add_topk(a, most, 3841, 2), [floats(1, 4000)]),
        "top of a vector": (rule, lambda n, a: n.add_topk(a, most, 1, 1), [floats(4)]),
        "slice out of bounds": (rule, lambda n, a: n.add_slice(a, (0, 1), (2, 3), (1, 1)), [single]),
        "reshape to another size": (rule, lambda n, a: changed(n.add_shuffle(a), reshape_dims=(5,)), [single]),
        "product of other sides": (rule, lambda n, a: n.add_matrix_multiply(a, none, a, none), [single]),
        "float indices": (rule, lambda n, a: n.add_gather(a, a, 0), [single]),
        "index out of bounds": (rule, lambda n, a, i: n.add_gather(a, i, 0), [single, np.array([-1], np.int32)]),
        "condition that is a number": (rule, lambda n, a: n.add_select(a, a, a), [single]),
        "concatenation of other sides": (rule, joined, [single, floats(2, 4)]),
        "scale of another type": (rule, lambda n, a, b: n.add_normalization(a, b, b, 2), [half, single]),
        "convolution weights of another type": (rule, convolve, [wide]),
        "shape that an input decides": (rule, lambda n, a, i: n.add_unsqueeze(a, i), [single, np.array([0], np.int64)]),
        "weights changed before the build": (rule, freed, [single]),
    }


def main() -> None:
    failures: dict[str, str] = {}
    checks = {name: check for name, check in globals().items() if name.startswith("check_")}
    for name, check in checks.items():
        try:
            check()
        except Exception as error:
            failures[name] = f"{type(error).__name__}: {error}"[:500]
    unbroken = {}
    rules = broken_rules()
    for name, (wanted, add, arrays) in rules.items():
        try:
            run(add, *arrays)
            unbroken[name] = "nothing was raised"
        except Exception as error:
            if type(error) is not wanted:
                unbroken[name] = f"{type(error).__name__}: {error}"[:300]
    kinds = [
        kind for base in (Layer, *Layer.__subclasses__()) for kind in base.__subclasses__() if kind.binding != "ILayer"
    ]
    unknown = [
        f"{kind.binding}.{name}"
        for kind in kinds
        for name in kind.attributes
        if not hasattr(getattr(trt, kind.binding), name)
    ]
    real = trt.INetworkDefinition
    adders = [name for name in vars(Network) if name.startswith("add_")]
    unknown += [name for name in adders if not hasattr(real, name)]
    report(
        {
            "checks": sorted(checks), "failures": failures, "rules": sorted(rules), "unbroken": unbroken,
            "unknown": unknown, "kinds": sorted(kind.__name__ for kind in kinds), "adders": adders,
        }
    )  # fmt: skip


if __name__ == "__main__":
    main()
