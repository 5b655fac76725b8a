"""The monitor over HTTP: health, metrics, pictures, steering, and who is let in."""

import base64
import dataclasses
import http.client
import io
import json
import socket
import threading
import time
from collections.abc import Generator
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image
from websockets.exceptions import InvalidStatus

import pipeline.service
from pipeline.config import PipelineConfig
from pipeline.errors import PipelineError
from tests.pipeline.fakes import FakeEngine
from tests.pipeline.service.watched import LOCAL, Camera, Watched, until, watched

pytestmark = pytest.mark.timeout(120)

ODD = "<img src=x onerror=alert(1)>"
TOKEN = "0123456789abcdef"


@pytest.fixture(scope="module")
def running() -> Generator[Watched]:
    """A pipeline with two cameras; tests of this file that change it put it back."""
    with watched(Camera(), Camera(ODD)) as found:
        until(lambda: found.pipeline.metrics.frames_out("publish", "camera"), "the first frame")
        yield found


def test_page_and_its_files_are_served_with_a_policy_that_allows_nothing_from_elsewhere(running: Watched) -> None:
    for path, kind in (("/", "text/html"), ("/page/style.css", "text/css"), ("/page/monitor.js", "text/javascript")):
        status, headers, body = running.request(path)
        assert (status, headers["Content-Type"].partition(";")[0]) == (200, kind)
        assert body
        assert headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'self'; style-src 'self'")
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "same-origin"
        assert headers["Cache-Control"] == "no-store"
        assert headers["Server"] is None


def test_page_loads_nothing_from_elsewhere() -> None:
    folder = Path(pipeline.service.__file__).parent / "page"
    for path in folder.iterdir():
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in text, path.name
        assert "https://" not in text, path.name
        assert "innerHTML" not in text, path.name


@pytest.mark.parametrize(
    "path",
    ["/page", "/page/", "/page/../http.py", "/page/..%2fhttp.py", "/page/%2e%2e/http.py", "/page/index.html",
     "/../../etc/passwd", "//etc/passwd", "/sources", "/sources/", "/static/", "/page/style.css/", "/login",
     "/sources/none.jpg", "/sources/none.mjpg", "/sources/../camera.jpg/x", "/%00", "/page/style.css%00.js"],
)  # fmt: skip
def test_nothing_else_is_served_and_no_folder_is_listed(running: Watched, path: str) -> None:
    status, _, body = running.request(path)
    assert status == 404
    assert len(body) < 200


def test_health_and_readiness_say_why(running: Watched) -> None:
    assert running.request("/healthz")[::2] == (200, b"alive\n")
    assert running.request("/readyz")[::2] == (200, b"ready\n")


def test_pipeline_whose_engine_hangs_is_not_healthy_and_one_without_live_sources_is_not_ready() -> None:
    held, engine, camera = threading.Event(), FakeEngine(), Camera()
    engine.on_submit = lambda images: held.wait(20) and None if images == 20 else None
    with watched(camera, engine=engine, stall_s=0.3) as found:
        try:
            until(lambda: found.request("/healthz")[0] == 503, "unhealthy")
            assert found.request("/healthz")[2].startswith(b"stage infer has worked on one frame for ")
        finally:
            held.set()
        until(lambda: found.request("/healthz")[0] == 200, "healthy again")
        camera.lost = True
        until(lambda: found.request("/readyz")[0] == 503, "unready")
        assert found.request("/readyz")[2] == b"no source is live: camera is lost\n"


def test_metrics_are_in_the_format_of_prometheus(running: Watched) -> None:
    status, headers, body = running.request("/metrics")
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain; version=")
    lines = body.decode().splitlines()
    assert 'xpose_source_state{source="camera",state="live"} 1.0' in lines
    assert any(line.startswith("xpose_engine_info{") and 'model="nano"' in line for line in lines)
    assert any(line.startswith("xpose_prompt_info{") and 'classes="mug"' in line for line in lines)
    assert "xpose_monitor_viewers 0.0" in lines


def pixels(jpeg: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))


def test_picture_of_a_source_has_its_poses_and_fits_the_size_that_was_asked_for(running: Watched) -> None:
    status, headers, jpeg = running.request("/sources/camera.jpg")
    assert (status, headers["Content-Type"]) == (200, "image/jpeg")
    assert pixels(jpeg).shape == (240, 320, 3)
    assert running.request("/sources/%3Cimg%20src=x%20onerror=alert(1)%3E.jpg")[0] == 200
    with watched(Camera("a/b c"), picture_side=160) as small:
        until(lambda: small.pipeline.metrics.frames_out("publish", "a/b c"), "the first frame")
        assert pixels(small.request("/sources/a/b%20c.jpg")[2]).shape == (120, 160, 3)


