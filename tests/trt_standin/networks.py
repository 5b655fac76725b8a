"""Converts whole networks with the stand-in and reports how far their numbers are from PyTorch's.

Run by `test_networks` and by `benchmarks/trt_standin.py`, in a process of its own:

    python -m tests.trt_standin.networks nano fp32        # the shipped network on the gate's images
    python -m tests.trt_standin.networks random fp16 1 4  # random small networks, seeds 1 to 3
    python -m tests.trt_standin.networks broken           # converters that are broken on purpose
    python -m tests.trt_standin.networks swin-t fp32 800 1344     # Swin-T at a height and width, random weights
"""

import contextlib
import copy
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from tests.trt_standin import report
from tests.trt_standin.activate import activate

activate()

from engines import parity  # noqa: E402
from engines.backends import RawPoses, tensorrt_attention  # noqa: E402
from engines.backends.compiled import EncodedPrompts  # noqa: E402
from engines.checkpoint import MODELS, load_weights  # noqa: E402
from engines.export import DetectorInputs, EngineShape  # noqa: E402
from engines.precision import place  # noqa: E402
from engines.preprocess import letterbox_batch  # noqa: E402
from engines.prompt_tensors import PromptTensors  # noqa: E402
from engines.prompts import PromptClass, PromptEncoder  # noqa: E402
from engines.skeletons import load_skeleton  # noqa: E402
from engines.xpose import XPose  # noqa: E402
from tests.trt_standin.build import OUTPUTS, build, expected, export_as_for_a_gpu, relative_error, run  # noqa: E402
from tests.trt_standin.cases import random_case, random_inputs, random_network, smallest_case  # noqa: E402
from tests.trt_standin.network import Engine  # noqa: E402

Row = dict[str, Any]
CLASSES = ("person", "table", "chair")


def relative_errors(got: list[torch.Tensor], wanted: list[torch.Tensor]) -> dict[str, float]:
    """Name the largest difference of each output, over its largest number."""
    pairs = zip(OUTPUTS, got, wanted, strict=True)
    return {name: relative_error(have.float(), want.float()) for name, have, want in pairs}


def poses(results: list[torch.Tensor], row: int = 0) -> RawPoses:
    """Take one image's results."""
    boxes, logits, classes, keypoints = (result[row] for result in results)
    return RawPoses(logits.float().numpy(), classes.numpy(), boxes.float().numpy(), keypoints.float().numpy())


def nano_inputs(model: XPose, clip: Any, shape: EngineShape) -> tuple[PromptTensors, list[DetectorInputs]]:
    """Return prompts of three classes, fewer than the capacity, and the inputs for each of the gate's images."""
    encode = PromptEncoder(clip, copy.deepcopy(model.pos_proj), model.padding.weight.detach().clone()).encode
    prompts = encode(
        [PromptClass(name, load_skeleton(name)) for name in CLASSES], shape.max_classes, shape.max_keypoints
    )
    encoded = EncodedPrompts(copy.deepcopy(model), shape.max_classes, shape.max_keypoints).set(prompts)
    batches = [letterbox_batch([image], shape.input_hw) for image in parity.bundled_images()]
    return prompts, [encoded._replace(pixels_B3HW=batch.pixels_B3HW(torch.device("cpu"))) for batch in batches]


def nano(precision: str) -> Row:
    """Convert the shipped network; in half precision, compare with what PyTorch gives in the same placement."""
    model, clip = load_weights("nano", "")
    shape = EngineShape(model.config.input_hw, 1, len(CLASSES) + 1, 24)
    prompts, inputs = nano_inputs(model, clip, shape)
    engine = build(export_as_for_a_gpu(model, shape, precision))
    wanted = [expected(model, each) for each in inputs]
    row = compare(engine, model, precision, inputs, wanted)
    scale = np.array(shape.input_hw[::-1], np.float32)
    for who, results in row.pop("results").items():
        pairs = zip(wanted, results, strict=True)
        differences = [parity.compare(poses(want), poses(got), prompts, scale) for want, got in pairs]
        row[who] |= asdict(parity.summarise(differences))
    return row


def compare(
    engine: Engine, model: XPose, precision: str, inputs: list[DetectorInputs], wanted: list[list[torch.Tensor]]
) -> Row:
    """Run the engine, and in half precision PyTorch's own placement, against float32."""
    results = {"engine": [run(engine, each) for each in inputs]}
    if precision != "fp32":
        halved = place(copy.deepcopy(model), precision)
        results["eager"] = [expected(halved, each) for each in inputs]
    row: Row = {"layers": len(engine.network.layers), "tf32": engine.tf32, "precision": precision, "results": results}
    for who, found in results.items():
        each = [relative_errors(got, want) for got, want in zip(found, wanted, strict=True)]
        row[who] = {name: max(errors[name] for errors in each) for name in OUTPUTS}
    return row


