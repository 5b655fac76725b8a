"""Stills: any kind of image, each on its own; a bad one costs only itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import SourceError
from pipeline.frames import Frame
from pipeline.sources import open_source
from tests.pipeline.videos import corners, quadrants


def only(path: Path) -> Frame:
    source = open_source(str(path))
    (frame,) = source
    return frame


def test_folder_is_read_in_lexicographic_order_and_not_recursively(tmp_path: Path) -> None:
    for name in ("b.png", "a10.png", "a2.JPG", "C.png", ".hidden.png", "notes.txt"):
        Image.new("RGB", (4, 3)).save(tmp_path / name, format="JPEG" if name.endswith("JPG") else "PNG")
    (tmp_path / "deeper.png").mkdir()
    Image.new("RGB", (4, 3)).save(tmp_path / "deeper.png" / "d.png")
    source = open_source(str(tmp_path))
    frames = list(source)
    assert (source.frame_count, source.fps, source.live) == (4, None, False)
    assert [frame.file for frame in frames] == ["C.png", "a10.png", "a2.JPG", "b.png"]
    assert [frame.index for frame in frames] == [0, 1, 2, 3]
    assert all(frame.still and frame.pts_s is None and frame.source == tmp_path.name for frame in frames)
    assert all(frame.rgb_HW3 is not None and not frame.rgb_HW3.flags.writeable for frame in frames)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "CMYK", "YCbCr"])
def test_colours_survive_every_mode(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("still.tif" if mode in ("CMYK", "YCbCr") else "still.png")
    Image.fromarray(quadrants(40, 30)).convert(mode).save(path)
    frame = only(path)
    assert frame.rgb_HW3 is not None
    assert corners(frame.rgb_HW3) == "rgbw"
    assert (frame.width, frame.height, frame.file) == (40, 30, path.name)


@pytest.mark.parametrize("mode", ["L", "LA", "1"])
def test_grey_comes_as_equal_red_green_and_blue(tmp_path: Path, mode: str) -> None:
    Image.fromarray(np.array([[0, 255]], np.uint8)).convert(mode).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(only(tmp_path / "grey.png").rgb_HW3, [[[0] * 3, [255] * 3]])


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
def test_sixteen_bit_grey_keeps_its_upper_byte(tmp_path: Path, suffix: str) -> None:
    grey_HW = np.array([[0, 0x1234, 0x80FF, 0xFFFF]], np.uint16)
    path = tmp_path / f"deep{suffix}"
    Image.fromarray(grey_HW).save(path)
    frame = only(path)
    assert frame.rgb_HW3 is not None
    np.testing.assert_allclose(frame.rgb_HW3[0, :, 0], [0, 0x12, 0x80, 0xFF], atol=1)


def test_palette_with_transparency_raises_no_warning(tmp_path: Path) -> None:
    image = Image.fromarray(quadrants(40, 30)).convert("P", palette=Image.Palette.ADAPTIVE)
    image.save(tmp_path / "clear.png", transparency=bytes(range(16)))
    frame = only(tmp_path / "clear.png")
    assert frame.rgb_HW3 is not None
    assert corners(frame.rgb_HW3) == "rgbw"


@pytest.mark.parametrize("size", [(1, 1), (8000, 6000), (1, 4000)])
def test_extreme_sizes_are_read(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("L", size, 77).save(tmp_path / "extreme.png", compress_level=1)
    frame = only(tmp_path / "extreme.png")
    assert frame.rgb_HW3 is not None
    assert (frame.width, frame.height) == size
    assert frame.rgb_HW3.min() == frame.rgb_HW3.max() == 77


@pytest.mark.parametrize(("orientation", "seen"), [(1, "rgbw"), (3, "wbgr"), (6, "brwg"), (8, "gwrb"), (2, "grwb")])
def test_orientation_of_the_camera_is_applied(tmp_path: Path, orientation: int, seen: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(quadrants(64, 48)).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    frame = only(tmp_path / "turned.jpg")
    assert frame.rgb_HW3 is not None
    assert corners(frame.rgb_HW3) == seen
    assert (frame.width, frame.height) == ((48, 64) if orientation in (6, 8) else (64, 48))


def _corrupt(path: Path) -> None:
    Image.fromarray(quadrants(64, 48)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_corrupt_images_are_frames_without_pixels_and_the_rest_goes_on(tmp_path: Path) -> None:
    _corrupt(tmp_path / "b_cut.png")
    (tmp_path / "d_text.jpg").write_text("no image")
    (tmp_path / "e_empty.jpg").touch()
    Image.fromarray(np.zeros((3, 4), np.float32)).save(tmp_path / "f_float.tif")
    for name in ("a.png", "c.png", "g.png"):
        Image.new("RGB", (4, 3)).save(tmp_path / name)
    frames: list[Frame] = []
    with pytest.raises(SourceError, match="4 of 7 images") as caught:
        frames += open_source(str(tmp_path))
    assert caught.value.partial
    assert "b_cut.png" in str(caught.value)
    assert [frame.rgb_HW3 is None for frame in frames] == [False, True, False, True, True, True, False]
    for frame in frames:
        assert (frame.error is None) == (frame.rgb_HW3 is not None)
        if frame.error is not None:
            assert str(frame.file) in frame.error
            assert str(tmp_path) not in frame.error
            assert "\n" not in frame.error
            assert (frame.width, frame.height) == (0, 0)


def test_folder_with_a_dot_in_its_name_keeps_it(tmp_path: Path) -> None:
    folder = tmp_path / "set.v2"
    folder.mkdir()
    Image.new("RGB", (4, 3)).save(folder / "a.png")
    source = open_source(str(folder))
    assert source.name == "set.v2"


def test_nothing_readable_is_not_partial(tmp_path: Path) -> None:
    _corrupt(tmp_path / "only.png")
    with pytest.raises(SourceError) as caught:
        list(open_source(str(tmp_path / "only.png")))
    assert not caught.value.partial


def test_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(SourceError, match="holds no image"):
        list(open_source(str(tmp_path)))


def test_missing_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such file"):
        open_source(str(tmp_path / "missing.jpg"))


def test_stop_ends_the_iteration(tmp_path: Path) -> None:
    for index in range(5):
        Image.new("RGB", (4, 3)).save(tmp_path / f"{index}.png")
    source = open_source(str(tmp_path))
    frames = iter(source)
    next(frames)
    source.stop()
    assert list(frames) == []


def _stack(path: Path, kind: str) -> Path:
    pages = [Image.new("RGB", (40, 30), (60 * index, 0, 0)) for index in range(4)]
    pages[0].save(path, format=kind, save_all=True, append_images=pages[1:])
    return path


@pytest.mark.parametrize(("kind", "suffix"), [("TIFF", ".tiff"), ("TIFF", ".dat"), ("WEBP", ".webp"), ("WEBP", ".mp4")])
def test_pages_that_are_left_out_are_counted_under_any_name(
    tmp_path: Path, kind: str, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    frame = only(_stack(tmp_path / f"stack{suffix}", kind))
    assert frame.rgb_HW3 is not None
    assert "only the first page is read, 3 of 4 are skipped" in caplog.text


@pytest.mark.parametrize("suffix", [".png", ".apng", ".dat"])
def test_animated_png_yields_all_its_pictures_under_any_name(tmp_path: Path, suffix: str) -> None:
    frames = list(open_source(str(_stack(tmp_path / f"moving{suffix}", "PNG"))))
    assert [int(frame.rgb_HW3[0, 0, 0]) for frame in frames if frame.rgb_HW3 is not None] == [0, 60, 120, 180]


def test_still_with_one_page_raises_no_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "one.tiff")
    only(tmp_path / "one.tiff")
    assert not caplog.text
