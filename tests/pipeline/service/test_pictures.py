"""The feeds of pictures by themselves, with a clock that the test moves."""

import asyncio
from collections.abc import Iterator
from types import SimpleNamespace
from unittest import mock

import pytest

from pipeline.flow.publishing import Published
from pipeline.outputs.overlay import OverlayConfig
from pipeline.service import pictures
from pipeline.service.access import MonitorConfig
from pipeline.service.pictures import Pictures

pytestmark = pytest.mark.timeout(30)


class Camera:
    """What the newest frame of a source is; each is encoded as the number of encodings so far."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1000.0
        self.encoded = 0
        self.show()
        monkeypatch.setattr(pictures, "time", SimpleNamespace(monotonic=lambda: self.now_s))
        self.feeds = Pictures(lambda _: self.newest, lambda _: "live", MonitorConfig(picture_rate=10), OverlayConfig())
        monkeypatch.setattr(self.feeds, "_encode", self._encode)

    def show(self) -> None:
        """Publish another frame."""
        self.newest = Published(mock.Mock(), mock.Mock(), mock.Mock())

    def _encode(self, *_: object) -> bytes:
        self.encoded += 1
        return str(self.encoded).encode()

    def picture_of_a_new_viewer(self) -> bytes:
        """The first picture that a viewer gets who comes now."""
        return asyncio.run(self.feeds.newer("cam", 0, annotated=False)).jpeg


@pytest.fixture
def camera(monkeypatch: pytest.MonkeyPatch) -> Iterator[Camera]:
    camera = Camera(monkeypatch)
    yield camera
    camera.feeds.close()


def test_viewer_who_comes_at_once_gets_the_picture_that_was_just_encoded(camera: Camera) -> None:
    assert camera.picture_of_a_new_viewer() == b"1"
    camera.show()
    camera.now_s += 0.09  # at 10 pictures a second
    assert camera.picture_of_a_new_viewer() == b"1"
    assert camera.encoded == 1


def test_viewer_who_comes_later_gets_the_newest_picture_and_not_the_one_before(camera: Camera) -> None:
    assert camera.picture_of_a_new_viewer() == b"1"
    camera.show()
    camera.now_s += 0.11
    assert camera.picture_of_a_new_viewer() == b"2"


def test_picture_that_shows_the_newest_frame_is_not_encoded_again_however_old_it_is(camera: Camera) -> None:
    assert camera.picture_of_a_new_viewer() == b"1"
    camera.now_s += 1000.0
    assert camera.picture_of_a_new_viewer() == b"1"


def test_feeds_that_nobody_uses_are_forgotten_when_another_begins(camera: Camera) -> None:
    camera.picture_of_a_new_viewer()
    camera.now_s += 0.11
    asyncio.run(camera.feeds.newer("door", 0, annotated=False))
    assert list(camera.feeds._feeds) == [("door", False)]
