"""Effect of half precision on the shipped model: drift in pixels, and average precision, compared with float32.

    python -m benchmarks.half_nano --data CACHES [--images 100] [--weights FILE]

Half precision is emulated by rounding in the exported graph (`benchmarks.half_emulation`): once where
`engines.precision` uses half precision, and once with the sampling locations rounded, too. Images are the first of the
synthetic test set and of LSP-extended val (caches of `training.data.build`). Drift is in pixels of the network's input,
over all detections that score more than `engines.parity.COMPARED_SCORE`; their order by score may differ.
"""

import argparse
import copy
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks._record import record
from benchmarks.half_emulation import HalfEmulation
from benchmarks.half_precision import DEFORMABLE
from engines import parity
from engines.backends import Backend, FinishedPoses, RawPoses
from engines.backends.compiled import EncodedPrompts, raw_poses
from engines.backends.eager import EagerBackend
from engines.checkpoint import load_weights, trained_categories
from engines.export import EngineShape, export
from engines.preprocess import letterbox_batch
from engines.prompt_tensors import PromptTensors
from engines.prompts import PromptClass, PromptEncoder
from engines.skeletons import load_skeleton
from engines.xpose import XPose
from training import metrics
from training.data.cache import ImageCache
from training.data.sample import Sample
from training.predict import Found


class EmulatedBackend:
    """Runs the graph of a half-precision engine with its rounding, on the CPU, one image at a time."""

    def __init__(self, model: XPose, shape: EngineShape, round_also: frozenset[str] = frozenset()) -> None:
        self.input_hw: tuple[int, int] | None = shape.input_hw
        self.batch = 1
        self.in_flight = 1
        self._emulation = HalfEmulation(export(copy.deepcopy(model), shape, "fp16"), round_also)
        self._prompts = EncodedPrompts(model, shape.max_classes, shape.max_keypoints)

    def set_prompts(self, prompts: PromptTensors) -> None:
        """Use these prompts from now on."""
        self._prompts.set(prompts)

    def submit(self, images: Sequence[NDArray[np.uint8]]) -> FinishedPoses:
        """Run one RGB image [H, W, 3]."""
        assert self.input_hw is not None
        batch = letterbox_batch(images, self.input_hw)
        with torch.inference_mode():
            inputs = self._prompts.get()._replace(pixels_B3HW=batch.pixels_B3HW(torch.device("cpu")))
            return FinishedPoses(raw_poses(self._emulation.run(*inputs), batch.placements))

    def close(self) -> None:
        """Do nothing: there are no resources to free."""


def found_in(raw: RawPoses, names: Sequence[str], image_HW3: NDArray[np.uint8]) -> Found:
    """All groups as detections in the image's pixels, best first."""
    size_2 = np.array(image_HW3.shape[1::-1], np.float32)
    logit_G = raw.logits_GC[np.arange(len(raw.class_G)), raw.class_G]
    order = np.argsort(-logit_G, kind="stable")
    centre_G2, half_G2 = raw.boxes_G4[order, :2], raw.boxes_G4[order, 2:] / 2
    return Found(
        tuple(names[index] for index in raw.class_G[order]),
        (1 / (1 + np.exp(-logit_G[order]))).astype(np.float32),
        (np.concatenate((centre_G2 - half_G2, centre_G2 + half_G2), axis=1) * np.tile(size_2, 2)).astype(np.float32),
        raw.keypoints_GK2[order] * size_2,
    )


def average_precision(backend: Backend, samples: Sequence[Sample], categories: Mapping[str, str]) -> float:
    """COCO keypoint AP with all categories prompted, in points."""
    names = list(categories)
    found = [found_in(backend.submit([sample.image_HW3]).result()[0], names, sample.image_HW3) for sample in samples]
    return 100 * metrics.average_precision(samples, found, categories)["all"]


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--weights", default="")
    options = parser.parse_args()
    model, clip = load_weights("nano", options.weights)
    categories = trained_categories("nano", options.weights)
    if categories is None:
        raise SystemExit("the weights do not say what they were trained on")
    classes = [PromptClass(name, load_skeleton(skeleton)) for name, skeleton in categories.items()]
    slots = max(len(prompt.skeleton.keypoints) for prompt in classes)
    encoder = PromptEncoder(clip, copy.deepcopy(model.pos_proj), model.padding.weight.detach().clone())
    prompts = encoder.encode(classes, len(classes), slots)
    shape = EngineShape(model.config.input_hw, 1, len(classes), slots)
    caches = {name: ImageCache(options.data / name) for name in ("synthetic_test", "lspet_val")}
    samples = {name: [cache[i] for i in range(min(len(cache), options.images))] for name, cache in caches.items()}
    exact = EagerBackend(copy.deepcopy(model), shape.input_hw, 1, "fp32", torch.device("cpu"))
    exact.set_prompts(prompts)
    precise = average_precision(exact, samples["synthetic_test"], categories)
    rows: list[dict[str, object]] = []
    for placement, round_also in (("ours", frozenset[str]()), ("locations in half too", DEFORMABLE)):
        emulated = EmulatedBackend(model, shape, round_also)
        images = [sample.image_HW3 for name in samples for sample in samples[name]]
        figures = parity.measure(exact, emulated, prompts, images)
        half = average_precision(emulated, samples["synthetic_test"], categories)
        rows.append(
            {
                "placement": placement,
                "images": len(images),
                "detections": figures.groups,
                "rms_px": round(figures.rms_px, 4),
                "max_px": round(figures.max_px, 4),
                "max_score_change": round(figures.max_score, 5),
                "ap_float32": round(precise, 2),
                "ap_half": round(half, 2),
            }
        )
        print(rows[-1], flush=True)
    print(record("half_nano", rows))


if __name__ == "__main__":
    main()
