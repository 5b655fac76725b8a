"""The way of packets to a recorder."""

from __future__ import annotations

import itertools
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import av
import pytest

from pipeline.frames import Frame
from pipeline.recording import Piece
from pipeline.sources import open_source, tap
from tests.pipeline.recordings import plain_video
from tests.pipeline.videos import write_video

pytestmark = pytest.mark.timeout(60)


def pieces_of(path: Path) -> tuple[list[Piece], list[Frame]]:
    source = open_source(str(path))
    pieces: list[Piece] = []
    source.tap = pieces.append
    with closing(iter(source)) as frames:
        return pieces, list(frames)


def test_nothing_is_copied_or_filtered_while_nobody_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a filter was made")

    monkeypatch.setattr(tap, "BitStreamFilterContext", refuse)
    monkeypatch.setattr(tap.StreamTap, "_converted", refuse)
    assert len(list(open_source(str(plain_video(tmp_path / "clip.mp4"))))) == 30


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_packets_are_annex_b_with_parameters_before_each_key_frame(tmp_path: Path, codec: str) -> None:
    pieces, frames = pieces_of(plain_video(tmp_path / "clip.mp4", codec=codec))
    assert [piece.frame for piece in pieces] == frames
    assert [index for index, piece in enumerate(pieces) if piece.key] == [0, 10, 20]
    for key in (0, 10, 20):
        decoder = av.CodecContext.create("h264" if codec == "libx264" else "hevc", "r")
        pictures = []
        for piece in pieces[key:]:
            assert piece.data is not None
            assert piece.data.startswith((b"\0\0\0\x01", b"\0\0\x01"))
            pictures += decoder.decode(av.Packet(piece.data))
        pictures += decoder.decode(None)
        assert len(pictures) == 30 - key, "decoding can start at each key frame"


def test_recording_that_starts_and_stops_while_the_source_runs_gets_whole_pairs(tmp_path: Path) -> None:
    source = open_source(str(plain_video(tmp_path / "clip.mp4", 60)))
    pieces: list[Piece] = []
    with closing(iter(source)) as frames:
        list(itertools.islice(frames, 5))
        source.tap = pieces.append
        list(itertools.islice(frames, 20))
        source.tap = None
        list(itertools.islice(frames, 5))
        count = len(pieces)
        list(frames)
    assert len(pieces) == count > 0
    indices = [piece.frame.index for piece in pieces if piece.frame is not None]
    assert indices == list(range(indices[0], indices[0] + len(indices)))
    assert indices[0] >= 5


def test_pieces_come_on_the_iterating_thread(tmp_path: Path) -> None:
    source = open_source(str(plain_video(tmp_path / "clip.mp4")))
    threads = set()
    source.tap = lambda piece: threads.add(threading.current_thread())
    worker = threading.Thread(target=lambda: list(source))
    worker.start()
    worker.join(30)
    assert threads == {worker}


@pytest.mark.parametrize(
    ("name", "codec", "reason"),
    [("clip.mp4", "libx264", "B-frames"), ("clip.avi", "mpeg4", "mpeg4"), ("clip.mkv", "ffv1", "ffv1")],
)
def test_packets_that_viewers_do_not_read_are_not_handed_over(
    tmp_path: Path, name: str, codec: str, reason: str
) -> None:
    pieces, frames = pieces_of(write_video(tmp_path / name, 20, codec=codec))
    assert [piece.frame for piece in pieces] == frames
    assert all(piece.data is None and reason in piece.stream.reencoded for piece in pieces)


def test_motion_jpeg_gets_the_tables_that_it_lacks(tmp_path: Path) -> None:
    import io

    from PIL import Image

    pieces, _ = pieces_of(write_video(tmp_path / "clip.avi", 3, codec="mjpeg", pix_fmt="yuvj420p"))
    for piece in pieces:
        assert piece.data is not None
        with Image.open(io.BytesIO(piece.data)) as image:
            assert image.size == (64, 48)
            image.load()