def random_networks(precision: str, seeds: range) -> list[Row]:
    """Convert small networks of random sizes."""
    rows = []
    for seed in seeds:
        case = random_case(seed)
        model = random_network(case.config, seed)
        inputs = [random_inputs(model, case.shape, 10 * seed + draw) for draw in range(3)]
        wanted = [expected(model, each) for each in inputs]
        row = compare(build(export_as_for_a_gpu(model, case.shape, precision)), model, precision, inputs, wanted)
        for who, results in row.pop("results").items():
            row[who] |= point_errors(results, wanted)
        rows.append({"seed": seed, **row})
    return rows


def point_errors(results: list[list[torch.Tensor]], wanted: list[list[torch.Tensor]]) -> dict[str, float]:
    """Median distance of boxes and keypoints from PyTorch's, as a fraction of the image.

    A median, because random weights give queries nearly equal scores: two that trade places move far in any precision.
    """
    errors = {}
    for index, name in ((0, "boxes_median"), (3, "keypoints_median")):
        pairs = zip(results, wanted, strict=True)
        distance = torch.cat([(got[index].float() - want[index]).norm(dim=-1).flatten() for got, want in pairs])
        errors[name] = float(distance.median())
    return errors


@contextlib.contextmanager
def _swapped_gather_axis() -> Iterator[None]:
    from torch_tensorrt.dynamo.conversion import impl

    gather = impl.select.gather

    def swapped(ctx: Any, target: Any, source_ir: Any, name: str, input: Any, dim: int, index: Any) -> Any:
        return gather(ctx, target, source_ir, name, input, dim + 1 if dim == 1 else dim, index)

    with patch.object(impl.select, "gather", swapped):
        yield


@contextlib.contextmanager
def _dropped_mask() -> Iterator[None]:
    def unmasked(ctx: Any, target: Any, name: str, mask: Any, query: Any, key: Any) -> Any:
        import tensorrt as trt
        from torch_tensorrt.dynamo.conversion.converter_utils import get_trt_tensor

        shape = (1, 1, query.shape[2], key.shape[2])
        if mask.dtype != trt.DataType.BOOL:
            return get_trt_tensor(ctx, torch.zeros(shape), f"{name}_unmasked", mask.dtype)
        return get_trt_tensor(ctx, torch.ones(shape, dtype=torch.bool), f"{name}_unmasked")

    with patch.object(tensorrt_attention, "_expand_mask", unmasked):
        yield


@contextlib.contextmanager
def _tf32() -> Iterator[None]:
    import torch_tensorrt

    convert = torch_tensorrt.dynamo.convert_exported_program_to_serialized_trt_engine

    def allowed(*args: Any, **kwargs: Any) -> Any:
        return convert(*args, **{**kwargs, "disable_tf32": False})

    with patch.object(torch_tensorrt.dynamo, "convert_exported_program_to_serialized_trt_engine", allowed):
        yield


@contextlib.contextmanager
def _nothing() -> Iterator[None]:
    yield


BREAKS: dict[str, Callable[[], Any]] = {
    "nothing": _nothing,
    "gather axis swapped": _swapped_gather_axis,
    "mask dropped": _dropped_mask,
    "tf32 allowed": _tf32,
}


def broken(seed: int = 1) -> Row:
    """Convert one network with each broken converter; report its largest error, or the error that was raised."""
    case = smallest_case()
    model = random_network(case.config, seed)
    inputs = random_inputs(model, case.shape, seed)
    wanted = expected(model, inputs)
    program = export_as_for_a_gpu(model, case.shape, "fp32")
    found: Row = {}
    for name, breaks in BREAKS.items():
        with breaks():
            try:
                found[name] = max(relative_errors(run(build(program), inputs), wanted).values())
            except Exception as error:
                found[name] = f"{type(error).__name__}: {error}"[:200]
    return found


def swin_t(precision: str, input_hw: tuple[int, int]) -> Row:
    """Convert Swin-T with random weights whose heads do not start at zero."""
    started = time.monotonic()
    model = random_network(MODELS["swin-t"][0](), 0)
    shape = EngineShape(input_hw, 1, 2, 17)
    inputs = [random_inputs(model, shape, 0)]
    wanted = [expected(model, each) for each in inputs]
    row = compare(build(export_as_for_a_gpu(model, shape, precision)), model, precision, inputs, wanted)
    for who, results in row.pop("results").items():
        row[who] |= point_errors(results, wanted)
    return {"input_hw": list(input_hw), "seconds": round(time.monotonic() - started, 1), **row}


def main(kind: str, *arguments: str) -> None:
    """Do one kind of comparison and report it."""
    torch.set_num_threads(1)
    if kind == "nano":
        report({precision: nano(precision) for precision in arguments})
    elif kind == "random":
        precision, first, last = arguments
        report(random_networks(precision, range(int(first), int(last))))
    elif kind == "broken":
        report(broken())
    elif kind == "swin-t":
        precision, height, width = arguments
        report(swin_t(precision, (int(height), int(width))))
    else:
        raise SystemExit(f"unknown kind {kind}; allowed are nano, random, broken and swin-t")


if __name__ == "__main__":
    main(*sys.argv[1:])
