"""Example images as prompts: "find what looks like this, and these points of it".

An example is an image, the box of one object in it, and keypoints by name. Its annotation file has COCO's keypoint
layout (`engines.coco`). `engines.annotate` writes such a file.

Shapes: K keypoints, S side of the crop. Source: our reading of the paper's figures, which are all that was published.
"""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import stats
from torch import nn

from engines.clip import PIXEL_MEAN, PIXEL_STD
from engines.coco import CocoCategory, CocoObject, find_object
from engines.errors import PromptError
from engines.skeletons import Skeleton, fold, letters, skeletons_by_instance

CROP_MARGIN = 1.1
"""Side of the square crop over the longer side of the box."""
LEAST_MARKED = 4
"""An example with fewer marked keypoints, where its list has that many, hardly works."""
LEAST_EXAMPLE_PX = 32.0
"""Nor does one whose box is smaller, by its longer side."""


@dataclass(frozen=True, eq=False)
class Example:
    """One marked object.

    `rgb_HW3` is uint8; `box_xyxy` and `keypoints_K3` (x, y, v; v > 0 is marked) are in its pixels, in the order of
    `skeleton.keypoints`.
    """

    name: str
    skeleton: Skeleton
    rgb_HW3: NDArray[np.uint8]
    box_xyxy: tuple[float, float, float, float]
    keypoints_K3: NDArray[np.float32]

    def __post_init__(self) -> None:
        if self.rgb_HW3.ndim != 3 or self.rgb_HW3.shape[2] != 3 or self.rgb_HW3.dtype != np.uint8:
            raise PromptError(f"an example needs an RGB image of uint8 [H, W, 3], got {self.rgb_HW3.shape}")
        x0, y0, x1, y1 = self.box_xyxy
        if not np.isfinite(self.box_xyxy).all() or x1 <= x0 or y1 <= y0:
            raise PromptError(
                f"the example of {self.name!r} needs a box with an area, got {self.box_xyxy} (x0 y0 x1 y1)"
            )
        height, width = self.rgb_HW3.shape[:2]
        if x0 >= width or y0 >= height or x1 <= 0 or y1 <= 0:
            raise PromptError(
                f"the box {self.box_xyxy} of {self.name!r} lies outside of its image of {width} x {height}"
            )
        if self.keypoints_K3.shape != (len(self.skeleton.keypoints), 3):
            raise PromptError(
                f"{self.name!r} has {len(self.skeleton.keypoints)} keypoints, got {self.keypoints_K3.shape}"
            )
        visible_K = self.keypoints_K3[:, 2] > 0
        if not visible_K.any():
            raise PromptError(
                f"the example of {self.name!r} has no visible keypoint; mark at least one with v = 1 or 2"
            )
        if not np.isfinite(self.keypoints_K3[visible_K]).all():
            raise PromptError(f"the example of {self.name!r} has visible keypoints that are not finite numbers")

    def shortcoming(self) -> str:
        """Why the example can hardly work, for a warning; "" where nothing speaks against it."""
        marked, listed = int((self.keypoints_K3[:, 2] > 0).sum()), len(self.skeleton.keypoints)
        if marked < min(LEAST_MARKED, listed):
            return f"it marks {marked} of {listed} keypoints; mark {min(LEAST_MARKED, listed)} or more"
        x0, y0, x1, y1 = self.box_xyxy
        if max(x1 - x0, y1 - y0) < LEAST_EXAMPLE_PX:
            return f"its object is {max(x1 - x0, y1 - y0):.0f} px large; give one of {LEAST_EXAMPLE_PX:.0f} px or more"
        return ""

    def in_order_of(self, skeleton: Skeleton) -> "Example":
        """Return the example with its keypoints matched by name to another list; missing ones are invisible."""
        if skeleton.keypoints == self.skeleton.keypoints:
            return self
        rows = dict(zip(map(letters, self.skeleton.keypoints), self.keypoints_K3, strict=True))
        absent = np.zeros(3, dtype=np.float32)
        keypoints_K3 = np.stack([rows.get(letters(name), absent) for name in skeleton.keypoints])
        if not (keypoints_K3[:, 2] > 0).any():
            raise PromptError(
                f"no visible keypoint of the example of {self.name!r} ({', '.join(self.skeleton.keypoints[:5])}, …) "
                f"is in the list {skeleton.name!r} ({', '.join(skeleton.keypoints[:5])}, …)"
            )
        return Example(self.name, skeleton, self.rgb_HW3, self.box_xyxy, keypoints_K3)


