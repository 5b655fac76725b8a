"""Video files: every frame, in order, whatever the container claims; damage is said, and costs no good frame."""

from __future__ import annotations

import functools
import http.server
import json
import re
import shutil
import struct
import threading
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from pipeline.errors import SourceError
from pipeline.frames import Frame
from pipeline.sources import Source, SourceConfig, open_source
from tests.pipeline.videos import corners, noise, quadrants, write_video
from tests.support import SHARED, need_shared

MANIFEST = "data/videos/manifest_open.json"
QUICK_PIXELS = 60e6  # a clip with more is left to `benchmarks.clips`
CLIPS = [
    pytest.param(clip["file"], clip["frames"], (clip["width"], clip["height"]), id=clip["file"])
    for clip in (json.loads((SHARED / MANIFEST).read_text()) if (SHARED / MANIFEST).exists() else [])
    if clip["frames"] * clip["width"] * clip["height"] < QUICK_PIXELS
]


def read(path: Path | str, config: SourceConfig | None = None) -> tuple[list[Frame], SourceError | None]:
    """All frames, and the error at the end if there is one."""
    source = open_source(str(path), config)
    return drain(source)


def drain(source: Source) -> tuple[list[Frame], SourceError | None]:
    frames: list[Frame] = []
    try:
        for frame in source:
            frames.append(frame)
    except SourceError as error:
        return frames, error
    return frames, None


def test_manifest_of_real_clips_is_there() -> None:
    need_shared(MANIFEST)
    assert len(CLIPS) >= 10


@pytest.mark.parametrize(("name", "count", "size"), CLIPS)
def test_real_clip_yields_every_frame_in_order(name: str, count: int, size: tuple[int, int]) -> None:
    path = need_shared(f"data/videos/{name}")
    source = open_source(str(path))
    assert source.name == path.stem
    assert not source.live
    seen, last_pts_s = 0, -1.0
    for frame in source:
        assert frame.index == seen
        assert frame.pts_s is not None
        assert frame.pts_s > last_pts_s
        assert (frame.width, frame.height) == size
        seen, last_pts_s = seen + 1, frame.pts_s
    assert seen == count


def test_frame_carries_read_only_pixels_and_both_clocks(tmp_path: Path) -> None:
    frames, error = read(write_video(tmp_path / "clip.mp4", 3))
    assert error is None
    assert all(frame.rgb_HW3 is not None and not frame.rgb_HW3.flags.writeable for frame in frames)
    assert all(frame.rgb_HW3 is not None and frame.rgb_HW3.flags.c_contiguous for frame in frames)
    assert {frame.capture_clock for frame in frames} == {"file"}
    assert [frame.source for frame in frames] == ["clip"] * 3
    stamps = [(frame.capture_unix_ns, frame.capture_monotonic_ns) for frame in frames]
    assert stamps == sorted(stamps)
    offsets_ns = [unix_ns - monotonic_ns for unix_ns, monotonic_ns in stamps]
    assert max(offsets_ns) - min(offsets_ns) < 1e9


@pytest.mark.parametrize(
    ("degrees", "hflip", "seen"),
    [
        (0, False, "rgbw"),
        (90, False, "gwrb"),
        (180, False, "wbgr"),
        (270, False, "brwg"),
        (0, True, "grwb"),
        (90, True, "wgbr"),
        (180, True, "bwrg"),
        (270, True, "rbgw"),
    ],
)
def test_display_matrix_turns_the_picture_upright(tmp_path: Path, degrees: int, hflip: bool, seen: str) -> None:
    """Counter-clockwise, by hand: rg over bw turned by 90 degrees is gw over rb."""
    frames, _ = read(write_video(tmp_path / "turned.mp4", 2, rotation=degrees, hflip=hflip))
    assert frames[0].rgb_HW3 is not None
    assert corners(frames[0].rgb_HW3) == seen
    assert (frames[0].width, frames[0].height) == ((48, 64) if degrees % 180 else (64, 48))


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [
        ("yuv444.mp4", "libx264", "yuv444p"),
        ("full_range.avi", "mjpeg", "yuvj420p"),
        ("ten_bit.mp4", "libx264", "yuv422p10le"),
        ("sixteen_bit.mkv", "ffv1", "gbrp16le"),
        ("alpha.mov", "png", "rgba"),
        ("alpha_yuv.mkv", "ffv1", "yuva420p"),
        ("vp8.webm", "libvpx", "yuv420p"),
    ],
)
def test_odd_pixel_format_keeps_its_colours(tmp_path: Path, name: str, codec: str, pix_fmt: str) -> None:
    frames, error = read(write_video(tmp_path / name, 5, codec=codec, pix_fmt=pix_fmt))
    assert error is None
    assert [corners(frame.rgb_HW3) for frame in frames if frame.rgb_HW3 is not None] == ["rgbw"] * 5


