"""Official preprocessing to the bit, and the way back to source pixels from any letterbox."""

import hashlib
import io
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from PIL import Image

from engines.errors import InputError
from engines.preprocess import (
    BAR_RGB,
    Placement,
    letterbox,
    letterbox_batch,
    normalise,
    official_batch,
    official_size,
    resize_official,
)
from tests.support import need_shared


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((640, 480), (1066, 800)),
        ((480, 640), (800, 1066)),
        ((1920, 1080), (1333, 750)),
        ((333, 1000), (444, 1333)),
        ((3000, 1000), (1332, 444)),
        ((427, 640), (800, 1199)),
        ((800, 1200), (800, 1200)),
        ((500, 500), (800, 800)),
        ((1, 1), (800, 800)),
        ((8000, 1), (8000, 1)),
    ],
)
def test_official_sizes(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert official_size(*size) == expected


def test_official_resize_is_pils_bilinear() -> None:
    image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    resized = resize_official(image)
    np.testing.assert_array_equal(resized, Image.fromarray(image).resize((1066, 800), Image.Resampling.BILINEAR))
    whole = np.zeros((800, 1200, 3), dtype=np.uint8)
    assert resize_official(whole) is whole


@pytest.mark.parametrize("case", ["case0", "case5"])
def test_pixels_are_bit_equal_to_the_originals(case: str) -> None:
    golden = np.load(need_shared(f"golden/{case}.npz"))
    info = json.loads(golden["info"].tobytes())
    names = sorted(name for name in golden.files if name.endswith("png"))
    digests = json.dumps(info)
    for name in names:
        image = np.asarray(Image.open(io.BytesIO(golden[name].tobytes())).convert("RGB"))
        pixels = normalise(torch.from_numpy(image.copy())[None])
        digest = hashlib.sha256(pixels[0].contiguous().numpy().tobytes()).hexdigest()
        assert digest in digests, name


def test_unequal_images_are_padded_with_zeros_and_a_mask() -> None:
    images = [np.full((48, 64, 3), 255, dtype=np.uint8), np.full((64, 48, 3), 255, dtype=np.uint8)]
    batch = official_batch(images)
    assert batch.images_BHW3.shape == (2, 1066, 1066, 3)
    assert batch.padding_BHW is not None
    pixels = batch.pixels_B3HW(torch.device("cpu"))
    assert pixels[batch.padding_BHW[:, None].expand_as(pixels)].abs().max() == 0
    assert pixels[~batch.padding_BHW[:, None].expand_as(pixels)].min() > 1
    assert (~batch.padding_BHW).sum(dim=(1, 2)).tolist() == [800 * 1066, 800 * 1066]
    assert official_batch(images[:1]).padding_BHW is None


@settings(max_examples=60, deadline=None)
@given(
    source=some.tuples(some.integers(1, 2000), some.integers(1, 2000)),
    target=some.tuples(some.integers(1, 20), some.integers(1, 20)),
    fraction=some.tuples(some.floats(-0.2, 1.2), some.floats(-0.2, 1.2)),
)
def test_letterbox_coordinates_map_back_to_a_hundredth_of_a_pixel(
    source: tuple[int, int], target: tuple[int, int], fraction: tuple[float, float]
) -> None:
    input_hw = (32 * target[0], 32 * target[1])
    canvas, placement = letterbox(np.zeros((*source, 3), dtype=np.uint8), input_hw)
    assert canvas.shape == (*input_hw, 3)
    assert 0 <= placement.left <= placement.left + placement.width <= input_hw[1]
    assert 0 <= placement.top <= placement.top + placement.height <= input_hw[0]
    size = np.array([source[1], source[0]])
    point = np.array(fraction) * size
    inside = np.array([placement.left, placement.top]) + point * [placement.width, placement.height] / size
    answer = (inside / [input_hw[1], input_hw[0]]).astype(np.float32)
    np.testing.assert_allclose(placement.points_to_image(answer) * size, point, atol=0.01)


@pytest.mark.parametrize("source", [(1, 1), (6000, 8000), (8000, 6000), (1, 3000), (3000, 1)])
def test_sizes_at_the_edge_fit(source: tuple[int, int]) -> None:
    canvas, placement = letterbox(np.full((*source, 3), 7, dtype=np.uint8), (320, 320))
    assert canvas.shape == (320, 320, 3)
    assert max(placement.width, placement.height) == 320
    assert (canvas == 7).all(axis=2).sum() == placement.width * placement.height
    corner = np.array([[placement.left, placement.top]]) / 320
    far = np.array([[placement.left + placement.width, placement.top + placement.height]]) / 320
    size = np.array([source[1], source[0]])
    np.testing.assert_allclose(placement.points_to_image(corner.astype(np.float32)) * size, [[0, 0]], atol=0.01)
    np.testing.assert_allclose(placement.points_to_image(far.astype(np.float32)) * size, [size], atol=0.01)


@pytest.mark.parametrize("source", [(480, 640), (97, 333), (50, 20)])
def test_what_is_drawn_at_a_point_is_found_at_its_coordinates(source: tuple[int, int]) -> None:
    """Looks at pixels, so that image and placement cannot be wrong together."""
    height, width = source
    x, y = 0.7 * width, 0.3 * height
    rows, columns = np.mgrid[:height, :width] + 0.5
    radius = 0.05 * min(source)
    spot = 255 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * radius**2))
    canvas, placement = letterbox(np.repeat(spot.astype(np.uint8)[..., None], 3, axis=2), (320, 320))
    bright = canvas[placement.top : placement.top + placement.height, placement.left : placement.left + placement.width]
    weight = bright[..., 0].astype(np.float64)
    rows, columns = np.mgrid[: placement.height, : placement.width] + 0.5
    centre = [(weight * columns).sum() / weight.sum(), (weight * rows).sum() / weight.sum()]
    answer = np.add([centre], [placement.left, placement.top]) / 320
    found = placement.points_to_image(answer.astype(np.float32))[0] * [width, height]
    np.testing.assert_allclose(found, [x, y], atol=0.1)


def test_boxes_map_back_with_their_sizes() -> None:
    placement = Placement((320, 640), left=80, top=0, width=480, height=320)
    box = np.array([[0.5, 0.5, 0.75, 1.0]], dtype=np.float32)
    np.testing.assert_allclose(placement.boxes_to_image(box), [[0.5, 0.5, 1.0, 1.0]], atol=1e-6)


def test_bars_are_nearly_zero_to_the_network() -> None:
    batch = letterbox_batch([np.full((10, 40, 3), 255, dtype=np.uint8)], (64, 64))
    assert batch.padding_BHW is None
    assert batch.images_BHW3[0, 0, 0].tolist() == list(BAR_RGB)
    assert batch.pixels_B3HW(torch.device("cpu"))[0, :, 0].abs().max() < 0.01


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 4, 3), np.float32),
    ],
)
def test_other_arrays_are_refused(image: np.ndarray) -> None:
    with pytest.raises(InputError, match="needed is RGB of uint8"):
        letterbox(image, (320, 320))
    with pytest.raises(InputError, match="needed is RGB of uint8"):
        resize_official(image)