def decode_rgb(data: bytes) -> NDArray[np.uint8]:
    """Decode any still that OpenCV knows as RGB [H, W, 3], upright by its EXIF.

    Raises:
        PromptError: it is not such an image.
    """
    encoded = np.frombuffer(data, dtype=np.uint8)
    bgr_HW3 = cv2.imdecode(encoded, cv2.IMREAD_COLOR) if encoded.size else None
    if bgr_HW3 is None:
        raise PromptError("is not an image that OpenCV can decode (jpeg, png, webp, tiff, bmp, …)")
    return np.ascontiguousarray(bgr_HW3[..., ::-1])


def read_rgb(path: Path) -> NDArray[np.uint8]:
    """Read an image file; `decode_rgb` says how.

    Raises:
        PromptError: the file cannot be read, or is not an image. The message names the file.
    """
    try:
        return decode_rgb(path.read_bytes())
    except OSError as error:
        raise PromptError(f"cannot read the image {path}: {error.strerror}") from error
    except PromptError as error:
        raise PromptError(f"{path} {error}") from error


def load_example(image_path: str | Path, annotation_path: str | Path, annotation_id: str | None = None) -> Example:
    """Load one example from an image and its annotation file, which lists the image by its file name.

    Raises:
        PromptError: a file cannot be read, or `example_of` refuses it. The message names the file.
    """
    image_path, annotation_path = Path(image_path), Path(annotation_path)
    contents = []
    for path, what in ((annotation_path, "annotation"), (image_path, "image")):
        try:
            contents.append(path.read_bytes())
        except OSError as error:
            raise PromptError(f"cannot read the {what} {path}: {error.strerror}") from error
    return read_example(contents[1], contents[0], str(image_path), str(annotation_path), annotation_id)


def read_example(
    image: bytes, annotation: bytes, image_name: str, annotation_name: str, annotation_id: str | None = None
) -> Example:
    """Read one example from the contents of an image file and of its annotation file.

    Args:
        image_name: by which the annotation lists the image.
        annotation_name: what errors call the annotation file.
    Raises:
        PromptError: the image cannot be decoded, or `find_object` or `example_of` refuses it. It names the file.
    """
    try:
        marked = find_object(annotation, Path(image_name), annotation_id)
    except PromptError as error:
        raise PromptError(f"{annotation_name}: {error}") from error
    try:
        rgb_HW3 = decode_rgb(image)
    except PromptError as error:
        raise PromptError(f"{image_name} {error}") from error
    try:
        return example_of(rgb_HW3, marked)
    except PromptError as error:
        raise PromptError(f"{annotation_name}: {error}") from error


def example_of(rgb_HW3: NDArray[np.uint8], marked: CocoObject) -> Example:
    """Return the example of an image and the object that is marked in it.

    Raises:
        PromptError: the object has no box, no visible keypoint, or the wrong number of keypoints.
    """
    annotation, category = marked.annotation, marked.category
    count = len(category.keypoints)
    if len(annotation.keypoints) != 3 * count:
        raise PromptError(
            f"annotation {annotation.id} has {len(annotation.keypoints)} numbers in 'keypoints', "
            f"needed are x y v for each of the {count} names of {category.name!r}"
        )
    x, y, width, height = annotation.bbox
    keypoints_K3 = np.asarray(annotation.keypoints, dtype=np.float32).reshape(-1, 3)
    return Example(category.name, _skeleton(category), rgb_HW3, (x, y, x + width, y + height), keypoints_K3)


def _skeleton(category: CocoCategory) -> Skeleton:
    """Return the published list with these names, else a list of the file's own."""
    published = skeletons_by_instance().get(fold(category.name))
    if published is not None and [*map(letters, published.keypoints)] == [*map(letters, category.keypoints)]:
        return published  # COCO writes left_eye, the published list left eye
    count = len(category.keypoints)
    for edge in category.skeleton:
        if not all(1 <= end <= count for end in edge):
            raise PromptError(
                f"the skeleton of {category.name!r} has the edge {list(edge)}; COCO counts its {count} keypoints from 1"
            )
    edges = tuple((a - 1, b - 1) for a, b in category.skeleton)
    return Skeleton(category.name, tuple(category.keypoints), edges)