@pytest.mark.parametrize(("name", "codec", "pix_fmt"), [("a.mkv", "ffv1", "gray16le"), ("b.mp4", "mpeg4", "yuv420p")])
def test_grey_video_comes_as_equal_red_green_and_blue(tmp_path: Path, name: str, codec: str, pix_fmt: str) -> None:
    ramp_HW3 = np.repeat(np.linspace(20, 235, 64 * 48).astype(np.uint8).reshape(48, 64, 1), 3, axis=2)
    frames, _ = read(write_video(tmp_path / name, 2, codec=codec, pix_fmt=pix_fmt, picture=lambda _: ramp_HW3))
    assert frames[0].rgb_HW3 is not None
    np.testing.assert_allclose(frames[0].rgb_HW3.astype(int), ramp_HW3, atol=8)


def test_palette_video_is_looked_up(tmp_path: Path) -> None:
    path = tmp_path / "moving.gif"
    stills = [Image.fromarray(quadrants(64, 48, shade=60 * index)) for index in range(3)]
    stills[0].save(path, save_all=True, append_images=stills[1:], duration=100)
    frames, error = read(path)
    assert error is None
    assert [corners(frame.rgb_HW3) for frame in frames if frame.rgb_HW3 is not None] == ["rgbw"] * 3


def test_variable_frame_rate_keeps_its_own_times(tmp_path: Path) -> None:
    pts = [0, 1, 2, 10, 11, 40, 41, 42, 43, 100]
    frames, _ = read(write_video(tmp_path / "vfr.mkv", 10, codec="libx264", pts=pts))
    np.testing.assert_allclose(
        [frame.pts_s for frame in frames if frame.pts_s is not None], np.array(pts) / 25, atol=1e-3
    )


def test_size_that_changes_midway_is_followed_and_time_goes_on(tmp_path: Path) -> None:
    small = write_video(tmp_path / "small.ts", 8, codec="libx264", size=(64, 48))
    large = write_video(tmp_path / "large.ts", 6, codec="libx264", size=(96, 80))
    both = tmp_path / "both.ts"
    both.write_bytes(small.read_bytes() + large.read_bytes())
    frames, _ = read(both)
    assert [(frame.width, frame.height) for frame in frames] == [(64, 48)] * 8 + [(96, 80)] * 6
    assert np.all(np.diff([frame.pts_s for frame in frames if frame.pts_s is not None]) > 0)


@pytest.mark.parametrize("claimed", [1, 7, 5000])
def test_frame_count_of_the_container_is_not_believed(tmp_path: Path, claimed: int) -> None:
    path = write_video(tmp_path / "liar.avi", 12)
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, data.index(b"avih") + 8 + 16, claimed)
    struct.pack_into("<I", data, data.index(b"strh") + 8 + 32, claimed)
    path.write_bytes(data)
    frames, error = read(path)
    assert error is None
    assert len(frames) == 12


def test_stream_without_times_gets_nominal_ones(tmp_path: Path) -> None:
    frames, error = read(write_video(tmp_path / "raw.m4v", 10))
    assert error is None
    assert len(frames) == 10
    steps_s = np.diff([frame.pts_s for frame in frames if frame.pts_s is not None])
    np.testing.assert_allclose(steps_s, 1 / 25, atol=2e-3)


