"""The monitor: page, pictures, health and metrics over HTTP, beside a running pipeline.

    GET  /                        the page; /page/… its files; /live its WebSocket (see `viewers`)
    GET  /sources/NAME.jpg        the newest picture of a source with its poses; NAME.mjpg is a stream of them
    GET  /healthz, /readyz        200 or 503, with the reasons
    GET  /metrics                 for Prometheus
    POST /api/prompt              {"prompt": "person,dog", "keypoints": null}
    POST /api/sources/add         {"address": "rtsp://…"};  /api/sources/remove {"name": "…"}
    GET, POST /login              if the monitor has a token

An answer to a POST is {"done": SENTENCE} or {"error": SENTENCE}. Requests are bounded in size, time and number.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from urllib.parse import parse_qs

import msgspec
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp

from pipeline.errors import ERRORS
from pipeline.service.access import MonitorConfig, Names
from pipeline.service.guard import Guard, Token
from pipeline.service.health import Health
from pipeline.service.metrics import CONTENT_TYPE, Exposition
from pipeline.service.operations import Operations
from pipeline.service.overview import Overview
from pipeline.service.pictures import Pictures
from pipeline.service.viewers import MJPEG_TYPE, Viewers

_log = logging.getLogger(__name__)

_PAGE = Path(__file__).resolve().parent / "page"
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_LARGEST_BODY = 16 * 1024
_BODY_S = 5.0
_PICTURE_S = 10.0
_ANSWER = "<!-- answer -->"

_Body = TypeVar("_Body", bound=msgspec.Struct)


class PromptBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A change of prompts; see `Operations.set_prompts`."""

    prompt: str
    keypoints: str | None = None


class AddBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A new source."""

    address: str


class RemoveBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A source to remove."""

    name: str


