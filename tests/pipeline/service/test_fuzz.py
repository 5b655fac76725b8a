"""Thousands of hostile requests: the monitor answers the next good one, nothing leaks, and nothing has changed."""

from __future__ import annotations

import json
import os
import random
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from tests.pipeline.service.watched import Camera, Watched, until, watched

PATHS = [
    "/", "/live", "/page/style.css", "/page/../monitor.py", "/sources/camera.jpg", "/sources/camera.mjpg", "/metrics",
    "/sources/%00.jpg", "/sources/" + "a/" * 500 + ".jpg", "/api/prompt", "/api/sources/add", "/api/sources/remove",
    "/login", "/%", "/%ff%fe", "/\x01", "*", "http://evil.example/", "", "/?" + "q=1&" * 1000, "//", "/healthz/..",
]  # fmt: skip
METHODS = ["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "TRACE", "CONNECT", "get", "G\x00T", "", "X" * 300]
JSONS = [
    {"prompt": "persn"}, {"prompt": ["person"]}, {"prompt": "a" * 15_000}, {"prompt": "person@/etc/passwd"},
    {"prompt": "x@../x.toml"}, {"prompt": "person", "keypoints": "a," * 300}, {"prompt": "\ud800"}, {"prompt": None},
    {"address": "/etc/passwd"}, {"address": "file:///etc/passwd"}, {"address": "-"}, {"address": "concat:/etc/passwd"},
    {"address": "\x00"}, {"address": "gopher://x"}, {"address": ""}, {"name": "none"}, {"name": "camera\x00"},
    [], {}, 1e308, "x", {"prompt": {"prompt": {}}}, None,
]  # fmt: skip


def head(rng: random.Random, host: str) -> bytes:
    """A request that may be nearly right."""
    lines = [f"{rng.choice(METHODS)} {rng.choice(PATHS)} HTTP/{rng.choice(['1.1', '1.0', '2', '9.9', 'x'])}"]
    lines += rng.choices(
        [
            f"Host: {host}", "Host: evil.example", "Host: ", "Connection: close", "Connection: keep-alive, upgrade",
            "Upgrade: websocket", "Sec-WebSocket-Key: AAAA", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Version: 99",
            f"Origin: http://{host}", "Origin: null", "Origin: http://evil.example", "Content-Length: 10",
            "Content-Length: -1", "Content-Length: 99999999999", "Transfer-Encoding: chunked",
            "Cookie: " + "a=b;" * 500,
            "Cookie: xpose_monitor_1=\xff",
            "Authorization: Basic ====", "Authorization: Bearer " + "x" * 5000,
            "X-Forwarded-Host: evil.example", "X-Forwarded-Proto: javascript", "Content-Type: application/json",
            "Range: bytes=-1", "Expect: 100-continue", "no colon at all", " folded", "\x00: \x00",
        ],
        k=rng.randrange(8),
    )  # fmt: skip
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"


def noise(rng: random.Random, host: str) -> bytes:
    return rng.randbytes(rng.randrange(2000))


def cut(rng: random.Random, host: str) -> bytes:
    whole = head(rng, host) + noise(rng, host)
    return whole[: rng.randrange(len(whole) + 1)]


def several(rng: random.Random, host: str) -> bytes:
    return b"".join(head(rng, host) for _ in range(rng.randrange(1, 5)))


def json_request(rng: random.Random, host: str) -> bytes:
    """A request to change something, from the right origin, that says nonsense."""
    body = json.dumps(rng.choice(JSONS)).encode()
    if rng.random() < 0.3:
        place = rng.randrange(len(body) + 1)
        body = body[:place] + rng.randbytes(3) + body[place:]
    lines = f"POST {rng.choice(PATHS[9:12])} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    return lines.encode() + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body


def frames(rng: random.Random, host: str) -> bytes:
    """A WebSocket that is let in, and what is no message of the page."""
    lines = (
        f"GET /live HTTP/1.1\r\nHost: {host}\r\nConnection: upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    payload = rng.choice([b'{"look": ["camera"]}', b'{"seen": "x"}', b"{", rng.randbytes(50)])
    text = bytes([0x81, 0x80 | len(payload), 0, 0, 0, 0]) + payload
    return lines.encode() + rng.choice([text, text * 5, rng.randbytes(100), bytes([0x81, 0xFF]) + b"\xff" * 12])


KINDS: list[Callable[[random.Random, str], bytes]] = [head, noise, cut, several, json_request, frames]


def hostile(count: int, host: str) -> Iterator[bytes]:
    rng = random.Random(20)
    return (rng.choice(KINDS)(rng, host) for _ in range(count))


def shoot(port: int, data: bytes) -> None:
    """Send it, say that no more comes, and read what comes back for a moment."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as caller:
        try:
            caller.sendall(data)
            caller.shutdown(socket.SHUT_WR)
            caller.settimeout(0.1)
            while caller.recv(65536):
                pass
        except OSError:
            pass


def attack(found: Watched, count: int, caplog: pytest.LogCaptureFixture) -> None:
    before = found.operations.status()
    until(lambda: found.request("/healthz")[0] == 200)
    threads, files = threading.active_count(), len(os.listdir("/proc/self/fd"))
    for data in hostile(count, found.host):
        shoot(found.port, data)
    until(lambda: b"xpose_monitor_viewers 0.0" in found.request("/metrics")[2], "the end of all viewers")
    until(lambda: len(os.listdir("/proc/self/fd")) <= files + 2, "the end of all connections")
    after = found.operations.status()
    assert after.prompts == before.prompts
    assert [source.status.source for source in after.sources] == ["camera"]
    assert threading.active_count() <= threads + 40  # Starlette's threads for requests
    frames_out = found.pipeline.metrics.frames_out("publish")
    until(lambda: found.pipeline.metrics.frames_out("publish") > frames_out, "the next frame")
    assert found.request("/healthz")[0] == 200
    assert not [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")]


@pytest.mark.timeout(120)
def test_hostile_requests_change_nothing_and_leave_nothing_behind(caplog: pytest.LogCaptureFixture) -> None:
    with watched(Camera()) as found:
        attack(found, 300, caplog)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_thousands_of_hostile_requests_change_nothing_and_leave_nothing_behind(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with watched(Camera()) as found:
        attack(found, 10_000, caplog)