def test_picture_of_a_lost_source_is_dark_and_says_so() -> None:
    camera = Camera()
    with watched(camera) as found:
        until(lambda: found.pipeline.metrics.frames_out("publish", "camera"), "the first frame")
        bright = pixels(found.request("/sources/camera.jpg")[2]).mean()
        camera.lost = True
        until(lambda: camera.status.view().state == "lost")
        until(lambda: pixels(found.request("/sources/camera.jpg")[2]).mean() < 0.6 * bright, "a dark picture")
        assert pixels(found.request("/sources/camera.jpg")[2]).max() > 200  # letters


def test_picture_of_a_source_without_any_frame_names_its_state() -> None:
    camera = Camera()
    camera.lost = True
    with watched(camera) as found:
        status, _, jpeg = found.request("/sources/camera.jpg")
        assert status == 200
        assert pixels(jpeg).max() > 200


def test_stream_brings_one_picture_after_the_other_and_ends_with_the_viewer(running: Watched) -> None:
    caller = http.client.HTTPConnection("127.0.0.1", running.port, timeout=20)
    caller.request("GET", "/sources/camera.mjpg")
    answer = caller.getresponse()
    assert answer.headers["Content-Type"].startswith("multipart/x-mixed-replace; boundary=")
    pictures = []
    while len(pictures) < 3:
        assert answer.readline().startswith(b"--xpose-picture")
        assert answer.readline() == b"Content-Type: image/jpeg\r\n"
        length = int(answer.readline().split(b":")[1])
        answer.readline()
        pictures.append(answer.read(length))
        answer.readline()
    assert len(set(pictures)) == 3
    assert b"xpose_monitor_viewers 1.0" in running.request("/metrics")[2]
    caller.close()
    until(lambda: b"xpose_monitor_viewers 0.0" in running.request("/metrics")[2], "the end of the stream")


def test_prompt_change_holds_from_the_next_frame_on_and_an_error_changes_nothing(running: Watched) -> None:
    status, _, body = running.request("/api/prompt", "POST", body={"prompt": "person, dog"})
    assert status == 200, body
    assert json.loads(body) == {"done": "Looking for person, dog from the next frame on (prompt 2)."}
    until(lambda: running.operations.newest("camera").message.prompt_id == 2, "a frame with the new prompt")
    for prompt, reason in (("persn", "persn"), ("person,,dog", "empty item"), ("", "empty item")):
        status, _, body = running.request("/api/prompt", "POST", body={"prompt": prompt})
        assert status == 400
        assert reason in json.loads(body)["error"]
        assert json.loads(body)["error"].endswith((".", "?"))
    time.sleep(0.2)
    assert running.operations.newest("camera").message.prompt_id == 2


def test_sources_are_added_and_removed_and_files_of_the_server_are_never_opened(running: Watched) -> None:
    address = "testsrc://?frames=100000&size=320x240"
    status, _, body = running.request("/api/sources/add", "POST", body={"address": address})
    assert (status, json.loads(body)) == (200, {"done": "Added testsrc."})
    until(lambda: running.pipeline.metrics.frames_out("publish", "testsrc"), "a frame of the new source")
    assert json.loads(running.request("/api/sources/remove", "POST", body={"name": "testsrc"})[2]) == {
        "done": "Removed testsrc."
    }
    assert "testsrc" not in [source.name for source in running.pipeline.sources]
    status, _, body = running.request("/api/sources/remove", "POST", body={"name": "testsrc"})
    assert status == 400
    assert "there is no source of this name" in json.loads(body)["error"]
    status, _, body = running.request("/api/sources/add", "POST", body={"address": "/etc/passwd"})
    assert status == 400
    assert "takes live addresses only" in json.loads(body)["error"]


