"""JPEGs of the newest pictures. A picture is encoded only if a viewer waits for it, and only once for all viewers.

There is a feed for each source, plain or annotated. A viewer asks for a picture that is newer than the last one that it
has seen, so a slow viewer skips pictures and does not delay others. A feed encodes at most `picture_rate` times a
second, on its own thread, because OpenCV releases Python's lock.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import msgspec

from pipeline.flow.publishing import Published
from pipeline.outputs.overlay import OverlayConfig
from pipeline.outputs.picture import blank_jpeg, jpeg_of
from pipeline.service.access import MonitorConfig

_POLL_S = 0.005  # how soon a new picture is noticed while somebody waits for it
_STATE_EVERY_S = 0.25  # how often an annotated feed looks at the state of its source
_ALIVE = "live"


@dataclass(frozen=True)
class View:
    """The contents of a source's picture at one moment.

    Attributes:
        published: its newest message with its picture; None before the first.
        state: state of the source, to be drawn on an annotated picture; "" for a plain one.
    """

    published: Published | None
    state: str


@dataclass(frozen=True, eq=False)
class Encoded:
    """A picture as JPEG.

    Attributes:
        number: counts up within a feed, from 1.
        jpeg: the encoded picture; b"" if the frame has no picture.
        view: the contents of the picture.
        made_s: `time.monotonic` when it was encoded.
    """

    number: int
    jpeg: bytes
    view: View
    made_s: float

    @cached_property
    def message_json(self) -> bytes:
        """The message of the picture as JSON; encoded once for all viewers."""
        return b"null" if self.view.published is None else msgspec.json.encode(self.view.published.message)


class Pictures:
    """The feeds. `newer` and `close` are for the thread of one event loop.

    Args:
        newest: returns the newest published frame of a source, or None.
        state: returns the state of a source.
        overlay: settings of the drawing on annotated pictures.
    """

    def __init__(
        self,
        newest: Callable[[str], Published | None],
        state: Callable[[str], str],
        config: MonitorConfig,
        overlay: OverlayConfig,
    ) -> None:
        self.interval_s = 1 / config.picture_rate
        self._newest = newest
        self._state = state
        self._config = config
        self._overlay = overlay
        self._feeds: dict[tuple[str, bool], _Feed] = {}
        self._encoder = ThreadPoolExecutor(1, "monitor pictures")

    async def newer(self, source: str, after: int, *, annotated: bool) -> Encoded:
        """Wait for a picture of `source` whose number is above `after`; 0 takes the newest.

        The caller checks that there is such a source.
        """
        feed = self._feeds.get((source, annotated))
        if feed is None:
            self._feeds = {key: kept for key, kept in self._feeds.items() if kept.waiting or kept.is_recent}
            feed = self._feeds[source, annotated] = _Feed(self, source, annotated)
        return await feed.newer(after)

    def close(self) -> None:
        """End the encoder's thread."""
        self._encoder.shutdown(wait=True, cancel_futures=True)

    def view(self, source: str, annotated: bool) -> View:
        """Return the present contents of a source's picture."""
        return View(self._newest(source), self._state(source) if annotated else "")

    def published(self, source: str) -> Published | None:
        """Return the newest published frame."""
        return self._newest(source)

    async def encode(self, source: str, annotated: bool, view: View) -> bytes:
        """Return a view as JPEG, made by the encoder's thread."""
        return await asyncio.get_running_loop().run_in_executor(self._encoder, self._encode, source, annotated, view)

    def _encode(self, source: str, annotated: bool, view: View) -> bytes:
        published, config = view.published, self._config
        notice = view.state if annotated and view.state != _ALIVE else ""
        if published is None or published.frame.picture is None:
            return blank_jpeg(f"{source}: {view.state}", quality=config.picture_quality) if annotated else b""
        return jpeg_of(
            published.frame,
            published.message,
            published.skeleton,
            overlay=self._overlay if annotated else None,
            notice=notice,
            longest_side=config.picture_side,
            quality=config.picture_quality,
        )


class _Feed:
    """The newest picture of one source, in one form."""

    def __init__(self, pictures: Pictures, source: str, annotated: bool) -> None:
        self.waiting = 0
        self._pictures = pictures
        self._source = source
        self._annotated = annotated
        self._latest: Encoded | None = None
        self._making: asyncio.Task[None] | None = None

    @property
    def is_recent(self) -> bool:
        """Whether the latest picture is younger than the shortest time between two."""
        return self._latest is not None and time.monotonic() - self._latest.made_s < self._pictures.interval_s

    async def newer(self, after: int) -> Encoded:
        """See `Pictures.newer`. When the last waiting viewer leaves, the encoding stops."""
        self.waiting += 1
        try:
            while True:
                latest = self._latest
                if latest is not None and latest.number > after and (self.is_recent or self._view() == latest.view):
                    return latest
                if self._making is None:
                    self._making = asyncio.create_task(self._make())
                await asyncio.shield(self._making)
        finally:
            self.waiting -= 1
            if self.waiting == 0 and self._making is not None:
                self._making.cancel()
                self._making = None

    def _view(self) -> View:
        return self._pictures.view(self._source, self._annotated)

    async def _make(self) -> None:
        """Wait until the contents have changed and the next picture is due, and encode it."""
        latest = self._latest
        try:
            if latest is not None:
                await asyncio.sleep(max(0.0, latest.made_s + self._pictures.interval_s - time.monotonic()))
            view = await self._changed(None if latest is None else latest.view)
            made_s = time.monotonic()
            jpeg = await self._pictures.encode(self._source, self._annotated, view)
            self._latest = Encoded(1 if latest is None else latest.number + 1, jpeg, view, made_s)
        finally:
            self._making = None

    async def _changed(self, seen: View | None) -> View:
        """Wait for a view that differs from `seen`. A plain view without a frame is skipped."""
        while True:
            view = self._view()
            looked_s = time.monotonic()
            if view != seen and (view.published is not None or self._annotated):
                return view
            while time.monotonic() - looked_s < _STATE_EVERY_S:
                await asyncio.sleep(_POLL_S)
                if self._pictures.published(self._source) is not view.published:
                    break