class Handlers:
    """Answers requests. Work that waits or computes runs on other threads than the event loop's."""

    def __init__(
        self,
        config: MonitorConfig,
        operations: Operations,
        overview: Overview,
        viewers: Viewers,
        pictures: Pictures,
        health: Health,
        exposition: Exposition,
        token: Token | None,
    ) -> None:
        self._config = config
        self._operations = operations
        self._overview = overview
        self._viewers = viewers
        self._pictures = pictures
        self._health = health
        self._exposition = exposition
        self._token = token
        self._files = {path.name: path.read_bytes() for path in _PAGE.iterdir() if path.suffix in _TYPES}
        self._guard: Guard

    def app(self, names: Names) -> ASGIApp:
        """Return the application: the routes behind the guard."""
        routes = [
            Route("/", lambda request: self._file("index.html")),
            *(Route(f"/page/{name}", self._page_file) for name in self._files if not name.endswith(".html")),
            WebSocketRoute("/live", self._viewers.serve),
            Route("/sources/{name:path}.jpg", self._picture),
            Route("/sources/{name:path}.mjpg", self._stream),
            Route("/healthz", self._healthz),
            Route("/readyz", self._readyz),
            Route("/metrics", self._metrics),
            Route("/api/prompt", self._set_prompt, methods=["POST"]),
            Route("/api/sources/add", self._add, methods=["POST"]),
            Route("/api/sources/remove", self._remove, methods=["POST"]),
        ]
        if self._token is not None:
            routes += [Route("/login", self._login_page), Route("/login", self._login, methods=["POST"])]
        app = Starlette(routes=routes, exception_handlers={HTTPException: _refused})
        app.router.redirect_slashes = False
        self._guard = Guard(app, names, self._token)
        return self._guard

    def _file(self, name: str) -> Response:
        return Response(self._files[name], media_type=_TYPES[Path(name).suffix])

    async def _page_file(self, request: Request) -> Response:
        return self._file(request.url.path.rpartition("/")[2])

    async def _picture(self, request: Request) -> Response:
        name = self._source(request)
        try:
            async with asyncio.timeout(_PICTURE_S):
                picture = await self._pictures.newer(name, 0, annotated=True)
        except TimeoutError:
            raise HTTPException(503, f"{name}: no picture within {_PICTURE_S:g} s") from None
        return Response(picture.jpeg, media_type="image/jpeg", headers=_EMBEDDABLE)

    async def _stream(self, request: Request) -> Response:
        name = self._source(request)
        if self._viewers.full:
            raise HTTPException(503, f"there are {self._config.viewers} viewers already; monitor.viewers allows more")
        return StreamingResponse(self._viewers.stream(name), media_type=MJPEG_TYPE, headers=_EMBEDDABLE)

    def _source(self, request: Request) -> str:
        name: str = request.path_params["name"]
        if not self._overview.knows(name):
            raise HTTPException(404, "there is no source of this name")
        return name

    async def _healthz(self, request: Request) -> Response:
        stalled = await run_in_threadpool(self._health.stalled)
        return PlainTextResponse("".join(f"{line}\n" for line in stalled or ["alive"]), 503 if stalled else 200)

    async def _readyz(self, request: Request) -> Response:
        reason = await run_in_threadpool(self._health.unready)
        return PlainTextResponse(f"{reason or 'ready'}\n", 503 if reason else 200)

    async def _metrics(self, request: Request) -> Response:
        return Response(await run_in_threadpool(self._exposition.text), headers={"Content-Type": CONTENT_TYPE})

    async def _set_prompt(self, request: Request) -> Response:
        body = await _body(request, PromptBody)
        operations = self._operations

        def change() -> str:
            answer = operations.set_prompts(body.prompt, body.keypoints)
            names = ", ".join(entry.name for entry in answer.prompts.classes)
            return f"Looking for {names} from the next frame on (prompt {answer.prompts.id})."

        return await self._steer(self._config.steer in ("all", "prompts"), change)

    async def _add(self, request: Request) -> Response:
        body = await _body(request, AddBody)
        return await self._steer(
            self._config.steer == "all", lambda: f"Added {self._operations.add_source(body.address.strip()).source}."
        )

    async def _remove(self, request: Request) -> Response:
        body = await _body(request, RemoveBody)
        return await self._steer(
            self._config.steer == "all", lambda: f"Removed {self._operations.remove_source(body.name).source}."
        )

    async def _steer(self, allowed: bool, change: Callable[[], str]) -> Response:
        """Make a change on another thread. Answer what was done, or why nothing was done."""
        if not allowed:
            return JSONResponse({"error": "This monitor may not change that (monitor.steer)."}, 403)
        try:
            return JSONResponse({"done": await run_in_threadpool(change)})
        except ERRORS as error:
            return JSONResponse({"error": _sentence(str(error))}, 400)

    async def _login_page(self, request: Request) -> Response:
        return self._file("login.html")

    async def _login(self, request: Request) -> Response:
        assert self._token is not None
        form = parse_qs((await _read(request)).decode("utf-8", "replace"), max_num_fields=4)
        if not self._token.is_secret(form.get("token", [""])[0]):
            await self._guard.slow_down()
            page = self._files["login.html"].decode().replace(_ANSWER, "This is not the token of this monitor.")
            return Response(page, 401, media_type="text/html")
        answer = RedirectResponse("/", 303)
        answer.set_cookie(
            self._token.cookie_name,
            self._token.cookie,
            max_age=30 * 24 * 3600,
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return answer


_EMBEDDABLE = {"Cross-Origin-Resource-Policy": "cross-origin"}


async def _refused(request: Request, error: Exception) -> Response:
    """An error is one line of text."""
    assert isinstance(error, HTTPException)
    return PlainTextResponse(f"{error.detail}\n", error.status_code, error.headers)


async def _body(request: Request, kind: type[_Body]) -> _Body:
    """Read a request's JSON.

    Raises:
        HTTPException: the request is not JSON of this kind, is too large, or came too slowly.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "send JSON, as Content-Type: application/json")
    try:
        return msgspec.json.decode(await _read(request), type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise HTTPException(400, f"this request cannot be read: {error}") from error


async def _read(request: Request) -> bytes:
    body = b""
    try:
        async with asyncio.timeout(_BODY_S):
            async for part in request.stream():
                body += part
                if len(body) > _LARGEST_BODY:
                    raise HTTPException(413, f"a request has at most {_LARGEST_BODY} bytes")
    except (TimeoutError, ClientDisconnect):
        raise HTTPException(408, f"the request did not come within {_BODY_S:g} s") from None
    return body


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith(('.', '?', '!')) else '.'}"
