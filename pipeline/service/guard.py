"""Checks every request to the monitor (names, origins, the token), and adds headers to every answer.

- The Host must be a name of the monitor, also on loopback. A page of an attacker whose name was rebound to this machine
  has another Host.
- An Origin must be that of the Host. Browsers send it with every WebSocket and with every request that changes
  something, so no other page can steer the pipeline.
- With a token, a request needs the cookie of a login, or the token in its Authorization header (Bearer, or Basic with
  any user name, for programs that know nothing else).
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import logging
import time
from http.cookies import CookieError, SimpleCookie
from urllib.parse import urlsplit

import h11
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.service.access import Names

_log = logging.getLogger(__name__)

OPEN_PATHS = frozenset({"/login", "/page/style.css"})
"""Paths that need no token: those of the login itself."""

_REFUSAL_DELAY_S = 0.5  # slows down programs that guess tokens
_LOG_EVERY_S = 60.0
_HEADERS = {
    b"content-security-policy": (
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        b"form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
    b"referrer-policy": b"same-origin",
    b"cross-origin-opener-policy": b"same-origin",
    b"cache-control": b"no-store",
}


class Token:
    """A secret that viewers know. The cookie holds a value derived from it, never the token."""

    def __init__(self, secret: str, port: int) -> None:
        self._secret = secret.encode()
        self.cookie_name = f"xpose_monitor_{port}"  # browsers share cookies between the ports of a host
        self.cookie = hmac.new(self._secret, b"cookie of the monitor", hashlib.sha256).hexdigest()

    def is_secret(self, text: str) -> bool:
        """Whether `text` is the token. The comparison takes the same time for every wrong token."""
        return hmac.compare_digest(text.encode(), self._secret)

    def admits(self, headers: Headers) -> bool:
        """Whether a request has the cookie, or the token in its Authorization."""
        try:
            morsel = SimpleCookie(headers.get("cookie", "")).get(self.cookie_name)
        except CookieError:
            morsel = None
        if morsel is not None and hmac.compare_digest(morsel.value.encode(), self.cookie.encode()):
            return True
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer":
            return self.is_secret(given.strip())
        if kind.lower() == "basic":
            try:
                return self.is_secret(base64.b64decode(given, validate=True).decode().partition(":")[2])
            except (binascii.Error, UnicodeDecodeError):
                return False
        return False


class Guard:
    """An ASGI application around another one; it refuses requests that are not allowed."""

    def __init__(self, app: ASGIApp, names: Names, token: Token | None) -> None:
        self._app = app
        self._names = names
        self._token = token
        self._refused = _Count(logging.WARNING)
        self._failed = _Count(logging.ERROR)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a good request on with the headers of every answer; answer a bad one with a sentence."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                have = {name.lower() for name, _ in message["headers"]}
                more = [(name, value) for name, value in _HEADERS.items() if name not in have]
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        try:
            refusal = await self._refusal(scope)
            if refusal is None:
                await self._app(scope, receive, send_with_headers)
            elif scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
            else:
                await refusal(scope, receive, send_with_headers)
        except h11.LocalProtocolError:
            pass  # the caller broke the protocol while the answer was made; the connection is closed
        except Exception:
            self._failed.log("%d requests failed since the start; the last:", exc_info=True)

    async def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        hosts, origins = headers.getlist("host"), headers.getlist("origin")
        if len(hosts) != 1 or not self._names.has(hosts[0]):
            return PlainTextResponse(
                f"{hosts[0] if hosts else 'no Host'!s}: not a name of this monitor; monitor.hosts adds names\n", 403
            )
        if origins and (len(origins) > 1 or not _is_of(origins[0], hosts[0])):
            return PlainTextResponse("another site may not use this monitor\n", 403)
        if self._token is None or scope["path"] in OPEN_PATHS or self._token.admits(headers):
            return None
        if scope["type"] == "http" and scope["path"] == "/":
            return RedirectResponse("/login", 303)
        if "authorization" in headers:
            await self.slow_down()
        return PlainTextResponse(
            "the token of this monitor is needed: log in at /login, or send it as Authorization: Bearer TOKEN\n",
            401,
            {"WWW-Authenticate": "Bearer"},
        )

    async def slow_down(self) -> None:
        """Count and log a wrong token, and let the caller wait."""
        self._refused.log("%d wrong tokens since the start")
        await asyncio.sleep(_REFUSAL_DELAY_S)


class _Count:
    """Counts events, and logs them at a bounded rate."""

    def __init__(self, level: int) -> None:
        self._level = level
        self._count = 0
        self._logged_s = float("-inf")

    def log(self, sentence: str, *, exc_info: bool = False) -> None:
        """Count one event; `sentence` is logged with the number of events."""
        self._count += 1
        if time.monotonic() - self._logged_s > _LOG_EVERY_S:
            self._logged_s = time.monotonic()
            _log.log(self._level, "monitor: " + sentence, self._count, exc_info=exc_info)


def _is_of(origin: str, host: str) -> bool:
    """Whether an Origin belongs to a Host. The scheme may be that of a proxy in front of the monitor."""
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and not parts.path and parts.netloc.lower() == host.lower()
