"""How far a compiled engine stands from PyTorch, in pixels of the network's input, on images that come with us."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from engines.backends import Backend, RawPoses
from engines.errors import EngineCacheError
from engines.prompts import PromptTensors

IMAGES = Path(__file__).parent / "parity"
COMPARED_SCORE = 0.1  # groups that score less are not published by default; the best of an image is always compared


@dataclass(frozen=True)
class Limits:
    """The most that a compiled engine may differ, in pixels of the network's input."""

    rms_px: float
    max_px: float


LIMITS = {"fp32": Limits(0.02, 0.2), "fp16": Limits(0.1, 0.5), "bf16": Limits(1.0, 5.0)}


@dataclass(frozen=True)
class Figures:
    """What the comparison found: drift of boxes' corners and keypoints, and of class scores."""

    groups: int
    rms_px: float
    max_px: float
    max_score: float


def bundled_images() -> list[NDArray[np.uint8]]:
    """Return the synthetic scenes that come with the package, RGB [H, W, 3]."""
    return [np.asarray(Image.open(path).convert("RGB")) for path in sorted(IMAGES.glob("*.png"))]


def measure(
    reference: Backend, compiled: Backend, prompts: PromptTensors, images: Sequence[NDArray[np.uint8]]
) -> Figures:
    """Run both on the same images and prompts and compare the groups that count.

    Two groups of nearly equal score may trade places between the two, so a group is compared with the nearest one of
    its class.
    """
    for backend in (reference, compiled):
        backend.set_prompts(prompts)
    keypoints_C = prompts.keypoint_valid_CK.sum(dim=1).tolist()
    shifts: list[NDArray[np.float32]] = []
    scores: list[float] = []
    groups = 0
    for image in images:
        (expected,), (got,) = reference.submit([image]).result(), compiled.submit([image]).result()
        score_G = _best_scores(expected)
        scale_px = _scale_px(image, compiled.input_hw)
        expected_GX2, got_GX2 = _points(expected) * scale_px, _points(got) * scale_px
        for group in np.flatnonzero(score_G > min(COMPARED_SCORE, score_G.max() - 1e-6)):
            used = 2 + keypoints_C[expected.class_G[group]]  # two corners, and the keypoints of its class
            distance_GX = np.linalg.norm(got_GX2[:, :used] - expected_GX2[group, :used], axis=-1)
            distance_GX[got.class_G != expected.class_G[group]] = np.inf
            nearest = int(distance_GX.mean(axis=1).argmin())
            shifts.append(distance_GX[nearest].astype(np.float32))
            scores.append(abs(float(_best_scores(got)[nearest] - score_G[group])))
            groups += 1
    shift = np.concatenate(shifts)
    return Figures(groups, float(np.sqrt(np.mean(shift**2))), float(shift.max()), max(scores))


def check(figures: Figures, precision: str) -> dict[str, float]:
    """Return the figures for a manifest.

    Raises:
        EngineCacheError: they exceed the limits of `precision`.
    """
    limits = LIMITS[precision]
    if not (figures.rms_px <= limits.rms_px and figures.max_px <= limits.max_px):
        raise EngineCacheError(
            f"the compiled engine differs from PyTorch by {figures.rms_px:.3f} px rms and {figures.max_px:.3f} px at "
            f"most over {figures.groups} detections; allowed for {precision} are {limits.rms_px} and {limits.max_px}: "
            "it is not kept"
        )
    return {f"parity_{name}": value for name, value in asdict(figures).items()}


def _best_scores(poses: RawPoses) -> NDArray[np.float32]:
    logits_G = poses.logits_GC.max(axis=1)
    scores: NDArray[np.float32] = 1 / (1 + np.exp(-np.clip(logits_G, -80, 80)))
    return scores


def _points(poses: RawPoses) -> NDArray[np.float32]:
    """Both corners of the box, then the keypoints: [G, 2 + K, 2]; unused keypoint slots lie at 0."""
    centre, half = poses.boxes_G4[:, None, :2], poses.boxes_G4[:, None, 2:] / 2
    return np.concatenate((centre - half, centre + half, poses.keypoints_GK2), axis=1)


def _scale_px(image_HW3: NDArray[np.uint8], input_hw: tuple[int, int] | None) -> NDArray[np.float32]:
    """Pixels of the network's input per whole image, (x, y)."""
    height, width = image_HW3.shape[:2]
    factor = 1.0 if input_hw is None else min(input_hw[0] / height, input_hw[1] / width)
    return np.array([width * factor, height * factor], dtype=np.float32)
