"""Turn source images into network inputs, and network coordinates back into coordinates of the source.

Two modes. `official` repeats the published code bit for bit: shorter side 800 but longer at most 1333, PIL's bilinear
on 8-bit values; images of one batch are padded at the right and bottom, with a mask for the network.
`letterbox` has one fixed input size: the image keeps its aspect ratio, centred between bars of ImageNet's mean colour.
There is no mask: the network sees the bars as image content, as in the training of the shipped model. Its boxes refer
to the whole input, so the way back is exact; a mask would be exact only to a cell of the coarsest level. A compiled
engine also has one input less. An input size with the camera's aspect ratio has no bars.

Shapes: N images, B batch, H height, W width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from engines.errors import InputError

SHORTER_PX = 800
LONGER_PX = 1333
PIXEL_MEAN = (0.485, 0.456, 0.406)
PIXEL_STD = (0.229, 0.224, 0.225)
BAR_RGB = (124, 116, 104)
"""PIXEL_MEAN in grey levels: nearly zero after normalisation."""


@dataclass(frozen=True)
class Placement:
    """Place of an image in its network input, in pixels of the input: `width` x `height` at (`left`, `top`)."""

    input_hw: tuple[int, int]
    left: int
    top: int
    width: int
    height: int

    def points_to_image(self, points_X2: NDArray[np.float32]) -> NDArray[np.float32]:
        """Turn (x, y) as fractions of the input into fractions of the image; any leading shape."""
        input_height, input_width = self.input_hw
        points = points_X2 * np.array([input_width, input_height]) - np.array([self.left, self.top])
        fractions: NDArray[np.float32] = (points / np.array([self.width, self.height])).astype(np.float32)
        return fractions

    def boxes_to_image(self, boxes_N4: NDArray[np.float32]) -> NDArray[np.float32]:
        """Turn (cx, cy, w, h) as fractions of the input into fractions of the image."""
        input_height, input_width = self.input_hw
        size_N2 = boxes_N4[:, 2:] * np.array([input_width / self.width, input_height / self.height])
        return np.concatenate([self.points_to_image(boxes_N4[:, :2]), size_N2.astype(np.float32)], axis=1)


def parse_size(size: str) -> tuple[int, int]:
    """Turn "800x1344" into (800, 1344): height and width of an input in pixels.

    Raises:
        InputError: the text has another form.
    """
    height, separator, width = size.partition("x")
    if not (separator and height.isdecimal() and width.isdecimal()):
        raise InputError(f"--size {size}: give HEIGHTxWIDTH in px, such as 800x1344")
    return int(height), int(width)


def check_image(rgb_HW3: NDArray[np.uint8]) -> None:
    """Raise InputError unless this is an 8-bit RGB image with at least one pixel."""
    if rgb_HW3.dtype != np.uint8 or rgb_HW3.ndim != 3 or rgb_HW3.shape[2] != 3 or 0 in rgb_HW3.shape:
        raise InputError(
            f"got an image of {rgb_HW3.dtype} and shape {list(rgb_HW3.shape)}; needed is RGB of uint8, [H, W, 3]"
        )


def official_size(width: int, height: int) -> tuple[int, int]:
    """Return (width, height) after the official resize: shorter side 800, longer at most 1333, floored.

    The official rule gives a height of 0 to images that are over 2666 times as wide as high; here it is at least 1.
    """
    short, long = min(width, height), max(width, height)
    target = SHORTER_PX
    if long / short * target > LONGER_PX:
        target = max(round(LONGER_PX * short / long), 1)
    if short == target:
        return width, height
    if width < height:
        return target, int(target * height / width)
    return int(target * width / height), target


def resize_official(rgb_HW3: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Resize as the official code does; bit-equal to it."""
    check_image(rgb_HW3)
    height, width = rgb_HW3.shape[:2]
    size = official_size(width, height)
    if size == (width, height):
        return rgb_HW3
    return np.asarray(Image.fromarray(rgb_HW3).resize(size, Image.Resampling.BILINEAR))