@pytest.mark.parametrize(("steer", "allowed"), [("all", (1, 1)), ("prompts", (1, 0)), ("nothing", (0, 0))])
def test_what_is_not_allowed_is_refused(steer: str, allowed: tuple[int, int]) -> None:
    with watched(Camera(), steer=steer) as found:
        prompt = found.request("/api/prompt", "POST", body={"prompt": "dog"})[0]
        add = found.request("/api/sources/add", "POST", body={"address": "testsrc://?frames=3"})[0]
        remove = found.request("/api/sources/remove", "POST", body={"name": "camera"})[0]
        assert prompt == (200 if allowed[0] else 403)
        assert (add, remove) == ((200, 200) if allowed[1] else (403, 403))
        assert len(found.pipeline.sources) == 1


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({"Content-Type": "text/plain"}, '{"prompt": "dog"}', 415),
        ({"Content-Type": "application/json"}, "{", 400),
        ({"Content-Type": "application/json"}, '{"prompt": 3}', 400),
        ({"Content-Type": "application/json"}, '{"prompt": "dog", "file": "/etc/passwd"}', 400),
        ({"Content-Type": "application/json"}, b'"\xff"', 400),
        ({"Content-Type": "application/json"}, "[" * 10_000, 400),
        ({"Content-Type": "application/json"}, '"' + "x" * 20_000 + '"', 413),
        ({"Content-Type": "application/json", "Origin": "http://evil.example"}, '{"prompt": "dog"}', 403),
        ({"Content-Type": "application/json", "Origin": "null"}, '{"prompt": "dog"}', 403),
    ],
)
def test_request_of_another_kind_or_origin_changes_nothing(
    running: Watched, headers: dict[str, str], body: str | bytes, status: int
) -> None:
    before = running.pipeline.metrics.frames_out("publish")
    prompt_id = running.operations.status().prompts.id
    assert running.request("/api/prompt", "POST", headers, body)[0] == status
    until(lambda: running.pipeline.metrics.frames_out("publish") > before)
    assert running.operations.status().prompts.id == prompt_id


def test_host_of_another_name_is_refused_on_loopback_too(running: Watched) -> None:
    for host in ("evil.example", f"evil.example:{running.port}", "127.0.0.1.evil.example", "[::2]", ""):
        for path in ("/", "/sources/camera.jpg", "/healthz", "/metrics", "/api/prompt"):
            assert running.request(path, headers={"Host": host})[0] in (400, 403), host
    assert running.request("/", headers={"Host": f"localhost:{running.port}"})[0] == 200
    assert b" 40" in running.raw(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")[:20]
    two = b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nConnection: close\r\n\r\n"
    assert b" 40" in running.raw(two)[:20]


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://127.0.0.1", "ftp://{host}", "http://{host}/x"]
)
def test_websocket_of_another_origin_is_refused(running: Watched, origin: str) -> None:
    with pytest.raises(InvalidStatus) as refused, running.live(headers={"Origin": origin.format(host=running.host)}):
        pass
    assert refused.value.response.status_code == 403


def test_websocket_of_the_own_origin_is_let_in(running: Watched) -> None:
    for origin in (f"http://{running.host}", f"https://{running.host}"):
        with running.live(headers={"Origin": origin}) as socket:
            assert json.loads(socket.recv(20))["sources"]


@pytest.fixture
def guarded(tmp_path: Path) -> Generator[Watched]:
    path = tmp_path / "token"
    path.write_text(TOKEN)
    path.chmod(0o600)
    quick = mock.patch("pipeline.service.guard._REFUSAL_DELAY_S", 0.01)
    with quick, watched(Camera(), token_file=str(path), hosts=("cameras.example.org",)) as found:
        until(lambda: found.pipeline.metrics.frames_out("publish"))
        yield found


def test_without_the_token_nothing_is_shown_but_the_login(guarded: Watched) -> None:
    status, headers, _ = guarded.request("/")
    assert (status, headers["Location"]) == (303, "/login")
    for path in (
        "/sources/camera.jpg",
        "/sources/none.jpg",
        "/metrics",
        "/healthz",
        "/readyz",
        "/page/monitor.js",
        "/x",
    ):
        status, _, body = guarded.request(path)
        assert status == 401, path
        assert b"camera" not in body.replace(b"cameras", b"")
    assert guarded.request("/api/prompt", "POST", body={"prompt": "dog"})[0] == 401
    assert guarded.request("/api/prompt", "POST", {"Cookie": "xpose_monitor=1"}, {"prompt": "dog"})[0] == 401
    with pytest.raises(InvalidStatus), guarded.live():
        pass
    assert guarded.request("/login")[0] == 200
    assert guarded.request(f"/?token={TOKEN}")[0] == 303  # never in an address


