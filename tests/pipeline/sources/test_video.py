"""Decoded pictures: as NV12 without a conversion, or as RGB, when somebody asks for them."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from engines.nv12 import BT601, BT709, Image, Nv12
from pipeline.config import PipelineConfig
from pipeline.flow.stages import FlowConfig
from pipeline.frames import Frame, now_ns
from pipeline.sources.video import LazyPicture, RgbConverter, nv12_of
from tests.pipeline.fakes import FakeEngine, FakePending, FakeSource
from tests.pipeline.flow.running import make_pipeline, run
from tests.pipeline.videos import noise, write_video

pytestmark = pytest.mark.timeout(60)


def decoded(pixel_format: str = "yuv420p", height: int = 48, width: int = 50) -> VideoFrame:
    """A picture whose rows are padded in memory."""
    rgb_HW3 = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return VideoFrame.from_ndarray(rgb_HW3, format="rgb24").reformat(format=pixel_format)


def lazy(picture: VideoFrame) -> LazyPicture:
    return LazyPicture(picture, RgbConverter("test"))


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuvj420p", "nv12"])
def test_the_planes_are_those_of_the_decoder_with_chroma_in_turn(pixel_format: str) -> None:
    picture = decoded(pixel_format)
    nv12 = nv12_of(picture)
    assert nv12 is not None
    assert nv12.shape == (48, 50)
    expected = picture.to_ndarray()  # PyAV's own way: all planes one after the other
    np.testing.assert_array_equal(nv12.planes[:48], expected[:48])
    if pixel_format == "nv12":
        np.testing.assert_array_equal(nv12.planes[48:], expected[48:])
    else:
        u, v = expected[48:].reshape(2, 24, 25)
        np.testing.assert_array_equal(nv12.planes[48:].reshape(24, 25, 2), np.stack([u, v], axis=-1))


@pytest.mark.parametrize(
    ("pixel_format", "colorspace", "color_range", "colours"),
    [
        ("yuv420p", 1, 1, (BT709.red, BT709.blue, False)),
        ("yuv420p", 2, 0, (BT601.red, BT601.blue, False)),
        ("nv12", 6, 2, (BT601.red, BT601.blue, True)),
        ("yuvj420p", 1, 0, (BT709.red, BT709.blue, True)),
    ],
)
def test_the_colours_are_those_that_the_stream_states(
    pixel_format: str, colorspace: int, color_range: int, colours: tuple[float, float, bool]
) -> None:
    picture = decoded(pixel_format)
    picture.colorspace, picture.color_range = colorspace, color_range
    nv12 = nv12_of(picture)
    assert nv12 is not None
    assert (nv12.colours.red, nv12.colours.blue, nv12.colours.full_range) == colours


@pytest.mark.parametrize("other", ["odd width", "odd height", "4:2:2", "10 bits", "BT.2020", "turned"])
def test_what_only_a_conversion_can_do_is_left_to_it(other: str, tmp_path: Path) -> None:
    if other == "turned":
        with av.open(str(write_video(tmp_path / "turned.mp4", 1, rotation=90))) as container:
            picture = next(container.decode(video=0))
    else:
        odd = {"odd width": (48, 49), "odd height": (47, 50)}
        picture = decoded(
            {"4:2:2": "yuv422p", "10 bits": "yuv420p10le"}.get(other, "yuv420p"), *odd.get(other, (48, 50))
        )
        picture.colorspace = 9 if other == "BT.2020" else 1
    found = lazy(picture)
    assert found.nv12() is None
    frame = frame_of(found)
    image = frame.image(nv12=True)
    assert isinstance(image, np.ndarray)
    assert image is frame.rgb_HW3
    assert image.shape[:2] == found.size_hw


def frame_of(picture: NDArray[np.uint8] | LazyPicture, index: int = 0, source: str = "fake") -> Frame:
    return Frame(source, index, picture, index / 30, *now_ns(), "receipt")


def test_the_size_of_a_turned_picture_is_known_before_it_is_converted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with av.open(str(write_video(tmp_path / "turned.mp4", 1, rotation=90))) as container:
        frame = frame_of(lazy(next(container.decode(video=0))))
    size = (frame.width, frame.height)
    assert frame.rgb_HW3 is not None
    assert size == (48, 64) == (frame.rgb_HW3.shape[1], frame.rgb_HW3.shape[0])


def test_both_forms_can_be_had_in_any_order_and_are_read_only() -> None:
    picture = lazy(decoded())
    nv12 = picture.nv12()
    assert nv12 is not None
    assert picture.nv12() is nv12
    assert not nv12.planes.flags.writeable
    assert picture.rgb().shape == (48, 50, 3)
    assert picture.nv12() is nv12
    converted = lazy(decoded())
    converted.rgb()
    assert converted.nv12() is None, "the decoder has its buffer back"


class Cameras(FakeSource):
    """Yields decoded pictures, and every third time an array."""

    def _frame(self, index: int) -> Frame:
        return frame_of(noise(index) if index % 3 == 2 else lazy(decoded(height=48, width=64)), index, self.name)


@pytest.mark.parametrize("takes_nv12", [True, False])
def test_an_engine_that_takes_nv12_gets_it_and_nothing_is_converted_on_the_way_to_a_message(
    takes_nv12: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    conversions: list[object] = []
    convert = RgbConverter.rgb

    def counted(converter: RgbConverter, picture: VideoFrame) -> NDArray[np.uint8]:
        conversions.append(picture)
        return convert(converter, picture)

    monkeypatch.setattr(RgbConverter, "rgb", counted)
    kinds: list[bool] = []

    class Watched(FakeEngine):
        """Notes which images are NV12."""

        def submit(self, images: list[Image]) -> FakePending:  # type: ignore[override]
            kinds.extend(isinstance(image, Nv12) for image in images)
            return super().submit(images)

    config = PipelineConfig(flow=FlowConfig(live_queue=8, age_budget_s=0.0))
    pipeline = make_pipeline(Cameras(6), config=config, poses=tmp_path / "poses")
    assert run(pipeline, Watched(takes_nv12=takes_nv12)).published == 6
    assert kinds == [takes_nv12, takes_nv12, False] * 2
    assert len(conversions) == (0 if takes_nv12 else 4)
