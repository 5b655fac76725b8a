"""Distance of correct and of broken engines from PyTorch, to set the limits of the parity gate.

    python -m benchmarks.parity_limits [--scenes 400] [--photos FILE.zip] [--record]

Runs the shipped nano on synthetic scenes that no training set contains, on the gate's own images and on photos, as:

* "fp32": other code for the same arithmetic;
* "fp16": half precision where `engines.precision` uses it, with every tensor rounded (`benchmarks.half_emulation`);
* "bf16": bfloat16 in the same places, by PyTorch;
* "bf16 everywhere": OpenVINO's bfloat16, on processors that are fast with it;
* "tf32": float32 with the inputs of every product rounded to 10 bits of mantissa;
* engines that are broken on purpose (`BROKEN`).

Each row has the figures over all images, and the range over subsets as large as the gate's own set of images.
"""

import argparse
import contextlib
import copy
import io
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from benchmarks._record import record
from benchmarks.half_nano import EmulatedBackend
from engines import kernels, parity
from engines.backends import FinishedPoses, openvino
from engines.backends.compiled import EncodedPrompts, raw_poses
from engines.checkpoint import load_weights
from engines.export import Detector, DetectorInputs, EngineShape
from engines.kernels import cpu
from engines.onnx_export import export_onnx
from engines.precision import place
from engines.preprocess import letterbox_batch
from engines.prompt_tensors import PromptTensors
from engines.prompts import PromptClass, PromptEncoder
from engines.skeletons import load_skeleton
from engines.xpose import XPose, decoder, encoder, model, selection
from engines.xpose.layers import LayerNorm, Linear
from pipeline.synthetic import SceneConfig, render_scene

FIRST_SEED = 700_000_000  # of scenes that no recipe draws
SCENES = SceneConfig(size_hw=(256, 256), categories=("person",), instances=(1, 3))
CAPACITY = (2, 24)  # more than a person needs, so that a lost mask shows
PARTS = 3  # images of one part, as many as the gate has


class DetectorBackend:
    """Runs the network as a compiled engine does: prompts at their full capacity, one image at a time."""

    def __init__(self, network: XPose, shape: EngineShape, precision: str = "fp32") -> None:
        self.input_hw: tuple[int, int] | None = shape.input_hw
        self.batch = self.in_flight = 1
        self._input_hw = shape.input_hw
        self._prompts = EncodedPrompts(copy.deepcopy(network), shape.max_classes, shape.max_keypoints)
        self._detector = Detector(place(copy.deepcopy(network), precision).eval())
        self.change_inputs: Callable[[DetectorInputs], DetectorInputs] = lambda inputs: inputs

    @property
    def network(self) -> XPose:
        """The network that runs; `BROKEN` changes it."""
        return self._detector.model

    def set_prompts(self, prompts: PromptTensors) -> None:
        """Use these prompts from now on."""
        self._prompts.set(prompts)

    @torch.inference_mode()
    def submit(self, images: Sequence[NDArray[np.uint8]]) -> FinishedPoses:
        """Run one RGB image [H, W, 3]."""
        batch = letterbox_batch(images, self._input_hw)
        inputs = self._prompts.get()._replace(pixels_B3HW=batch.pixels_B3HW(torch.device("cpu")))
        return FinishedPoses(raw_poses(list(self._detector(*self.change_inputs(inputs))), batch.placements))

    def close(self) -> None:
        """Do nothing: there are no resources to free."""


