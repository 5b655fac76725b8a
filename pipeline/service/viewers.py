"""The WebSockets of the monitor page, and its streams of pictures.

    page → monitor   {"look": [NAME, …]}   send the pictures of these sources and of no others
                     {"seen": NAME}        a picture of this source was drawn
    monitor → page   text: the status of the pipeline, twice a second
                     binary: length of the head (4 bytes, big-endian), head (JSON), JPEG

At most `_UNSEEN` pictures of a source that the page has not drawn yet are on their way to it. So a slow or sleeping
browser delays nothing: it gets the newest picture when it is ready for one.
"""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any

import msgspec
from starlette.websockets import WebSocket, WebSocketDisconnect

from pipeline.service.pictures import Encoded, Pictures

_UNSEEN = 2
_STATUS_EVERY_S = 0.5
_MOST_SOURCES = 256  # of which one page may ask for pictures
_BOUNDARY = "xpose-picture"
MJPEG_TYPE = f"multipart/x-mixed-replace; boundary={_BOUNDARY}"


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A message from the page."""

    look: list[str] | None = None
    seen: str | None = None


_REQUESTS = msgspec.json.Decoder(Request)


class Viewers:
    """All viewers. The methods are for the thread of one event loop.

    Args:
        pictures: the feeds of all sources.
        status: returns the status as JSON; called twice a second while there are viewers, once for all of them.
        known: returns whether there is a source of this name.
        most: largest number of viewers at the same time.
    """

    def __init__(
        self, pictures: Pictures, status: Callable[[], bytes], known: Callable[[str], bool], most: int
    ) -> None:
        self.count = 0
        self._pictures = pictures
        self._status = status
        self._known = known
        self._most = most
        self._status_json = b""
        self._status_s = float("-inf")

    @property
    def full(self) -> bool:
        """Whether there is no room for another viewer."""
        return self.count >= self._most

    async def serve(self, socket: WebSocket) -> None:
        """Serve one page until it goes away."""
        if self.full:
            await socket.close(1013, f"there are {self._most} viewers already; monitor.viewers allows more")
            return
        await socket.accept()
        self.count += 1
        try:
            async with asyncio.TaskGroup() as tasks:
                looking = _Looking(self._pictures, socket, tasks)
                statuses = tasks.create_task(self._send_statuses(socket))
                try:
                    while True:
                        request = _REQUESTS.decode(await socket.receive_text())
                        if request.look is not None:
                            looking.look([name for name in request.look[:_MOST_SOURCES] if self._known(name)])
                        if request.seen is not None:
                            looking.seen(request.seen)
                finally:
                    statuses.cancel()
                    looking.look([])
        except* (WebSocketDisconnect, OSError):
            pass
        except* (msgspec.DecodeError, KeyError):  # starlette: KeyError for a binary message
            await socket.close(1003, "not a request of the monitor page")
        finally:
            self.count -= 1

    async def stream(self, source: str) -> AsyncGenerator[bytes]:
        """Yield the annotated pictures of a source as parts of a multipart stream (MJPEG over HTTP)."""
        self.count += 1
        try:
            number = 0
            while self._known(source):
                picture = await self._pictures.newer(source, number, annotated=True)
                number = picture.number
                head = f"--{_BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(picture.jpeg)}\r\n\r\n"
                yield head.encode() + picture.jpeg + b"\r\n"
        finally:
            self.count -= 1

    async def _send_statuses(self, socket: WebSocket) -> None:
        while True:
            now_s = time.monotonic()
            if now_s - self._status_s >= _STATUS_EVERY_S / 2:
                self._status_json, self._status_s = self._status(), now_s
            await socket.send_text(self._status_json.decode())
            await asyncio.sleep(_STATUS_EVERY_S)


class _Looking:
    """The pictures that one page wants: a task for each source."""

    def __init__(self, pictures: Pictures, socket: WebSocket, tasks: asyncio.TaskGroup) -> None:
        self._pictures = pictures
        self._socket = socket
        self._tasks = tasks
        self._of_source: dict[str, tuple[asyncio.Task[Any], asyncio.Semaphore]] = {}
        self._in_flight: dict[str, int] = {}

    def look(self, sources: list[str]) -> None:
        """Send the pictures of these sources and of no others."""
        for name in self._of_source.keys() - set(sources):
            self._of_source.pop(name)[0].cancel()
        for name in sources:
            if name not in self._of_source:
                room = asyncio.Semaphore(_UNSEEN)
                self._of_source[name] = self._tasks.create_task(self._show(name, room)), room

    def seen(self, source: str) -> None:
        """Note that the page has drawn a picture, so that the next one can be sent."""
        if self._in_flight.get(source, 0) > 0 and source in self._of_source:
            self._in_flight[source] -= 1
            self._of_source[source][1].release()

    async def _show(self, source: str, room: asyncio.Semaphore) -> None:
        number, skeleton_id = 0, None
        self._in_flight[source] = 0
        while True:
            await room.acquire()
            picture = await self._pictures.newer(source, number, annotated=False)
            number = picture.number
            published = picture.view.published
            assert published is not None
            skeleton = None if published.message.prompt_id == skeleton_id else published.skeleton
            skeleton_id = published.message.prompt_id
            head = _head(source, picture, skeleton)
            self._in_flight[source] += 1
            await self._socket.send_bytes(struct.pack(">I", len(head)) + head + picture.jpeg)


def _head(source: str, picture: Encoded, skeleton: msgspec.Struct | None) -> bytes:
    published = picture.view.published
    return msgspec.json.encode(
        {
            "source": source,
            "age_s": None if published is None or not published.frame.live else published.frame.age_s,
            "skeleton": skeleton,
            "message": msgspec.Raw(picture.message_json),
        }
    )
