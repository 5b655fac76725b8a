"""The preprocessing kernel: its threads on the host against the CPU's letterbox, NVRTC's verdict, and the GPU."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from engines.errors import InputError
from engines.kernels import letterbox, nvrtc
from engines.nv12 import BT601, BT709, Colours
from engines.preprocess import letterbox_batch, place
from tests.support import lacks

GREY_LEVEL = 1 / 255 / 0.224  # one 8-bit step after normalisation, in the channel where it is largest
INPUT_HW = (48, 80)
SOURCE_SIZES = ((90, 160), (48, 80), (47, 81), (20, 30), (100, 31), (301, 97), (2, 2), (600, 1000))  # height, width
CAPABILITIES = ((7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0))
MATRICES = {
    "BT.709": BT709,
    "BT.601": BT601,
    "BT.601, full range": Colours(red=0.299, blue=0.114, full_range=True),
}


def _picture(height: int, width: int) -> NDArray[np.uint8]:
    """Smooth gradients and noise, so that both averaging and rounding show."""
    draw = np.random.default_rng(height * 10_000 + width)
    rows, columns = np.mgrid[0:height, 0:width]
    ramp = np.stack([rows * 255 / height, columns * 255 / width, (rows + columns) % 256], axis=-1)
    noisy: NDArray[np.uint8] = np.clip(ramp + draw.normal(0, 20, ramp.shape), 0, 255).astype(np.uint8)
    return noisy


def _nv12_to_rgb(nv12: NDArray[np.uint8], colours: Colours) -> NDArray[np.uint8]:
    """Written from ITU-R BT.709's definition: Y = r R + g G + b B, Cb = (B - Y) / 2(1 - b), Cr = (R - Y) / 2(1 - r)."""
    height, width = nv12.shape[0] * 2 // 3, nv12.shape[1]
    luma = nv12[:height].astype(np.float64)
    chroma = nv12[height:].reshape(height // 2, width // 2, 2).repeat(2, axis=0).repeat(2, axis=1).astype(np.float64)
    y = luma / 255 if colours.full_range else (luma - 16) / 219
    cb, cr = np.moveaxis((chroma - 128) / (255 if colours.full_range else 224), -1, 0)
    red = y + 2 * (1 - colours.red) * cr
    blue = y + 2 * (1 - colours.blue) * cb
    green = (y - colours.red * red - colours.blue * blue) / (1 - colours.red - colours.blue)
    rgb: NDArray[np.uint8] = np.rint(np.clip(np.stack([red, green, blue], -1) * 255, 0, 255)).astype(np.uint8)
    return rgb


def _run_on_host(source: NDArray[np.uint8], half: bool, colours: Colours | None, folder: Path) -> Tensor:
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        lacks("no C++ compiler: the host build of the CUDA header needs one")
    target = folder / "letterbox_host.so"
    defines = [f"-D{key}={value}" for key, value in letterbox.macros(half, INPUT_HW, colours).items()]
    flags = ["-std=c++17", "-O1", "-shared", "-fPIC", f"-I{nvrtc.HERE}", "-o", str(target)]
    command = [compiler, *flags, *defines, str(Path(__file__).with_name("letterbox_host.cpp"))]
    subprocess.run(command, check=True, timeout=60)
    height, width = (source.shape[0] * 2 // 3 if colours else source.shape[0]), source.shape[1]
    placed = place(width, height, INPUT_HW)
    out = torch.full((3, *INPUT_HW), torch.nan, dtype=torch.float16 if half else torch.float32)
    source = np.ascontiguousarray(source)
    pixels = source.ctypes.data
    chroma = pixels + height * source.strides[0]
    run = ctypes.CDLL(str(target)).xpose_run
    run.argtypes = [*[ctypes.c_void_p] * 3, *[ctypes.c_int] * 7]
    run(pixels, chroma, out.data_ptr(), width, height, source.strides[0],
        placed.left, placed.top, placed.width, placed.height)  # fmt: skip
    return out


def _assert_same_picture(got_3HW: Tensor, rgb: NDArray[np.uint8]) -> None:
    """At most one grey level apart anywhere, and mostly the same: OpenCV enlarges with weights of 11 bits."""
    expected_3HW = letterbox_batch([rgb], INPUT_HW).pixels_B3HW(torch.device("cpu"))[0]
    difference = (got_3HW.float() - expected_3HW).abs()
    assert difference.max() <= 1.02 * GREY_LEVEL
    assert (difference > 0.5 * GREY_LEVEL).float().mean() < 0.12


@pytest.mark.parametrize("size", SOURCE_SIZES, ids=str)
def test_rgb_threads_give_the_cpu_letterbox(size: tuple[int, int], tmp_path: Path) -> None:
    rgb = _picture(*size)
    _assert_same_picture(_run_on_host(rgb, False, None, tmp_path), rgb)


def test_float16_output_is_the_float32_output_rounded(tmp_path: Path) -> None:
    rgb = _picture(90, 160)
    (tmp_path / "half").mkdir()
    full, half = _run_on_host(rgb, False, None, tmp_path), _run_on_host(rgb, True, None, tmp_path / "half")
    assert torch.equal(full.half(), half)


@pytest.mark.parametrize("matrix", MATRICES)
def test_nv12_threads_give_the_letterbox_of_the_converted_picture(matrix: str, tmp_path: Path) -> None:
    colours = MATRICES[matrix]
    nv12 = np.random.default_rng(3).integers(30, 220, (96 * 3 // 2, 160), dtype=np.uint8)
    got = _run_on_host(nv12, False, colours, tmp_path)
    expected_3HW = letterbox_batch([_nv12_to_rgb(nv12, colours)], INPUT_HW).pixels_B3HW(torch.device("cpu"))[0]
    difference = (got - expected_3HW).abs()
    assert difference.max() <= 2.02 * GREY_LEVEL, "one level from rounding before averaging, one from rounding after"
    assert difference.mean() <= 0.35 * GREY_LEVEL


@pytest.mark.parametrize(
    ("pixel_format", "colorspace", "color_range"),
    [("yuv420p", 1, 1), ("yuv420p", 2, 0), ("yuv420p", 6, 2), ("nv12", 5, 1), ("yuvj420p", 1, 0)],
)
def test_a_decoded_picture_as_nv12_gives_what_it_gives_through_swscale(
    pixel_format: str, colorspace: int, color_range: int, tmp_path: Path
) -> None:
    """A smooth picture: at edges of colour, swscale interpolates chroma in its own ways."""
    av = pytest.importorskip("av")  # not on a machine that only runs the GPU tests of this file
    from pipeline.sources.video import RgbConverter, nv12_of

    rows, columns = np.mgrid[0:98, 0:162]
    smooth = np.stack([40 + rows, 60 + columns, 220 - (rows + columns) // 2], axis=-1).astype(np.uint8)
    picture = av.VideoFrame.from_ndarray(smooth, format="rgb24").reformat(format=pixel_format)
    picture.colorspace, picture.color_range = colorspace, color_range
    nv12 = nv12_of(picture)
    assert nv12 is not None
    assert nv12.shape == (98, 162)
    got = _run_on_host(nv12.planes, False, nv12.colours, tmp_path)
    expected_3HW = letterbox_batch([RgbConverter("test").rgb(picture)], INPUT_HW).pixels_B3HW(torch.device("cpu"))[0]
    difference = (got - expected_3HW).abs()
    assert difference.max() <= 3.02 * GREY_LEVEL
    assert difference.mean() <= 1.5 * GREY_LEVEL, "swscale's tables round down, by a level on average"


@pytest.mark.parametrize("capability", CAPABILITIES, ids=lambda capability: f"sm_{capability[0]}{capability[1]}")
def test_nvrtc_compiles_the_letterbox(capability: tuple[int, int]) -> None:
    for half, colours in ((True, None), (False, BT709)):
        defines = letterbox.macros(half, (800, 1344), colours)
        compiled = nvrtc.compile_source(letterbox.SOURCE, defines, capability)
        assert (compiled.stack_bytes, compiled.spill_bytes) == (0, 0)
        print(f"sm_{capability[0]}{capability[1]}: {compiled.registers} registers")


def test_an_image_on_the_cpu_is_refused() -> None:
    with pytest.raises(InputError, match="on the GPU"):
        letterbox.letterbox_into(torch.zeros(3, 8, 8), torch.zeros(4, 4, 3, dtype=torch.uint8))


@pytest.mark.gpu
@pytest.mark.parametrize("size", SOURCE_SIZES, ids=str)
def test_gpu_gives_the_cpu_letterbox(size: tuple[int, int]) -> None:
    rgb = _picture(*size)
    out = torch.full((3, *INPUT_HW), torch.nan, device="cuda")
    assert letterbox.letterbox_into(out, torch.from_numpy(rgb).cuda()) == place(size[1], size[0], INPUT_HW)
    _assert_same_picture(out.cpu(), rgb)
