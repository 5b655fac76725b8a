"""Live sources against real servers: RTSP from GStreamer (skips where it is not installed), MJPEG over http."""

from __future__ import annotations

import http.server
import io
import itertools
import os
import re
import signal
import socket
import socketserver
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager

import numpy as np
import pytest
from av.video.frame import VideoFrame
from numpy.typing import NDArray
from PIL import Image

from benchmarks.chaos.run import free_port
from pipeline.errors import SourceError
from pipeline.frames import Frame
from pipeline.sources import SourceConfig, open_source
from pipeline.sources.status import StatusView
from pipeline.sources.video import RgbConverter
from tests.pipeline.servers import RtspServer, need_rtsp_server
from tests.pipeline.videos import corners, quadrants

QUICK = SourceConfig(open_timeout_s=5, read_timeout_s=1.5)
REQUIRED = SourceConfig(open_timeout_s=5, read_timeout_s=1.5, required=True)

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def rtsp() -> Iterator[RtspServer]:
    need_rtsp_server()
    server = RtspServer()
    yield server
    server.kill()


@contextmanager
def opened(uri: str, config: SourceConfig) -> Iterator[Generator[Frame]]:
    """The frames of a source, whose connection closes at the end."""
    with closing(iter(open_source(uri, config))) as frames:
        yield frames


def take(frames: Iterator[Frame], count: int) -> list[Frame]:
    return list(itertools.islice(frames, count))


def test_rtsp_frames_carry_true_times(rtsp: RtspServer) -> None:
    source = open_source(rtsp.uri, QUICK)
    assert source.live
    assert source.frame_count is None
    assert source.name == f"127.0.0.1:{rtsp.port}/ball"
    with closing(iter(source)) as running:
        frames = take(running, 45)
        told = next(frame for frame in itertools.islice(running, 300) if frame.capture_clock == "sender")
    assert all((frame.width, frame.height) == (160, 120) for frame in frames)
    assert frames[0].capture_clock == "stream", "there is no report yet"
    assert told.lag_s is not None
    assert 0 <= told.lag_s < 1
    assert all(frame.rgb_HW3 is not None and not frame.rgb_HW3.flags.writeable for frame in frames)
    times = np.array([(frame.index, frame.pts_s, frame.capture_monotonic_ns / 1e9) for frame in frames], float)
    assert np.all(np.diff(times, axis=0) > 0)
    np.testing.assert_allclose(np.diff(times[:, 1]) / np.diff(times[:, 0]), 1 / 30, atol=2e-3)
    assert abs(time.time_ns() - frames[-1].capture_unix_ns) < 5e9


def test_frame_that_nobody_looks_at_is_never_converted(rtsp: RtspServer, monkeypatch: pytest.MonkeyPatch) -> None:
    conversions: list[object] = []
    convert = RgbConverter.rgb

    def counted(converter: RgbConverter, picture: VideoFrame) -> NDArray[np.uint8]:
        conversions.append(picture)
        return convert(converter, picture)

    monkeypatch.setattr(RgbConverter, "rgb", counted)
    with opened(rtsp.uri, QUICK) as frames:
        _, second, _ = take(frames, 3)
    assert not conversions
    assert second.rgb_HW3 is second.rgb_HW3
    assert len(conversions) == 1


def test_server_that_dies_and_returns_is_reconnected(rtsp: RtspServer, caplog: pytest.LogCaptureFixture) -> None:
    with opened(rtsp.uri, QUICK) as frames:
        before = take(frames, 10)
        rtsp.kill()
        restart = threading.Timer(1.0, rtsp.start)
        restart.start()
        after = [next(frames)]
        while after[-1].capture_monotonic_ns - before[-1].capture_monotonic_ns < 1e9:
            after.append(next(frames))
        after += take(frames, 10)
        restart.join(timeout=10)
    times = np.array([(frame.index, frame.pts_s) for frame in (*before, *after)], float)
    assert np.all(np.diff(times, axis=0) > 0)
    passed_s = (after[-1].capture_monotonic_ns - before[0].capture_monotonic_ns) / 1e9
    assert times[-1, 1] - times[0, 1] == pytest.approx(passed_s, abs=0.5)
    assert "trying again" in caplog.text


