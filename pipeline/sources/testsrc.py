"""Drawn figures with known keypoints, for demonstrations and tests without footage.

    testsrc://?size=640x480&rate=30&frames=300&seed=0&categories=person,dog

Every part is optional. The values above are the defaults, except for `categories`, which defaults to all. Frames come
as fast as they can be drawn, and none is lost. The same address always gives the same pixels.
"""

from __future__ import annotations

import difflib
import math
import re
import time
from collections.abc import Generator
from urllib.parse import parse_qsl, urlsplit

from pipeline.errors import SourceError
from pipeline.frames import Frame, now_ns
from pipeline.recording import Piece, StreamRecord
from pipeline.sources.base import Source, SourceConfig
from pipeline.synthetic import CATEGORIES, SceneConfig, SceneVideo

_LARGEST_SIDE = 8192  # px
_DEFAULTS = {"size": "640x480", "rate": "30", "frames": "300", "seed": "0", "categories": ",".join(CATEGORIES)}


class TestSource(Source):
    """The synthetic scenes of `pipeline.synthetic` as frames."""

    __test__ = False  # pytest would take the name for a test class

    def __init__(self, uri: str, config: SourceConfig) -> None:
        """Read the address.

        Raises:
            SourceError: a key or category is unknown, or a value is invalid.
        """
        super().__init__(config.name or "testsrc")
        values = _values(uri)
        rate, count, seed = _number(values, "rate"), _whole(values, "frames"), _whole(values, "seed")
        if not (0 < rate < math.inf) or count < 1:
            raise SourceError(f"testsrc://: rate={rate:g} and frames={count} must both be above 0")
        self.fps: float = rate
        self.frame_count: int = count
        self.scenes = SceneVideo(
            seed=seed,
            config=SceneConfig(categories=_categories(values["categories"])),
            size_hw=_size_hw(values),
            rate=rate,
        )
        """The scenes. The instances of a scene have the true keypoints of the frame with the same index."""

    def __iter__(self) -> Generator[Frame]:
        stream = StreamRecord(live=False, format="h264", reencoded="its pictures are drawn", frame_rate=self.fps)
        for index in range(self.frame_count):
            if self._stopped.is_set():
                return
            started_s = time.perf_counter()
            rgb_HW3 = self.scenes.frame(index).rgb_HW3
            decode_s = time.perf_counter() - started_s
            frame = Frame(self.name, index, rgb_HW3, index / self.fps, *now_ns(), "file", decode_s=decode_s)
            if self.tap is not None:
                self.tap(Piece(stream, None, True, frame, frame.capture_unix_ns))
            yield frame


def _values(uri: str) -> dict[str, str]:
    values = dict(_DEFAULTS)
    for key, value in parse_qsl(urlsplit(uri).query, keep_blank_values=True):
        if key not in _DEFAULTS:
            raise SourceError(f"testsrc://: unknown key {key!r}{_nearest(key, list(_DEFAULTS))}")
        values[key] = value
    return values


def _nearest(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=2)
    return f"; did you mean {' or '.join(near)}?" if near else f"; known are {', '.join(known)}"


def _number(values: dict[str, str], key: str) -> float:
    try:
        return float(values[key])
    except ValueError as error:
        raise SourceError(
            f"testsrc://: {key}={values[key]!r} is not a number; such as {key}={_DEFAULTS[key]}"
        ) from error


def _whole(values: dict[str, str], key: str) -> int:
    if not re.fullmatch(r"\d{1,9}", values[key]):
        raise SourceError(f"testsrc://: {key}={values[key]!r} is not a whole number; such as {key}={_DEFAULTS[key]}")
    return int(values[key])


def _size_hw(values: dict[str, str]) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", values["size"])
    if match is None:
        raise SourceError(f"testsrc://: size={values['size']!r} is not WIDTHxHEIGHT in pixels; such as size=640x480")
    width, height = int(match[1]), int(match[2])
    if max(width, height) > _LARGEST_SIDE:
        raise SourceError(f"testsrc://: size={values['size']} is too large; give {_LARGEST_SIDE} px a side or less")
    return height, width


def _categories(text: str) -> tuple[str, ...]:
    categories = tuple(text.split(","))
    for category in categories:
        if category not in CATEGORIES:
            raise SourceError(f"testsrc://: unknown category {category!r}{_nearest(category, list(CATEGORIES))}")
    return categories
