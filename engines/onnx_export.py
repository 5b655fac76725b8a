"""The network as a standard ONNX file, for every runtime that is not ours, and for our own OpenVINO engine.

The standard graph has no custom operators: deformable attention is GridSample, window attention is plain matrix
products. Our own engine can keep both as operators of the domain "xpose" (`engines.kernels.openvino_operators`). Images
enter as 8-bit RGB; normalisation is part of the graph. The encoded prompts are inputs, and any number of classes and
keypoints is allowed, so one file serves every prompt. Input size and batch are fixed.

PyTorch's TorchScript-based exporter is used: it takes seconds and needs no package beside PyTorch, where the newer one
takes minutes and needs three. The version of PyTorch is pinned, so that the older exporter cannot disappear unnoticed.

Shape suffixes: B batch, H height, W width, C classes, K keypoints, D channels, G groups.
"""

import contextlib
import hashlib
import io
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from engines.errors import InputError
from engines.export import Detector, EngineShape, detector_inputs, example_inputs
from engines.kernels import onnx_form
from engines.preprocess import BAR_RGB, normalise
from engines.prompt_tensors import PromptTensors
from engines.xpose import XPose

if TYPE_CHECKING:
    from engines.prompts import PromptClass

OPSET = 18
FORMAT = 1  # of the description; a reader refuses what it does not know
_TRACED = (2, 3)  # classes and keypoints of the example: different, and neither of them 1, which would broadcast


class OnnxInputs(NamedTuple):
    """Inputs of the graph, in this order; all but the images change only with the prompts."""

    images_BHW3: Tensor  # uint8, RGB
    text_CD: Tensor
    object_valid_C: Tensor  # bool
    keypoints_CKD: Tensor
    keypoint_offsets_CK2: Tensor
    keypoint_valid_CK: Tensor  # bool


OUTPUTS = ("boxes_BG4", "logits_BGC", "class_BG", "keypoints_BGK2")
_CLASSES = {"text_CD", "object_valid_C"}
_KEYPOINTS = {"keypoints_CKD", "keypoint_offsets_CK2", "keypoint_valid_CK"}


class _OnnxDetector(nn.Module):
    """A detector that normalises its images itself."""

    def __init__(self, model: XPose) -> None:
        super().__init__()
        self.detector = Detector(model)

    def forward(self, images_BHW3: Tensor, *prompts: Tensor) -> tuple[Tensor, ...]:
        """Inputs as in `OnnxInputs`, outputs as in `engines.export.Detector`."""
        return self.detector(normalise(images_BHW3), *prompts)  # type: ignore[no-any-return]


def onnx_inputs(model: XPose, images_BHW3: Tensor, prompts: PromptTensors) -> OnnxInputs:
    """Return the graph's inputs from 8-bit images and from the prompts' embeddings."""
    return OnnxInputs(images_BHW3, *detector_inputs(model, torch.empty(0), prompts)[1:])


def export_onnx(model: XPose, input_hw: tuple[int, int], batch: int = 1, *, whole_operators: bool = False) -> bytes:
    """Return the network as a serialised ONNX model.

    Args:
        model: in float32, on the CPU, with its weights.
        input_hw: height and width of the input, pixels.
        batch: images per run.
        whole_operators: keep attention as operators of the domain "xpose" where the compiled kernels can run it.
    """
    inputs = OnnxInputs(
        torch.zeros((batch, *input_hw, 3), dtype=torch.uint8),
        *example_inputs(model, EngineShape(input_hw, batch, *_TRACED))[1:],
    )
    dynamic: dict[str, dict[int, str]] = {name: {0: "classes"} for name in _CLASSES}
    dynamic |= {name: {0: "classes", 1: "keypoints"} for name in _KEYPOINTS}
    dynamic |= {"logits_BGC": {2: "classes"}, "keypoints_BGK2": {2: "keypoints"}}
    file = io.BytesIO()
    form = onnx_form.whole_operators(OPSET) if whole_operators else contextlib.nullcontext()
    with torch.no_grad(), form, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's age, and sizes that the trace holds fixed on purpose
        torch.onnx.export(
            _OnnxDetector(model).eval(),
            tuple(inputs),
            file,  # type: ignore[arg-type]  # this exporter also takes an open file
            dynamo=False,
            opset_version=OPSET,
            input_names=list(OnnxInputs._fields),
            output_names=list(OUTPUTS),
            dynamic_axes=dynamic,
        )
    return file.getvalue()