def test_camera_that_is_back_delivers_within_two_seconds(rtsp: RtspServer) -> None:
    source = open_source(rtsp.uri, QUICK)
    with closing(iter(source)) as frames:
        take(frames, 3)
        rtsp.kill()
        reachable_ns: list[int] = []

        def back() -> None:
            rtsp.start()
            reachable_ns.append(time.monotonic_ns())

        restart = threading.Timer(3.0, back)
        restart.start()
        for frame in frames:
            if reachable_ns and frame.capture_monotonic_ns > reachable_ns[0] - 1e9:
                break
        assert time.monotonic_ns() - reachable_ns[0] < 2e9
        assert source.status.view().reconnects >= 1
        restart.join(timeout=10)


def test_camera_that_is_absent_at_the_start_is_waited_for(rtsp: RtspServer) -> None:
    rtsp.kill()
    source = open_source(rtsp.uri, QUICK)
    restart = threading.Timer(2.0, rtsp.start)
    restart.start()
    frames = iter(source)
    watch = threading.Timer(1.5, lambda: views.append(source.status.view()))
    views: list[StatusView] = []
    watch.start()
    with closing(frames):
        take(frames, 3)
    restart.join(timeout=10)
    assert views[0].state == "connecting"
    assert "connection refused" in (views[0].last_error or "")
    assert source.status.view().state == "live"


def test_server_that_stays_away_is_given_up(rtsp: RtspServer) -> None:
    config = SourceConfig(open_timeout_s=2, read_timeout_s=1, reconnect_first_s=0.1, reconnect_give_up_s=1)
    with opened(rtsp.uri, config) as frames:
        next(frames)
        rtsp.process.kill()
        started_s = time.monotonic()
        with pytest.raises(SourceError, match="not back within 1 s") as caught:
            for _ in frames:
                pass
    assert caught.value.partial
    assert time.monotonic() - started_s < 5


def test_stop_ends_the_iteration_between_two_packets_and_a_silent_one_by_its_time_out(rtsp: RtspServer) -> None:
    for silent in (False, True):
        source = open_source(rtsp.uri, SourceConfig(read_timeout_s=1))
        with closing(iter(source)) as frames:
            take(frames, 3)
            if silent:
                os.kill(rtsp.process.pid, signal.SIGSTOP)
            started_s = time.monotonic()
            threading.Timer(0.1, source.stop).start()
            for _ in frames:
                pass
            assert time.monotonic() - started_s < (4.0 if silent else 1.0)


def test_silent_server_counts_as_lost(rtsp: RtspServer, caplog: pytest.LogCaptureFixture) -> None:
    with opened(rtsp.uri, SourceConfig(read_timeout_s=0.7)) as frames:
        take(frames, 3)
        os.kill(rtsp.process.pid, signal.SIGSTOP)
        wake = threading.Timer(2.0, os.kill, (rtsp.process.pid, signal.SIGCONT))
        wake.start()
        silent_since_ns = time.monotonic_ns()
        for frame in frames:
            if frame.capture_monotonic_ns - silent_since_ns > 1.9e9:
                break
        wake.join(timeout=5)
    assert "silent for 0.7 s" in caplog.text


def test_refused_connection_fails_at_once_and_hides_the_password() -> None:
    started_s = time.monotonic()
    with pytest.raises(SourceError, match=r"127\.0\.0\.1") as caught:
        list(open_source(f"rtsp://someone:secret@127.0.0.1:{free_port()}/ball", REQUIRED))
    assert time.monotonic() - started_s < 3
    assert "secret" not in str(caught.value)
    assert not caught.value.partial


def test_server_that_never_answers_fails_in_bounded_time() -> None:
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        started_s = time.monotonic()
        source = open_source(
            f"rtsp://127.0.0.1:{mute.getsockname()[1]}/ball", SourceConfig(open_timeout_s=0.5, required=True)
        )
        with pytest.raises(SourceError, match=r"within 0\.5 s"):
            list(source)
        assert time.monotonic() - started_s < 3


class _Mjpeg(http.server.BaseHTTPRequestHandler):
    """A network camera's usual stream: JPEG after JPEG in one response."""

    def do_GET(self) -> None:
        picture = io.BytesIO()
        Image.fromarray(quadrants(64, 48)).save(picture, "JPEG", quality=95)
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=next")
        self.end_headers()
        head = f"--next\r\nContent-Type: image/jpeg\r\nContent-Length: {picture.tell()}\r\n\r\n"
        try:
            for _ in range(200):
                self.wfile.write(head.encode() + picture.getvalue() + b"\r\n")
                time.sleep(0.02)
        except OSError:
            return  # the client hung up

    def log_message(self, format: str, *args: object) -> None:
        """Tests need no access log."""