@pytest.mark.parametrize("second_size", [(64, 48), (96, 64)])
def test_joined_transport_streams_are_whole_and_time_goes_on(tmp_path: Path, second_size: tuple[int, int]) -> None:
    first = write_video(tmp_path / "a.ts", 10, codec="libx264").read_bytes()
    second = write_video(tmp_path / "b.ts", 10, codec="libx264", size=second_size).read_bytes()
    (tmp_path / "joined.ts").write_bytes(first + second + first)
    frames, error = read(tmp_path / "joined.ts")
    assert error is None
    assert len(frames) == 30
    np.testing.assert_allclose(np.diff([frame.pts_s or 0.0 for frame in frames]), 1 / 25, atol=1e-3)


def test_lost_packet_in_a_transport_stream_is_reported(tmp_path: Path) -> None:
    data = write_video(tmp_path / "a.ts", 40, codec="libx264", picture=noise).read_bytes()
    middle = len(data) // 188 // 2 * 188
    (tmp_path / "lost.ts").write_bytes(data[:middle] + data[middle + 188 :])
    _, error = read(tmp_path / "lost.ts")
    assert error is not None
    assert error.partial


@pytest.mark.parametrize(
    ("name", "codec", "rate"),
    [("raw.h264", "libx264", 10), ("raw.h264", "libx264", 50), ("raw.m2v", "mpeg2video", 30)],
)
def test_raw_stream_has_the_rate_that_it_states(tmp_path: Path, name: str, codec: str, rate: int) -> None:
    source = open_source(str(write_video(tmp_path / name, 8, codec=codec, rate=rate)), SourceConfig(rate=7.0))
    frames, error = drain(source)
    assert error is None
    assert source.fps == rate
    np.testing.assert_allclose([frame.pts_s or 0.0 for frame in frames], np.arange(8) / rate, atol=1e-6)
    assert {frame.source_pts_s for frame in frames} == {None}


@pytest.mark.parametrize("rate", [None, 5.0])
def test_raw_stream_that_states_no_rate_has_the_one_of_the_config(tmp_path: Path, rate: float | None) -> None:
    path = write_video(tmp_path / "raw.mjpeg", 8, codec="mjpeg", pix_fmt="yuvj420p")
    frames, error = read(path, SourceConfig() if rate is None else SourceConfig(rate=rate))
    assert error is None
    np.testing.assert_allclose([frame.pts_s or 0.0 for frame in frames], np.arange(8) / (rate or 25.0), atol=1e-6)
    assert {frame.source_pts_s for frame in frames} == {None}


def test_options_that_a_file_does_not_use_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = str(write_video(tmp_path / "clip.mp4", 1))
    open_source(path)
    assert not caplog.text
    open_source(path, SourceConfig(options={"framerate": "5", "b": "1"}))
    assert "source.options b, framerate: not used" in caplog.text


def test_file_name_with_signs_that_mean_something_to_ffmpeg(tmp_path: Path) -> None:
    path = tmp_path / "a:b %03d?,=é.mp4"
    shutil.copy(write_video(tmp_path / "plain.mp4", 4), path)
    frames, error = read(path)
    assert error is None
    assert len(frames) == 4