def to_tf32(value: Any) -> Any:
    """Round a float32 tensor to 10 bits of mantissa, to the nearest even; anything else passes unchanged."""
    if not isinstance(value, Tensor) or value.dtype != torch.float32:
        return value
    bits = value.contiguous().view(torch.int32)
    return ((bits + 0x0FFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)


class Tf32Emulation(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Rounds the inputs of every product of matrices, as NVIDIA's tensor cores do where TF32 is allowed."""

    PRODUCTS = ("aten.mm", "aten.bmm", "aten.addmm", "aten.matmul", "aten.linear", "aten.conv", "aten.scaled_dot")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(func).startswith((*self.PRODUCTS, "aten._scaled_dot")):
            args = tree_map(to_tf32, args)
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def tf32(backend: DetectorBackend) -> Iterator[None]:
    """Let the products round their inputs to TF32."""
    with patch.object(cpu, "window_attention_available", lambda *_: False), Tf32Emulation():  # type: ignore[no-untyped-call]
        yield


@contextlib.contextmanager
def _plain_kernels(backend: DetectorBackend) -> Iterator[None]:
    """Other code for the same arithmetic, with different rounding, like the code of a compiler."""
    with (
        patch.object(cpu, "window_attention_available", lambda *_: False),
        patch.object(cpu, "available", lambda *_: False),
    ):
        yield


@contextlib.contextmanager
def _nothing(backend: Any) -> Iterator[None]:
    yield


@contextlib.contextmanager
def _mask_dropped(backend: DetectorBackend) -> Iterator[None]:
    with patch.object(decoder.Groups, "attention_mask", lambda self: None):
        yield


@contextlib.contextmanager
def _half_a_cell_off(backend: DetectorBackend) -> Iterator[None]:
    exact = kernels.ms_deform_attn

    def shifted(value: Tensor, sizes: Any, reference: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
        return exact(value, sizes, reference, offsets + 0.5 if reference.shape[-1] == 2 else offsets, logits)

    with patch.object(encoder, "ms_deform_attn", shifted):
        yield


@contextlib.contextmanager
def _unscaled_attention(backend: DetectorBackend) -> Iterator[None]:
    exact = functional.scaled_dot_product_attention

    def unscaled(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        return exact(query, key, value, attn_mask, scale=1.0)

    with patch.object(functional, "scaled_dot_product_attention", unscaled):
        yield


@contextlib.contextmanager
def _reversed_ranks(backend: DetectorBackend) -> Iterator[None]:
    exact = selection.top_queries
    with patch.object(model, "top_queries", lambda scores, count: exact(scores, count).flip(1)):
        yield


def _inputs_changed(change: Callable[[DetectorInputs], DetectorInputs]) -> Callable[[DetectorBackend], Any]:
    @contextlib.contextmanager
    def changed(backend: DetectorBackend) -> Iterator[None]:
        backend.change_inputs = change
        yield

    return changed


def _weights_changed(change: Callable[[XPose], None]) -> Callable[[DetectorBackend], Any]:
    @contextlib.contextmanager
    def changed(backend: DetectorBackend) -> Iterator[None]:
        with torch.no_grad():
            change(backend.network)
        yield

    return changed


def _coarse_epsilon(network: XPose) -> None:
    for module in network.modules():
        if isinstance(module, LayerNorm):
            module.eps = 1e-2


def _eight_bits(network: XPose) -> None:
    for module in network.modules():
        if isinstance(module, Linear):
            step = module.weight.abs().max() / 127
            module.weight.copy_((module.weight / step).round() * step)


def _dead_head(network: XPose) -> None:
    last = f"transformer.decoder.layers.{network.config.decoder_layers - 1}.cross_attn.value_proj.weight"
    network.get_parameter(last)[: network.config.hidden_dim // network.config.heads] = 0


BROKEN: dict[str, Callable[[DetectorBackend], Any]] = {
    "mask of absent keypoints dropped": _mask_dropped,
    "sampled half a cell off": _half_a_cell_off,
    "attention not scaled": _unscaled_attention,
    "queries ranked the wrong way round": _reversed_ranks,
    "blue for red": _inputs_changed(lambda inputs: inputs._replace(pixels_B3HW=inputs.pixels_B3HW.flip(1))),
    "one pixel to the right": _inputs_changed(
        lambda inputs: inputs._replace(pixels_B3HW=inputs.pixels_B3HW.roll(1, 3))
    ),
    "next keypoint's prompt": _inputs_changed(
        lambda inputs: inputs._replace(keypoints_CKD=inputs.keypoints_CKD.roll(1, 1))
    ),
    "norms with an epsilon of 0.01": _weights_changed(_coarse_epsilon),
    "weights of 8 bits": _weights_changed(_eight_bits),
    "one head of one layer dead": _weights_changed(_dead_head),
}
"""Engines that the gate must refuse, and how to make them."""


def network_and_prompts() -> tuple[XPose, EngineShape, PromptTensors]:
    """Return the shipped network, the sizes at which it is measured, and a person as the prompt."""
    network, clip = load_weights("nano", "")
    encode = PromptEncoder(clip, copy.deepcopy(network.pos_proj), network.padding.weight.detach().clone()).encode
    prompts = encode([PromptClass("person", load_skeleton("person"))], *CAPACITY)
    return network, EngineShape(network.config.input_hw, 1, *CAPACITY), prompts


Candidate = tuple[Any, Callable[[Any], Any]]
"""A backend and its precision."""


def right_backends(network: XPose, shape: EngineShape, folder: Path) -> dict[str, Candidate]:
    """Return an engine for each precision that this machine has; `folder` takes the files of OpenVINO."""
    found: dict[str, Candidate] = {}
    if openvino.is_fast_in_bfloat16():
        path = folder / "engine.onnx"
        whole = openvino.operators() is not None
        path.write_bytes(
            export_onnx(copy.deepcopy(network).requires_grad_(False), shape.input_hw, whole_operators=whole)
        )
        found[parity.BF16_EVERYWHERE] = (openvino.OpenVinoBackend(path, network, shape, "bf16"), _nothing)
    return found | {
        "fp32": (DetectorBackend(network, shape), _plain_kernels),
        "fp16": (EmulatedBackend(network, shape), _nothing),
        "bf16": (DetectorBackend(network, shape, "bf16"), _nothing),
    }


def broken_backend(name: str, network: XPose, shape: EngineShape) -> Candidate:
    """Return one of `BROKEN`, in float32."""
    return DetectorBackend(network, shape), BROKEN[name]


def candidates(network: XPose, shape: EngineShape, folder: Path) -> dict[str, Candidate]:
    """Return all candidates that are measured."""
    right = right_backends(network, shape, folder) | {"tf32": (DetectorBackend(network, shape), tf32)}
    return right | {name: broken_backend(name, network, shape) for name in BROKEN}


def scenes(count: int) -> list[NDArray[np.uint8]]:
    """Draw synthetic scenes of people."""
    return [render_scene(FIRST_SEED + index, SCENES).rgb_HW3 for index in range(count)]


def photos(archive: Path, count: int) -> list[NDArray[np.uint8]]:
    """Read the first photos of a zip file."""
    with zipfile.ZipFile(archive) as file:
        names = [name for name in file.namelist() if name.endswith(".jpg")][:count]
        return [np.asarray(Image.open(io.BytesIO(file.read(name))).convert("RGB")) for name in names]


def rows_of(images: dict[str, list[NDArray[np.uint8]]], folder: Path) -> Iterator[dict[str, object]]:
    """Run every candidate on every set of images."""
    network, shape, prompts = network_and_prompts()
    exact = DetectorBackend(network, shape)
    exact.set_prompts(prompts)
    expected = {name: [exact.submit([image]).result()[0] for image in found] for name, found in images.items()}
    for candidate, (backend, context) in candidates(network, shape, folder).items():
        backend.set_prompts(prompts)
        for name, found in images.items():
            with context(backend):
                got = [backend.submit([image]).result()[0] for image in found]
            scales = [parity.pixels_per_image(image, shape.input_hw) for image in found]
            triples = zip(expected[name], got, scales, strict=True)
            differences = [parity.compare(want, have, prompts, scale) for want, have, scale in triples]
            parts = [parity.summarise(differences[at : at + PARTS]) for at in range(0, len(found) - PARTS + 1, PARTS)]
            row: dict[str, object] = {"candidate": candidate, "images": name, "count": len(found)}
            row |= {key: round(value, 5) for key, value in asdict(parity.summarise(differences)).items()}
            for key in ("rms_px", "p99_px", "beyond"):
                values = [min(getattr(part, key), 1e9) for part in parts]  # infinities have no quantiles
                row[f"{key}_of_parts"] = [round(float(value), 5) for value in np.quantile(values, (0, 0.5, 0.95, 1))]
            yield row


def main() -> None:
    """Measure and print; record on request."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=400)
    parser.add_argument("--photos", type=Path, default=None)
    parser.add_argument("--photo-count", type=int, default=100)
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    images = {"gate": parity.bundled_images(), "scenes": scenes(options.scenes)}
    if options.photos is not None:
        images["photos"] = photos(options.photos, options.photo_count)
    torch.set_num_threads(1)  # small tensors: more threads only wait for each other
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for row in rows_of(images, Path(folder)):
            rows.append(row)
            print(row, flush=True)
            if options.record:  # what is known is kept, whatever comes after
                record("parity_limits", rows)


if __name__ == "__main__":
    main()
