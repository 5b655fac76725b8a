"""Which addresses are files and which are cameras: servers' recordings, playlists, pipes."""

from __future__ import annotations

import functools
import http.server
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.errors import SourceError
from pipeline.sources import SourceConfig, open_source
from tests.pipeline.videos import write_video

pytestmark = pytest.mark.timeout(60)

FRAMES = 30


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Tests need no access log."""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join(timeout=5)


def write_playlist(folder: Path, *, ended: bool) -> None:
    options = {"hls_time": "1", "hls_list_size": "0"}
    write_video(folder / "list.m3u8", 3 * FRAMES, codec="libx264", options=options)
    playlist = folder / "list.m3u8"
    text = playlist.read_text()
    assert "#EXT-X-ENDLIST" in text
    if not ended:
        playlist.write_text(text.replace("#EXT-X-ENDLIST", ""))


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mp4?token=hunter2", "clip.MP4?a=1&b=%2F"])
def test_recording_on_a_server_is_a_file_with_every_frame_once(tmp_path: Path, name: str) -> None:
    write_video(tmp_path / name.partition("?")[0], FRAMES)
    with served(tmp_path) as address:
        source = open_source(f"{address}/{name}")
        assert not source.live
        assert "hunter2" not in source.name
        assert len(list(source)) == FRAMES


def test_playlist_with_an_end_marker_is_a_file(tmp_path: Path) -> None:
    write_playlist(tmp_path, ended=True)
    with served(tmp_path) as address:
        source = open_source(f"{address}/list.m3u8?session=1")
        assert not source.live
        assert len(list(source)) == 3 * FRAMES


def test_growing_playlist_is_live_also_behind_a_master_playlist(tmp_path: Path) -> None:
    write_playlist(tmp_path, ended=False)
    (tmp_path / "master.m3u8").write_text("#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1000\nlist.m3u8\n")
    with served(tmp_path) as address:
        assert open_source(f"{address}/list.m3u8").live
        assert open_source(f"{address}/master.m3u8").live
        (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXT-X-ENDLIST\n")
        assert not open_source(f"{address}/master.m3u8").live


def test_playlist_of_a_server_that_is_off_is_taken_for_live() -> None:
    assert open_source("http://127.0.0.1:9/list.m3u8", SourceConfig(open_timeout_s=1)).live


def test_named_pipe_is_a_file_that_is_read_once(tmp_path: Path) -> None:
    clip = write_video(tmp_path / "clip.ts", FRAMES, codec="libx264")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(clip.read_bytes()), daemon=True)
    writer.start()
    source = open_source(str(pipe))
    assert not source.live
    assert len(list(source)) == FRAMES
    writer.join(timeout=10)


@contextmanager
def standard_input(descriptor: int) -> Iterator[None]:
    """Make `descriptor` the standard input of this process."""
    before = os.dup(0)
    os.dup2(descriptor, 0)
    try:
        yield
    finally:
        os.dup2(before, 0)
        os.close(before)


@contextmanager
def piped(clip: Path) -> Iterator[int]:
    """The reading end of a pipe into which somebody writes the clip."""
    reading, writing = os.pipe()

    def write() -> None:
        with os.fdopen(writing, "wb") as end:
            end.write(clip.read_bytes())

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    yield reading
    writer.join(timeout=10)
    os.close(reading)


@pytest.mark.parametrize("address", ["-", "/dev/stdin"])
def test_standard_input_is_a_file(tmp_path: Path, address: str) -> None:
    clip = write_video(tmp_path / "clip.ts", FRAMES, codec="libx264")
    with piped(clip) as descriptor, standard_input(descriptor):
        source = open_source(address)
        assert not source.live
        assert len(list(source)) == FRAMES
    with clip.open("rb") as file, standard_input(file.fileno()):
        assert len(list(open_source(address))) == FRAMES


def test_process_substitution_is_a_file(tmp_path: Path) -> None:
    """A shell makes a pipe and passes its name."""
    with piped(write_video(tmp_path / "clip.ts", FRAMES, codec="libx264")) as descriptor:
        source = open_source(f"/dev/fd/{descriptor}")
        assert not source.live
        assert len(list(source)) == FRAMES


def test_file_in_shared_memory_is_a_file() -> None:
    folder = Path("/dev/shm")
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        pytest.skip("no /dev/shm")
    clip = write_video(folder / f"xpose-test-{os.getpid()}.mp4", FRAMES)
    try:
        source = open_source(str(clip))
        assert not source.live
        assert len(list(source)) == FRAMES
    finally:
        clip.unlink()


def test_empty_pipe_is_one_sentence(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(b""), daemon=True)
    writer.start()
    with pytest.raises(SourceError, match="cannot be opened"):
        list(open_source(str(pipe)))
    writer.join(timeout=10)
