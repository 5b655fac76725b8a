"""Checks of the inputs of `XPose.forward`. They read shapes only, so an exported graph contains no part of them."""

from torch import Tensor

from engines.errors import InputError
from engines.xpose.config import XPoseConfig


def check_inputs(
    config: XPoseConfig,
    pixels_B3HW: Tensor,
    objects_BC512: Tensor,
    keypoints: Tensor,
    padding_BHW: Tensor | None,
    object_valid_BC: Tensor | None,
    keypoint_valid: Tensor | None,
) -> None:
    """Raise InputError if the shapes do not match; the arguments are those of `XPose.forward`."""
    batch, channels, height, width = _shape("pixels", pixels_B3HW, 4)
    classes = _shape("objects", objects_BC512, 3)[1]
    if keypoints.dim() not in (3, 4):
        raise InputError(f"keypoints must be [B, K, 512] or [B, C, K, 512], got {list(keypoints.shape)}")
    slots = keypoints.shape[-2]
    if not 1 <= slots <= config.max_keypoints:
        raise InputError(f"got {slots} keypoints, but the network takes 1 to {config.max_keypoints}: split the list")
    if channels != 3 or classes < 1:
        raise InputError(f"need 3 colour channels and at least 1 class, got {channels} and {classes}")
    lists = (classes,) if keypoints.dim() == 4 else ()
    _expect("objects", objects_BC512, (batch, classes, config.text_dim))
    _expect("keypoints", keypoints, (batch, *lists, slots, config.text_dim))
    _expect("padding", padding_BHW, (batch, height, width))
    _expect("object_valid", object_valid_BC, (batch, classes))
    _expect("keypoint_valid", keypoint_valid, (batch, *lists, slots))


def _shape(name: str, tensor: Tensor, dimensions: int) -> tuple[int, ...]:
    if tensor.dim() != dimensions:
        raise InputError(f"{name} must have {dimensions} dimensions, got {list(tensor.shape)}")
    return tuple(tensor.shape)


def _expect(name: str, tensor: Tensor | None, shape: tuple[int, ...]) -> None:
    if tensor is not None and tuple(tensor.shape) != shape:
        raise InputError(f"{name} must have the shape {list(shape)}, got {list(tensor.shape)}")