def write_onnx(
    path: Path,
    model: XPose,
    shape: EngineShape,
    prompts: "tuple[Sequence[PromptClass], PromptTensors] | None",
    facts: Mapping[str, Any],
) -> list[Path]:
    """Write the ONNX file, its description (.json), and the encoded prompts (.prompts.npz) where there are any.

    Args:
        path: of the ONNX file; the others lie beside it.
        model: in float32, on the CPU.
        shape: input size and batch; the capacity is not used.
        prompts: the classes with their embeddings, without spare capacity.
        facts: JSON values that the description begins with: name of the model, thresholds.
    Raises:
        InputError: the name does not end in .onnx, or a file cannot be written.
    """
    if path.suffix != ".onnx":
        raise InputError(f"the file is {path.name}: give a name that ends in .onnx")
    graph = export_onnx(model, shape.input_hw, shape.batch)
    description = {"format": FORMAT, **facts, **_describe(path.name, graph, model, shape)}
    written = [path, path.with_suffix(".json")]
    try:
        path.write_bytes(graph)
        if prompts is not None:
            classes, tensors = prompts
            written.append(path.with_suffix(".prompts.npz"))
            encoded = onnx_inputs(model, torch.empty(0), tensors)
            arrays = {name: np.ascontiguousarray(getattr(encoded, name).numpy()) for name in OnnxInputs._fields[1:]}
            np.savez(written[2], allow_pickle=False, **arrays)
            description["prompts"] = {
                "file": written[2].name,
                "classes": [{"name": item.name, "keypoints": item.skeleton.keypoints} for item in classes],
            }
        written[1].write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {error.filename or path}: {error.strerror}; choose another place") from error
    return written


def _describe(name: str, graph: bytes, model: XPose, shape: EngineShape) -> dict[str, Any]:
    """What a program needs to know to run the file."""
    config, (height, width) = model.config, shape.input_hw
    batch, dim, groups = shape.batch, config.hidden_dim, min(config.groups, config.queries)
    return {
        "file": name,
        "sha256": hashlib.sha256(graph).hexdigest(),
        "opset": OPSET,
        "limits": {"classes": "1 or more", "keypoints": f"1 to {config.max_keypoints}"},
        "inputs": {
            "images_BHW3": _tensor("uint8", [batch, height, width, 3], "RGB images, letterboxed, not normalised"),
            "text_CD": _tensor("float32", ["classes", dim], "encoded classes"),
            "object_valid_C": _tensor("bool", ["classes"], "false for a class that is not asked for"),
            "keypoints_CKD": _tensor("float32", ["classes", "keypoints", dim], "encoded keypoints"),
            "keypoint_offsets_CK2": _tensor("float32", ["classes", "keypoints", 2], "where keypoints start in a box"),
            "keypoint_valid_CK": _tensor("bool", ["classes", "keypoints"], "false beyond a class's own keypoints"),
        },
        "outputs": {
            "boxes_BG4": _tensor("float32", [batch, groups, 4], "centre x, centre y, width, height; see coordinates"),
            "logits_BGC": _tensor("float32", [batch, groups, "classes"], "-inf for classes that are not asked for"),
            "class_BG": _tensor("int64", [batch, groups], "the class whose keypoints the group has"),
            "keypoints_BGK2": _tensor("float32", [batch, groups, "keypoints", 2], "x, y; see coordinates"),
        },
        "preprocessing": {
            "colour": "RGB",
            "resize": f"scale = min({height} / h, {width} / w) for an image of h x w; content is "
            "max(round(scale * h), 1) x max(round(scale * w), 1), by area averaging to shrink, bilinear to enlarge",
            "place": f"left = ({width} - content width) // 2, top = ({height} - content height) // 2, rounded down",
            "bars_rgb": list(BAR_RGB),
        },
        "coordinates": "fractions of the whole input, bars included: "
        f"x of the image = (x * {width} - left) / content width * w, and likewise y",
        "postprocessing": "score = sigmoid(logits[class]); keep scores above score_threshold; of overlapping boxes of "
        "any classes (IoU above nms_iou) keep the best; keypoints beyond the class's own mean nothing",
    }


def _tensor(dtype: str, shape: list[int | str], meaning: str) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "meaning": meaning}
