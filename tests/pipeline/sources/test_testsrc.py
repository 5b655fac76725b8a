"""The synthetic source: the same address gives the same pixels, and true keypoints beside them."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.errors import SourceError
from pipeline.sources import SourceConfig, open_source
from pipeline.sources.testsrc import TestSource


def test_address_decides_size_rate_count_and_pixels() -> None:
    uri = "testsrc://?size=96x64&rate=10&frames=4&seed=3&categories=person"
    source = open_source(uri)
    assert (source.name, source.live, source.frame_count, source.fps) == ("testsrc", False, 4, 10.0)
    frames, same = list(source), list(open_source(uri))
    assert [frame.index for frame in frames] == [0, 1, 2, 3]
    assert [frame.pts_s for frame in frames] == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert all(
        (frame.width, frame.height, frame.capture_clock, frame.still) == (96, 64, "file", False) for frame in frames
    )
    for frame, twin in zip(frames, same, strict=True):
        assert frame.rgb_HW3 is not None
        assert not frame.rgb_HW3.flags.writeable
        np.testing.assert_array_equal(frame.rgb_HW3, twin.rgb_HW3)
    assert np.any(frames[0].rgb_HW3 != frames[3].rgb_HW3)


def test_seed_changes_the_pixels() -> None:
    one, two = open_source("testsrc://?size=96x64&frames=1&seed=1"), open_source("testsrc://?size=96x64&frames=1")
    assert np.any(next(iter(one)).rgb_HW3 != next(iter(two)).rgb_HW3)


def test_bare_address_works_and_the_name_can_be_given() -> None:
    source = open_source("testsrc://", SourceConfig(name="demo"))
    frame = next(iter(source))
    assert (frame.source, frame.width, frame.height) == ("demo", 640, 480)


@pytest.mark.parametrize("size", ["1x1", "3x200", "321x241"])
def test_any_size_can_be_drawn(size: str) -> None:
    source = open_source(f"testsrc://?size={size}&frames=2")
    assert [f"{frame.width}x{frame.height}" for frame in source] == [size, size]


def test_true_keypoints_lie_beside_the_frames() -> None:
    source = open_source("testsrc://?size=160x120&frames=2&categories=person")
    assert isinstance(source, TestSource)
    frame = next(iter(source))
    scene = source.scenes.frame(frame.index)
    np.testing.assert_array_equal(scene.rgb_HW3, frame.rgb_HW3)
    assert {instance.category for instance in scene.instances} <= {"person"}


def test_stop_ends_the_iteration() -> None:
    source = open_source("testsrc://?size=32x32")
    frames = iter(source)
    next(frames)
    source.stop()
    assert list(frames) == []


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("sise=3x3", "did you mean size"),
        ("size=640", "WIDTHxHEIGHT"),
        ("size=0x10", "WIDTHxHEIGHT"),
        ("size=100000x10", "too large"),
        ("rate=fast", "not a number"),
        ("rate=0", "above 0"),
        ("rate=nan", "above 0"),
        ("frames=0", "above 0"),
        ("frames=2.5", "whole number"),
        ("seed=-1", "whole number"),
        ("categories=persn", "did you mean person"),
        ("categories=", "unknown category ''"),
    ],
)
def test_address_with_a_mistake_is_refused_in_one_sentence(query: str, words: str) -> None:
    with pytest.raises(SourceError, match=words):
        open_source(f"testsrc://?{query}")