def test_login_gives_a_cookie_that_is_not_the_token_and_opens_everything(guarded: Watched) -> None:
    form = {"Content-Type": "application/x-www-form-urlencoded", "Origin": f"http://{guarded.host}"}
    status, headers, body = guarded.request("/login", "POST", form, "token=wrong")
    assert status == 401
    assert b"not the token" in body
    assert headers["Set-Cookie"] is None
    status, headers, _ = guarded.request("/login", "POST", form, f"token={TOKEN}")
    assert (status, headers["Location"]) == (303, "/")
    cookie = headers["Set-Cookie"]
    assert TOKEN not in cookie
    assert "httponly" in cookie.lower()
    assert "samesite=strict" in cookie.lower()
    carried = {"Cookie": cookie.partition(";")[0]}
    assert guarded.request("/", headers=carried)[0] == 200
    assert guarded.request("/sources/camera.jpg", headers=carried)[0] == 200
    assert guarded.request("/api/prompt", "POST", carried, {"prompt": "dog"})[0] == 200
    with guarded.live(headers=carried) as socket:
        assert json.loads(socket.recv(20))["sources"]


def test_program_may_send_the_token_in_its_authorization(guarded: Watched) -> None:
    basic = base64.b64encode(f"anyone:{TOKEN}".encode()).decode()
    for value in (f"Bearer {TOKEN}", f"Basic {basic}"):
        assert guarded.request("/sources/camera.jpg", headers={"Authorization": value})[0] == 200
    for value in ("Bearer wrong", f"Bearer {TOKEN}x", "Basic !!!", "Basic " + base64.b64encode(b"x:y").decode(), TOKEN):
        assert guarded.request("/sources/camera.jpg", headers={"Authorization": value})[0] == 401


def test_name_of_a_proxy_is_answered_and_its_cookie_stays_on_tls(guarded: Watched) -> None:
    headers = {
        "Host": "cameras.example.org",
        "Origin": "https://cameras.example.org",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-For": "203.0.113.7",
        "Content-Type": "application/x-www-form-urlencoded",
    }
    status, answered, _ = guarded.request("/login", "POST", headers, f"token={TOKEN}")
    assert status == 303
    assert "secure" in answered["Set-Cookie"].lower()


def test_wrong_tokens_are_logged_at_a_bounded_rate(guarded: Watched, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(20):
        guarded.request("/metrics", headers={"Authorization": "Bearer wrong"})
    lines = [record.getMessage() for record in caplog.records if "wrong tokens" in record.getMessage()]
    assert lines == ["monitor: 1 wrong tokens since the start"]
    assert "Bearer" not in caplog.text


def test_request_that_is_too_long_or_too_slow_is_ended(running: Watched) -> None:
    head = b"GET / HTTP/1.1\r\nHost: localhost\r\n"
    assert b" 400 " in running.raw(head + b"X: " + b"x" * 100_000)[:20]
    with mock.patch("pipeline.service.monitor._REQUEST_S", 0.2):
        begun_s = time.monotonic()
        assert running.raw(head) == b""
        assert time.monotonic() - begun_s < 10


def test_connections_are_bounded(running: Watched) -> None:
    with mock.patch("pipeline.service.monitor._MOST_CONNECTIONS", 5), ExitStack() as opened:
        callers = [
            opened.enter_context(socket.create_connection(("127.0.0.1", running.port), timeout=10)) for _ in range(10)
        ]
        time.sleep(0.3)
        ended = 0
        for caller in callers:
            caller.settimeout(0.2)
            try:
                ended += caller.recv(1) == b""
            except TimeoutError:
                pass
            except ConnectionResetError:
                ended += 1
        assert ended >= 5
    until(lambda: running.request("/healthz")[0] == 200)


def test_monitor_ends_with_viewers_connected() -> None:
    before = set(threading.enumerate())
    with ExitStack() as opened:
        with watched(Camera()) as found:
            socket = opened.enter_context(found.live())
            socket.send('{"look": ["camera"]}')
            socket.recv(20)
        left = [thread.name for thread in set(threading.enumerate()) - before]
        assert not [name for name in left if name.startswith("monitor")]


def test_source_that_is_refused_by_the_pipeline_is_a_sentence(running: Watched) -> None:
    with mock.patch.object(running.operations, "add_source", side_effect=PipelineError("the pipeline has ended")):
        status, _, body = running.request("/api/sources/add", "POST", body={"address": "testsrc://"})
    assert (status, json.loads(body)) == (400, {"error": "The pipeline has ended."})


def test_failure_of_the_monitor_itself_is_logged_at_a_bounded_rate(
    running: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    with mock.patch("pipeline.service.health.Health.stalled", side_effect=RuntimeError("odd")):
        for _ in range(5):
            assert running.request("/healthz")[0] == 500
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == [
        "monitor: 1 requests failed since the start; the last:"
    ]
    assert running.request("/healthz")[0] == 200


def test_default_settings_have_no_monitor() -> None:
    assert PipelineConfig().monitor.address == ""
    assert dataclasses.replace(PipelineConfig().monitor, address=LOCAL).steer == "all"
