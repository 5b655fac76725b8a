"""Fetching announces the licence, leaves nothing half-written, and says what to do without a network."""

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from engines import fetch
from engines.errors import CheckpointError
from engines.fetch import Source, fetch_weights

PAYLOAD = bytes(range(256)) * 8000  # 2 MB: more than one chunk
SHA256 = hashlib.sha256(PAYLOAD).hexdigest()

pytestmark = pytest.mark.timeout(60)


class Handler(BaseHTTPRequestHandler):
    """Serves a file, a web page, or a file that breaks off."""

    def do_GET(self) -> None:
        page = self.path == "/page"
        self.send_response(200)
        self.send_header("Content-Type", "text/html" if page else "application/octet-stream")
        self.send_header("Content-Length", str(len(PAYLOAD)))
        self.end_headers()
        self.wfile.write(PAYLOAD[:1000] if self.path in ("/page", "/short") else PAYLOAD)

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{http.server_address[1]}"
        http.shutdown()
        thread.join(timeout=10)


def offer(monkeypatch: pytest.MonkeyPatch, *urls: str, sha256: str | None = SHA256) -> None:
    monkeypatch.setattr(fetch, "SOURCES", {"clip": Source("file.pt", urls, sha256)})


def test_licence_comes_first_and_progress_ends_at_the_size(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(monkeypatch, f"{server}/file")
    said: list[str] = []
    seen: list[tuple[str, int, int | None]] = []
    paths = fetch_weights("all", tmp_path, lambda *step: seen.append(step), said.append)
    assert "non-commercial" in said[0]
    assert paths == (tmp_path / "file.pt",)
    assert paths[0].read_bytes() == PAYLOAD
    assert seen[-1] == ("file.pt", len(PAYLOAD), len(PAYLOAD))
    assert len(seen) > 1
    seen.clear()
    fetch_weights("clip", tmp_path, lambda *step: seen.append(step), said.append)
    assert not seen, "a file that is there and right is not fetched again"


def test_the_next_address_is_tried(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, f"{server}/page", f"{server}/short", f"{server}/file")
    (path,) = fetch_weights("all", tmp_path, lambda *_step: None, lambda _text: None)
    assert path.read_bytes() == PAYLOAD


@pytest.mark.parametrize(
    ("page", "sha256", "words"),
    [
        ("file", "0" * 64, f"SHA-256 is {SHA256}, expected 0000"),
        ("short", SHA256, "the connection broke after 1000 of"),
        ("page", SHA256, "a web page instead of the file"),
    ],
)
def test_wrong_bytes_are_refused_and_leave_nothing(
    page: str, sha256: str, words: str, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(monkeypatch, f"{server}/{page}", sha256=sha256)
    with pytest.raises(CheckpointError, match=words):
        fetch_weights("all", tmp_path, lambda *_step: None, lambda _text: None)
    assert not list(tmp_path.iterdir())


def test_without_a_network_it_says_which_file_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, "http://127.0.0.1:9/file")  # nothing listens there
    with pytest.raises(CheckpointError, match=rf"http://127.0.0.1:9/file.* put it at {tmp_path}/file.pt"):
        fetch_weights("all", tmp_path, lambda *_step: None, lambda _text: None)


def test_unknown_targets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="allowed are all, xpose, clip"):
        fetch_weights("bert", tmp_path, lambda *_step: None, lambda _text: None)


def test_official_sources_are_the_published_ones() -> None:
    assert "13gANvGWyWApMFTAtC3ntrMgx0fOocjIa" in fetch.SOURCES["xpose"].urls[0]
    assert fetch.SOURCES["xpose"].urls[1].endswith("KwaiVGI/LivePortrait/resolve/main/liveportrait_animals/xpose.pth")
    assert fetch.SOURCES["clip"].sha256 == "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"
