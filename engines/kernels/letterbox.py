"""Turn a source image into the network's input on the GPU: `preprocess.letterbox` and `normalise` in one kernel.

Input: RGB, or NV12 as hardware decoders give it. Output: float32 or float16. The launch is asynchronous on the current
stream, and the source must stay alive until the kernel has run. Importing this module does nothing.
"""

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from engines.errors import InputError
from engines.kernels import nvrtc
from engines.nv12 import Colours
from engines.preprocess import BAR_RGB, PIXEL_MEAN, PIXEL_STD, Placement, place

SOURCE = "letterbox.cu"
KERNEL = "xpose_letterbox"
BLOCK_THREADS = 256


def _literal(value: float) -> str:
    return f"{float(value):.9g}f" if "." in f"{float(value):.9g}" else f"{float(value):.1f}f"


def _colour_macros(colours: Colours) -> dict[str, object]:
    chroma_gain = 1.0 if colours.full_range else 255 / 224
    green = 1 - colours.red - colours.blue
    red_v, blue_u = 2 * (1 - colours.red) * chroma_gain, 2 * (1 - colours.blue) * chroma_gain
    return {
        "XPOSE_LUMA_BLACK": "0.0f" if colours.full_range else "16.0f",
        "XPOSE_LUMA_GAIN": _literal(1.0 if colours.full_range else 255 / 219),
        "XPOSE_RED_V": _literal(red_v),
        "XPOSE_GREEN_U": _literal(blue_u * colours.blue / green),
        "XPOSE_GREEN_V": _literal(red_v * colours.red / green),
        "XPOSE_BLUE_U": _literal(blue_u),
    }


def macros(half: bool, input_hw: tuple[int, int], nv12: Colours | None) -> dict[str, object]:
    """Return the macros for `letterbox_thread.h` and `letterbox.cu`; `nv12` None means RGB."""

    def colour(values: Sequence[float]) -> str:
        return "{" + ",".join(map(_literal, values)) + "}"

    return {
        "XPOSE_HALF": int(half),
        "XPOSE_HEIGHT": input_hw[0],
        "XPOSE_WIDTH": input_hw[1],
        "XPOSE_MEAN": colour(PIXEL_MEAN),
        "XPOSE_DEVIATION": colour(PIXEL_STD),
        "XPOSE_BAR": colour(BAR_RGB),
        "XPOSE_NV12": int(nv12 is not None),
        "XPOSE_BLOCK": BLOCK_THREADS,
        **(_colour_macros(nv12) if nv12 else {}),
    }


@functools.cache
def _kernel(device_index: int, half: bool, input_hw: tuple[int, int], nv12: Colours | None) -> Callable[..., None]:
    from torch.cuda._utils import _cuda_load_module

    with torch.cuda.device(device_index):
        capability = torch.cuda.get_device_capability(device_index)
        code = nvrtc.cubin(SOURCE, macros(half, input_hw, nv12), capability)
        kernel: Callable[..., None] = getattr(_cuda_load_module(code), KERNEL)
    return kernel


def letterbox_into(out_3HW: Tensor, source: Tensor, nv12: Colours | None = None) -> Placement:
    """Queue the letterbox of one image on the current stream and return the image's placement.

    Args:
        out_3HW: float32 or float16 on the GPU, contiguous. Every element is written.
        source: uint8 on the same GPU, contiguous. RGB is [h, w, 3]. NV12 is [h * 3 / 2, w] with h and w even: h rows of
            luma, then h / 2 rows of interleaved chroma.
        nv12: the colour matrix of an NV12 source; None means that the source is RGB.
    Raises:
        InputError: another shape, dtype or device.
        BackendError: NVRTC is missing.
    """
    shape_is_right = source.ndim == 2 if nv12 else source.ndim == 3 and source.shape[2] == 3
    if source.dtype != torch.uint8 or not shape_is_right or not source.is_contiguous() or not source.is_cuda:
        expected = "[h * 3 / 2, w]" if nv12 else "[h, w, 3]"
        raise InputError(
            f"got an image of {source.dtype}, shape {list(source.shape)}, on {source.device}; needed is contiguous "
            f"uint8 {expected} on the GPU"
        )
    if nv12 and (source.shape[0] % 3 or source.shape[1] % 2):
        raise InputError(f"an NV12 image has h * 3 / 2 rows and an even width, got {list(source.shape)}")
    if not out_3HW.is_contiguous() or out_3HW.dtype not in (torch.float32, torch.float16) or out_3HW.shape[0] != 3:
        raise InputError(f"the input must be contiguous float32 or float16 [3, H, W], got {list(out_3HW.shape)}")
    height, width = (source.shape[0] * 2 // 3 if nv12 else source.shape[0]), source.shape[1]
    input_hw = (out_3HW.shape[1], out_3HW.shape[2])
    placed = place(width, height, input_hw)
    kernel = _kernel(out_3HW.device.index, out_3HW.dtype == torch.float16, input_hw, nv12)
    chroma = source[height:] if nv12 else source
    geometry = [width, height, source.stride(0), placed.left, placed.top, placed.width, placed.height]
    with torch.cuda.device(out_3HW.device):
        kernel(
            grid=(-(-input_hw[0] * input_hw[1] // BLOCK_THREADS), 1, 1),
            block=(BLOCK_THREADS, 1, 1),
            args=[source, chroma, out_3HW, *geometry],
        )
    return placed