def place(width: int, height: int, input_hw: tuple[int, int]) -> Placement:
    """Return the place of an image of this size in a fixed input: as large as fits, centred.

    Width and height are rounded to whole pixels separately; the placement maps back by the true factor of each.
    """
    scale = min(input_hw[0] / height, input_hw[1] / width)
    content_width, content_height = max(round(scale * width), 1), max(round(scale * height), 1)
    left, top = (input_hw[1] - content_width) // 2, (input_hw[0] - content_height) // 2
    return Placement(input_hw, left, top, content_width, content_height)


def letterbox(rgb_HW3: NDArray[np.uint8], input_hw: tuple[int, int]) -> tuple[NDArray[np.uint8], Placement]:
    """Fit an image of any size and shape into a fixed input: area averaging to shrink, bilinear to enlarge."""
    check_image(rgb_HW3)
    height, width = rgb_HW3.shape[:2]
    placed = place(width, height, input_hw)
    method = cv2.INTER_AREA if placed.width < width or placed.height < height else cv2.INTER_LINEAR
    canvas_HW3 = np.empty((*input_hw, 3), dtype=np.uint8)
    canvas_HW3[:] = BAR_RGB
    resized = cv2.resize(rgb_HW3, (placed.width, placed.height), interpolation=method)
    canvas_HW3[placed.top : placed.top + placed.height, placed.left : placed.left + placed.width] = resized
    return canvas_HW3, placed


def normalise(images_BHW3: Tensor) -> Tensor:
    """Turn 8-bit images [B, H, W, 3] into the network's pixels [B, 3, H, W], float32, on the device they are on."""
    mean_311 = torch.tensor(PIXEL_MEAN, device=images_BHW3.device).view(3, 1, 1)
    std_311 = torch.tensor(PIXEL_STD, device=images_BHW3.device).view(3, 1, 1)
    return (images_BHW3.permute(0, 3, 1, 2).float() / 255 - mean_311) / std_311


@dataclass(frozen=True)
class Batch:
    """`images_BHW3` uint8; `padding_BHW` bool, True on padding, or None where there is none; a placement per image."""

    images_BHW3: Tensor
    padding_BHW: Tensor | None
    placements: tuple[Placement, ...]

    def pixels_B3HW(self, device: torch.device) -> Tensor:
        """Return the network's pixels, zero on padding."""
        pixels_B3HW = normalise(self.images_BHW3.to(device))
        if self.padding_BHW is None:
            return pixels_B3HW
        return pixels_B3HW.masked_fill(self.padding_BHW.to(device)[:, None], 0.0)


def letterbox_batch(images: Sequence[NDArray[np.uint8]], input_hw: tuple[int, int]) -> Batch:
    """Prepare images of any sizes for a fixed input size."""
    canvases, placements = zip(*(letterbox(image, input_hw) for image in images), strict=True)
    return Batch(torch.from_numpy(np.stack(canvases)), None, placements)


def official_batch(images: Sequence[NDArray[np.uint8]]) -> Batch:
    """Prepare images as the official code does; unequal ones are padded at the right and bottom, with a mask."""
    resized = [resize_official(image) for image in images]
    sizes = [image.shape[:2] for image in resized]
    height, width = max(size[0] for size in sizes), max(size[1] for size in sizes)
    images_BHW3 = np.zeros((len(resized), height, width, 3), dtype=np.uint8)
    padding_BHW = np.ones((len(resized), height, width), dtype=bool)
    for row, image in enumerate(resized):
        images_BHW3[row, : image.shape[0], : image.shape[1]] = image
        padding_BHW[row, : image.shape[0], : image.shape[1]] = False
    # With a mask the network's coordinates refer to the unpadded image: there is nothing to map back.
    placements = tuple(Placement((h, w), left=0, top=0, width=w, height=h) for h, w in sizes)
    mask = torch.from_numpy(padding_BHW) if padding_BHW.any() else None
    return Batch(torch.from_numpy(images_BHW3), mask, placements)