def test_name_comes_from_the_file_or_the_config(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", 1)
    source = open_source(str(path))
    assert source.name == "clip"
    source = open_source(f"file://{path}", SourceConfig(name="door"))
    assert [frame.source for frame in source] == ["door"]


def test_stop_from_another_thread_ends_the_iteration(tmp_path: Path) -> None:
    source = open_source(str(write_video(tmp_path / "clip.mp4", 50)))
    frames = iter(source)
    next(frames)
    stopper = threading.Thread(target=source.stop)
    stopper.start()
    stopper.join(timeout=5)
    assert list(frames) == []


def _missing(folder: Path) -> Path:
    return folder / "missing.mp4"


def _empty(folder: Path) -> Path:
    path = folder / "empty.mp4"
    path.touch()
    return path


def _text(folder: Path) -> Path:
    path = folder / "text.mp4"
    path.write_text("To be, or not to be, that is the question.\n" * 50)
    return path


def _sound(folder: Path) -> Path:
    path = folder / "sound.wav"
    path.write_bytes(
        b"RIFF\x24\x08\x00\x00WAVEfmt \x10\0\0\0\x01\0\x01\0\x40\x1f\0\0\x80\x3e\0\0\x02\0\x10\0data\0\x08\0\0"
    )
    path.write_bytes(path.read_bytes() + bytes(2048))
    return path


def _headless(folder: Path) -> Path:
    path = write_video(folder / "headless.mp4", 50)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_missing, "no such file"),
        (_empty, "0 bytes"),
        (_text, "cannot be opened as video"),
        (_sound, "no video stream"),
        (_headless, "bytes before the end"),
    ],
)
def test_what_is_no_video_is_refused_in_one_sentence(tmp_path: Path, make: object, words: str) -> None:
    assert callable(make)
    path = make(tmp_path)
    with pytest.raises(SourceError, match=words) as caught:
        list(open_source(str(path)))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not caught.value.partial


@pytest.mark.parametrize("name", ["cut.mkv", "cut.avi", "cut.mp4"])
@pytest.mark.parametrize("fraction", [0.3, 0.5, 0.9])
def test_video_that_breaks_off_keeps_its_frames_and_says_where(tmp_path: Path, name: str, fraction: float) -> None:
    options = {"movflags": "faststart"} if name.endswith("mp4") else {}
    path = write_video(tmp_path / name, 40, picture=noise, options=options)
    whole, _ = read(path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * fraction)])
    frames, error = read(path)
    assert error is not None
    assert error.partial
    assert 0 < len(frames) < 40
    assert f"the {len(frames)} frames" in str(error)
    assert re.search(r"(near \d\.\d\d s|after \d+ frames)", str(error))
    for frame, original in zip(frames[:-1], whole, strict=False):
        np.testing.assert_array_equal(frame.rgb_HW3, original.rgb_HW3)


def test_damage_in_the_middle_costs_only_the_frames_that_it_hit(tmp_path: Path) -> None:
    path = write_video(tmp_path / "hit.avi", 40, codec="mjpeg", pix_fmt="yuvj420p", picture=noise)
    data = bytearray(path.read_bytes())
    start = [index for index in range(len(data)) if data[index : index + 4] == b"00dc"][15] + 8
    size = int.from_bytes(data[start - 4 : start], "little")  # of this picture: the encoder's threads change it
    data[start : start + size] = bytes(size)
    path.write_bytes(data)
    frames, error = read(path)
    assert len(frames) == 39
    assert error is not None
    assert error.partial
    assert re.search(r"near 0\.[56]\d s", str(error))


def test_recording_on_a_server_loses_nothing_and_its_end_is_the_end(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", 30)
    handler = functools.partial(_QuietHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            frames, error = read(f"http://127.0.0.1:{server.server_port}/clip.mp4")
        finally:
            server.shutdown()
            thread.join(timeout=5)
    assert error is None
    assert [frame.index for frame in frames] == list(range(30))


class _QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Tests need no access log."""


def test_unknown_scheme_is_refused_with_the_known_ones() -> None:
    with pytest.raises(SourceError, match=r"gopher://.*rtsp://.*testsrc://"):
        open_source("gopher://host/clip")


def test_memory_is_flat_over_ten_thousand_frames(tmp_path: Path) -> None:
    """A leak of one picture (9 kB as RGB, 5 kB as decoded) per frame would show as 40 MB or more."""
    process = psutil.Process()
    path = write_video(tmp_path / "long.mkv", 10_000)
    after_warm_up = 0
    source = open_source(str(path))
    for frame in source:
        if frame.index == 1_000:
            after_warm_up = process.memory_info().rss
    assert frame.index == 9_999
    assert process.memory_info().rss - after_warm_up < 10e6
