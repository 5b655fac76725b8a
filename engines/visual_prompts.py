"""Example images as prompts: "find what looks like this, and these points of it".

An example is an image, the box of one object in it, and keypoints by name. Its annotation file has COCO's keypoint
layout: `images` (id, file_name), `annotations` (image_id, category_id, bbox as x y w h, keypoints as x y v x y v …)
and `categories` (id, name, keypoints, skeleton counted from 1). `engines.annotate` writes such a file.

Shapes: K keypoints, S side of the crop. Source: our reading of the paper's figures, which are all that was published.
"""

from dataclasses import dataclass
from pathlib import Path

import cv2
import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy import stats
from torch import nn

from engines.clip import PIXEL_MEAN, PIXEL_STD
from engines.errors import PromptError
from engines.skeletons import Skeleton, fold, letters, skeletons_by_instance

CROP_MARGIN = 1.1
"""Side of the square crop over the longer side of the box."""


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

    def in_order_of(self, skeleton: Skeleton) -> "Example":
        """Return the example with its keypoints matched by name to another list; what it lacks is invisible."""
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


class CocoImage(msgspec.Struct):
    """An image of an annotation file."""

    id: int
    file_name: str


class CocoCategory(msgspec.Struct):
    """A class with its keypoint names; `skeleton` holds edges counted from 1."""

    id: int
    name: str
    keypoints: list[str] = []
    skeleton: list[tuple[int, int]] = []


class CocoAnnotation(msgspec.Struct):
    """One object: `bbox` is x, y, width, height; `keypoints` is x, y, v for each name, v = 0 where not marked."""

    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    keypoints: list[float] = []
    id: int = 0


class CocoFile(msgspec.Struct):
    """The part of COCO's keypoint layout that an example needs; further keys are left alone."""

    images: list[CocoImage]
    annotations: list[CocoAnnotation]
    categories: list[CocoCategory]

    def only(self, image_name: str, annotation_id: int | None = None) -> "CocoFile":
        """Return the one annotation of an image, with its image and category.

        A file that knows one image only needs no matching name.

        Raises:
            PromptError: the image, its category or the annotation is not there, or there are several.
        """
        images = self.images
        if len(images) != 1:
            images = [image for image in images if Path(image.file_name).name == image_name]
        if len(images) != 1:
            raise PromptError(f"has {len(images)} images called {image_name!r}, needed is one")
        found = [annotation for annotation in self.annotations if annotation.image_id == images[0].id]
        if annotation_id is not None:
            found = [annotation for annotation in found if annotation.id == annotation_id]
        if len(found) != 1:
            ids = ", ".join(str(annotation.id) for annotation in found)
            raise PromptError(
                f"has {len(found)} annotations of {image_name!r}, needed is one"
                + (f": pick one of the ids {ids} with `python -m engines.annotate from-coco`" if found else "")
            )
        categories = [category for category in self.categories if category.id == found[0].category_id]
        if len(categories) != 1:
            raise PromptError(
                f"annotation {found[0].id} is of category {found[0].category_id}, "
                f"which is listed {len(categories)} times; needed is once"
            )
        return CocoFile(images, found, categories)


def read_coco(path: Path) -> CocoFile:
    """Read an annotation file.

    Raises:
        PromptError: it is absent, no JSON, or not of COCO's keypoint layout; names the key.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=CocoFile)
    except OSError as error:
        raise PromptError(f"cannot read the annotation {path}: {error.strerror}") from error
    except msgspec.ValidationError as error:
        raise PromptError(f"{path} is not of COCO's keypoint layout: {str(error).replace('$.', 'key ')}") from error
    except msgspec.DecodeError as error:
        raise PromptError(f"{path} is not JSON: {error}") from error


def read_rgb(path: Path) -> NDArray[np.uint8]:
    """Read any still that OpenCV decodes as RGB [H, W, 3], upright by its EXIF."""
    try:
        encoded = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise PromptError(f"cannot read the image {path}: {error.strerror}") from error
    bgr_HW3 = cv2.imdecode(encoded, cv2.IMREAD_COLOR) if encoded.size else None
    if bgr_HW3 is None:
        raise PromptError(f"{path} is not an image that OpenCV can decode (jpeg, png, webp, tiff, bmp, …)")
    return np.ascontiguousarray(bgr_HW3[..., ::-1])


def load_example(image_path: str | Path, annotation_path: str | Path, annotation_id: int | None = None) -> Example:
    """Load one example from an image and its annotation file, looked up by the image's file name.

    Raises:
        PromptError: a file cannot be read, the image has no annotation or several, or nothing in it is visible.
    """
    image_path, annotation_path = Path(image_path), Path(annotation_path)
    coco = read_coco(annotation_path)
    rgb_HW3 = read_rgb(image_path)
    try:
        return example_of(coco.only(image_path.name, annotation_id), rgb_HW3)
    except PromptError as error:
        raise PromptError(f"{annotation_path}: {error}") from error


def example_of(coco: CocoFile, rgb_HW3: NDArray[np.uint8]) -> Example:
    """Return the example of a file with one annotation."""
    (annotation,), (category,) = coco.annotations, coco.categories
    if len(annotation.keypoints) != 3 * len(category.keypoints):
        raise PromptError(
            f"annotation {annotation.id} has {len(annotation.keypoints)} numbers in 'keypoints', "
            f"needed are x y v for each of the {len(category.keypoints)} names of {category.name!r}"
        )
    published = skeletons_by_instance().get(fold(category.name))
    if published is not None and [*map(letters, published.keypoints)] == [*map(letters, category.keypoints)]:
        skeleton = published  # COCO writes left_eye, the published list left eye
    else:
        edges = tuple((a - 1, b - 1) for a, b in category.skeleton)
        skeleton = Skeleton(category.name, tuple(category.keypoints), edges)
    x, y, width, height = annotation.bbox
    keypoints_K3 = np.asarray(annotation.keypoints, dtype=np.float32).reshape(-1, 3)
    return Example(category.name, skeleton, rgb_HW3, (x, y, x + width, y + height), keypoints_K3)


def crop_example(
    rgb_HW3: NDArray[np.uint8],
    box_xyxy: tuple[float, float, float, float],
    keypoints_K3: NDArray[np.float32],
    side_px: int = 224,
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
    """Cut a square around a box and put the keypoints into it.

    The square keeps the aspect ratio and every keypoint of a tall box, which CLIP's own centre crop would cut away;
    what lies outside of the image has CLIP's mean colour, and so is zero in the result.

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
    """What the numbers of the visual branch look like; see `visual_weights_trained`."""

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

    `pos_proj` starts uniform in ± 1/16 (256 inputs; ± their number^-0.5), `padding` standard normal. A network whose
    `pos_proj` still looks so was never shown an example image.
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