def crop_example(
    rgb_HW3: NDArray[np.uint8],
    box_xyxy: tuple[float, float, float, float],
    keypoints_K3: NDArray[np.float32],
    side_px: int = 224,
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
    """Cut a square around a box and put the keypoints into it.

    The square keeps the aspect ratio and every keypoint of a tall box, which CLIP's own centre crop would cut away;
    pixels outside of the image have CLIP's mean colour, which is zero in the result.

    Returns:
        pixels_3SS float32, normalised for CLIP; points_K2 as fractions of the square (may leave 0..1); visible_K.
    """
    x0, y0, x1, y1 = box_xyxy
    side = CROP_MARGIN * max(x1 - x0, y1 - y0)
    left, top = (x0 + x1 - side) / 2, (y0 + y1 - side) / 2
    scale = side_px / side
    height, width = rgb_HW3.shape[:2]
    # Work on the visible part alone, so that a box of a few pixels or a huge one costs the same.
    x_from, y_from = max(int(np.floor(left)), 0), max(int(np.floor(top)), 0)
    part_HW3 = rgb_HW3[y_from : min(int(np.ceil(top + side)), height), x_from : min(int(np.ceil(left + side)), width)]
    part_height, part_width = part_HW3.shape[:2]
    # Area averaging first where the crop shrinks: one bicubic step over a strong reduction would alias.
    shrink = min(scale, 1.0)
    size = max(round(part_width * shrink), 1), max(round(part_height * shrink), 1)
    small_HW3 = cv2.resize(part_HW3, size, interpolation=cv2.INTER_AREA).astype(np.float32)
    # Small pixel i begins at source pixel x_from + i * part_width / size; warpAffine counts from pixel centres.
    step_x, step_y = scale * part_width / size[0], scale * part_height / size[1]
    shift_x, shift_y = (x_from - left) * scale + step_x / 2 - 0.5, (y_from - top) * scale + step_y / 2 - 0.5
    matrix_23 = np.array([[step_x, 0.0, shift_x], [0.0, step_y, shift_y]])
    mean_3, std_3 = np.array(PIXEL_MEAN, dtype=np.float32), np.array(PIXEL_STD, dtype=np.float32)
    normal_HW3 = (small_HW3 / 255 - mean_3) / std_3
    square_SS3 = cv2.warpAffine(normal_HW3, matrix_23, (side_px, side_px), flags=cv2.INTER_CUBIC)
    points_K2 = ((keypoints_K3[:, :2] - np.array([left, top])) / side).astype(np.float32)
    visible_K = keypoints_K3[:, 2] > 0
    return np.ascontiguousarray(square_SS3.transpose(2, 0, 1)), points_K2, visible_K


@dataclass(frozen=True)
class VisualWeights:
    """Statistics of the visual branch's weights; see `visual_weights_trained`."""

    pos_proj_trained: bool
    padding_trained: bool
    pos_proj_largest: float
    pos_proj_p: float
    padding_p: float

    def __str__(self) -> str:
        verdict = (
            "trained" if self.pos_proj_trained else "as initialised: keypoints of example images mean nothing to it"
        )
        return (
            f"the visual branch is {verdict} (largest entry of pos_proj {self.pos_proj_largest:.4f}, p of its initial "
            f"distribution {self.pos_proj_p:.2g}; p of padding's {self.padding_p:.2g})"
        )


def visual_weights_trained(model: nn.Module) -> VisualWeights:
    """Say whether a network's `pos_proj` and `padding` differ from their initialisation.

    `pos_proj` starts uniform in ± 1/16 (± inputs^-0.5, with 256 inputs), `padding` standard normal. A `pos_proj` that
    still has this distribution was never trained on example images.
    """
    matrix = model.get_parameter("pos_proj.weight").detach().double().cpu().numpy()
    weight, bound = matrix.flatten(), matrix.shape[1] ** -0.5
    padding = model.get_parameter("padding.weight").detach().double().flatten().cpu().numpy()
    largest = float(np.abs(weight).max())
    weight_p = float(stats.kstest(weight, stats.uniform(-bound, 2 * bound).cdf).pvalue)
    padding_p = float(stats.kstest(padding, stats.norm.cdf).pvalue)
    surely = 1e-6  # one false alarm in a million untrained networks
    return VisualWeights(
        pos_proj_trained=largest > bound * 1.001 or weight_p < surely,
        padding_trained=padding_p < surely,
        pos_proj_largest=largest,
        pos_proj_p=weight_p,
        padding_p=padding_p,
    )