@contextmanager
def mjpeg_camera() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Mjpeg) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/stream"
        server.shutdown()
        thread.join(timeout=5)


def test_mjpeg_over_http_is_live() -> None:
    with mjpeg_camera() as uri:
        source = open_source(uri, QUICK)
        assert source.live
        with closing(iter(source)) as running:
            frames = take(running, 10)
    assert [corners(frame.rgb_HW3) for frame in frames if frame.rgb_HW3 is not None] == ["rgbw"] * 10
    assert np.all(np.diff([frame.pts_s for frame in frames if frame.pts_s is not None]) > 0)


def test_times_of_mjpeg_are_those_of_receipt() -> None:
    with mjpeg_camera() as uri, opened(uri, QUICK) as frames:
        taken = take(frames, 10)
    assert {frame.capture_clock for frame in taken} == {"receipt"}
    assert {frame.lag_s for frame in taken} == {None}


@contextmanager
def answering(reply: bytes) -> Iterator[tuple[int, list[float]]]:
    """A server that gives every request the same reply; yields its port and the times of its connections."""
    asked_s: list[float] = []

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            while data := self.request.recv(65536):
                asked_s.append(time.monotonic())
                number = re.search(rb"CSeq: *(\d+)", data)
                self.request.sendall(reply.replace(b"CSEQ", number[1] if number else b"0"))

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.server_address[1], asked_s
        server.shutdown()
        thread.join(timeout=5)


UNAUTHORIZED = b'RTSP/1.0 401 Unauthorized\r\nCSeq: CSEQ\r\nWWW-Authenticate: Basic realm="cam"\r\n\r\n'
NOT_FOUND = b"RTSP/1.0 404 Not Found\r\nCSeq: CSEQ\r\n\r\n"


@pytest.mark.parametrize(
    ("scheme", "reply", "sentence"),
    [
        ("rtsp", UNAUTHORIZED, "the user name or the password was refused"),
        ("rtsp", NOT_FOUND, "no such stream"),
        ("http", b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n", "the password was refused"),
        ("https", b"this is no TLS\r\n\r\n", "no secure connection"),
        ("rtsps", b"this is no TLS\r\n\r\n", "no secure connection"),
    ],
)
def test_each_refusal_has_its_sentence_without_the_password(scheme: str, reply: bytes, sentence: str) -> None:
    with answering(reply) as (port, _), pytest.raises(SourceError, match=sentence) as caught:
        list(open_source(f"{scheme}://me:hunter2@127.0.0.1:{port}/x", REQUIRED))
    assert "hunter2" not in str(caught.value)


def test_refused_login_is_not_retried_in_a_tight_loop() -> None:
    with answering(UNAUTHORIZED) as (port, asked_s):
        source = open_source(f"rtsp://me:hunter2@127.0.0.1:{port}/x", QUICK)
        threading.Timer(3.0, source.stop).start()
        assert list(source) == []
    assert asked_s[-1] - asked_s[0] < 1.0, "one attempt, and no other within three seconds"
    assert "refused" in (source.status.view().last_error or "")


def test_silent_source_is_lost_and_says_since_when(rtsp: RtspServer) -> None:
    source = open_source(rtsp.uri, SourceConfig(read_timeout_s=1.0))
    views: list[StatusView] = []
    with closing(iter(source)) as frames:
        take(frames, 3)
        views.append(source.status.view())
        os.kill(rtsp.process.pid, signal.SIGSTOP)
        watch = threading.Timer(2.5, lambda: views.append(source.status.view()))
        watch.start()
        wake = threading.Timer(3.0, os.kill, (rtsp.process.pid, signal.SIGCONT))
        wake.start()
        silent_since_ns = time.monotonic_ns()
        for frame in frames:
            if frame.capture_monotonic_ns - silent_since_ns > 2.9e9:
                break
        wake.join(timeout=5)
    assert [view.state for view in views] == ["live", "lost"]
    assert views[1].since_unix_ns > views[0].since_unix_ns


def test_missing_camera_is_waited_for_unless_it_is_required() -> None:
    with pytest.raises(SourceError, match=r"no such device; present:"):
        list(open_source("/dev/video987", REQUIRED))
    source = open_source("/dev/video987", QUICK)
    threading.Timer(0.5, source.stop).start()
    assert list(source) == []
    assert "no such device" in (source.status.view().last_error or "")


def test_device_that_is_no_camera_is_refused() -> None:
    with pytest.raises(SourceError, match="/dev/null"):
        list(open_source("/dev/null", REQUIRED))
