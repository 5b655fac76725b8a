"""What is drawn, and that nothing in a message can break the drawing."""

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.errors import ConfigError
from pipeline.outputs.overlay import OverlayConfig, colour_of, draw
from tests.clients.python.made import pose, skeleton
from xpose_client.messages import SkeletonClass, TrackMessage

SKELETONS = skeleton(classes=[SkeletonClass("mug", ["rim", "base"], [(0, 1)])])
BARE = OverlayConfig(boxes=False, labels=False, caption=False)


def track(
    points: list[tuple[float | None, float | None]],
    box_xyxy: tuple[float, float, float, float] = (10, 10, 90, 90),
    measured: bool = True,
) -> TrackMessage:
    unknown: list[tuple[None, None, None]] = [(None, None, None)] * 2
    return TrackMessage(
        3, "mug", 0.5, box_xyxy, points, points, points, [(None, None)] * 2, unknown, [measured] * 2, measured
    )  # fmt: skip


def drawn(
    tracks: list[TrackMessage], config: OverlayConfig = BARE, size: int = 100, zoom: float = 1.0
) -> NDArray[np.uint8]:
    canvas_HW3 = np.zeros((size, size, 3), np.uint8)
    draw(canvas_HW3, pose(tracks=tracks, width=100, height=100), SKELETONS, config, zoom)
    return canvas_HW3


def test_limb_is_drawn_between_its_keypoints_in_the_colour_of_the_identity() -> None:
    canvas_HW3 = drawn([track([(20.5, 50.5), (80.5, 50.5)])])
    np.testing.assert_allclose(canvas_HW3[50, 50], colour_of(3), atol=30)  # its edges are smoothed
    assert not canvas_HW3[:40].any()
    assert not canvas_HW3[60:].any()


def test_zoom_scales_coordinates() -> None:
    canvas_HW3 = drawn([track([(20.0, 50.0), (80.0, 50.0)])], size=200, zoom=2.0)
    assert canvas_HW3[100, 100].any()
    assert not canvas_HW3[50].any()


def test_absent_keypoint_takes_its_limb_with_it() -> None:
    canvas_HW3 = drawn([track([(20.5, 50.5), (None, None)])])
    assert canvas_HW3[50, 20].any()
    assert not canvas_HW3[:, 40:].any()


def test_coasting_track_looks_different() -> None:
    points: list[tuple[float | None, float | None]] = [(20.5, 50.5), (80.5, 50.5)]
    assert (drawn([track(points)]) != drawn([track(points, measured=False)])).any()


@pytest.mark.parametrize("size", [4, 16, 100])
@pytest.mark.parametrize(
    "box_xyxy", [(0, 0, 0, 0), (-1e9, -1e9, 1e9, 1e9), (90, 90, 10, 10), (1e6, 1e6, 2e6, 2e6), (-50, -50, -10, -10)]
)
def test_track_at_any_coordinates_is_drawn_without_an_error_and_so_is_the_next_one(
    box_xyxy: tuple[float, float, float, float], size: int
) -> None:
    left, top, right, bottom = box_xyxy
    anywhere = track([(left, top), (right, bottom)], box_xyxy)
    across = track([(0.0, size / 2), (float(size), size / 2)])
    alone = drawn([anywhere], OverlayConfig(), size)
    assert (drawn([anywhere, across], OverlayConfig(), size) != alone).any()


def test_nothing_is_drawn_where_nothing_is_asked_for() -> None:
    assert not drawn([]).any()


def test_scale_out_of_range_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"overlay\.scale"):
        OverlayConfig(scale=0)
