"""The recorder: what reaches the disk when, in how many files, and what a slow or full disk costs."""

from __future__ import annotations

import itertools
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.detections import Detections
from pipeline.errors import ConfigError, OutputError
from pipeline.frames import Frame, FrameTracks
from pipeline.outputs import recording_part
from pipeline.outputs.recording import RecordConfig, Recorder
from pipeline.outputs.recording_pictures import PictureEncoder
from pipeline.recording import Piece, StreamRecord
from pipeline.sources.recording_file import RecordingFile
from tests.pipeline.fakes import MUG
from tests.pipeline.recordings import messages_of, metadata_of
from tests.support import REPOSITORY
from xpose_client.messages import SCHEMA, PoseMessage, SkeletonClass, SkeletonMessage

pytestmark = pytest.mark.timeout(60)

LIVE = StreamRecord(live=True, format="h264", frame_rate=30.0)
METADATA = {"xpose.recording": {"format": "1"}}


def frame(index: int, source: str = "cam") -> Frame:
    picture = np.zeros((48, 64, 3), np.uint8)
    return Frame(source, index, picture, index / 30, 10**18 + index, index, "sender", lag_s=0.1)


def packet(
    index: int, size: int = 1000, *, key: bool = False, stream: StreamRecord = LIVE, source: str = "cam"
) -> Piece:
    return Piece(stream, os.urandom(size), key, frame(index, source), 10**18 + index)


def tracked(index: int, source: str = "cam") -> FrameTracks:
    tracks: Any = None  # a recorder does not look at them
    return FrameTracks(frame(index, source), Detections.empty((MUG,), 1), tracks, 0.25)


def pose(index: int, source: str = "cam") -> PoseMessage:
    return PoseMessage(
        SCHEMA, 5, index, source, index, None, index / 30, None, "host", "sender", 10**18, 0, None, 0.1, 10**18, 64, 48,
        1, [],
    )  # fmt: skip


@pytest.fixture
def recorders() -> Iterator[Callable[..., Recorder]]:
    made: list[Recorder] = []

    def make(path: Path, **config: Any) -> Recorder:
        made.append(Recorder(path, RecordConfig(**config), METADATA))
        made[-1].start()
        return made[-1]

    yield make
    for recorder in made:
        recorder.stop()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 40
    while not condition():
        assert time.monotonic() < deadline_s, "it does not happen"
        time.sleep(0.01)


def readable(path: Path) -> list[int]:
    """Packets that can be read from a file that may have no end."""
    return [message.sequence for message in RecordingFile(path).messages("video/")]


@pytest.mark.parametrize(
    ("key", "value"),
    [("part_mb", -1), ("part_s", -0.1), ("queue_mb", 0), ("flush_s", 0), ("flush_s", 1.5), ("crf", 52)],
)
def test_setting_out_of_range_is_refused_by_name(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"record.*{key}"):
        RecordConfig(**{key: value})


def test_everything_is_read_by_the_library_with_its_schema(tmp_path: Path, recorders: Callable[..., Recorder]) -> None:
    from foxglove_schemas_protobuf.CompressedVideo_pb2 import CompressedVideo

    recorder = recorders(tmp_path / "out.mcap")
    tap = recorder.tap("cam", live=True)
    data = packet(0, key=True)
    tap(data)
    recorder.message(SkeletonMessage(SCHEMA, 5, "cam", 1, 0, [SkeletonClass("mug", ["rim"], [])]))
    recorder.tracked(tracked(0), pose(0))
    recorder.tracked(tracked(1), None)
    report = recorder.stop()
    assert (report.active, report.packets, report.dropped, report.failure) == (False, 1, {}, None)
    found = messages_of(tmp_path / "out.mcap")
    video = CompressedVideo.FromString(found["video/cam"][0])
    assert (video.data, video.format, video.frame_id) == (data.data, "h264", "cam")
    assert video.timestamp.ToNanoseconds() == 10**18
    assert found["poses/cam"][0]["host"] == "host"
    assert found["skeletons/cam"][0]["classes"][0]["name"] == "mug"
    assert found["prompts"][0]["classes"][0]["skeleton"]["keypoints"] == ["rim", "base", "handle"]
    assert [item["published"] for item in found["tracked/cam"]] == [True, False]
    assert found["tracked/cam"][0] == {"frame": 0, "prompt_id": 1, "age_s": 0.25, "published": True}
    assert len(found["annotations/cam"]) == 1
    assert metadata_of(tmp_path / "out.mcap") == METADATA


def test_recording_of_a_live_source_begins_with_a_key_frame(tmp_path: Path, recorders: Callable[..., Recorder]) -> None:
    recorder = recorders(tmp_path / "out.mcap")
    tap = recorder.tap("cam", live=True)
    for index in range(6):
        tap(packet(index, key=index == 3))
    report = recorder.stop()
    assert [record["frame"] for record in messages_of(tmp_path / "out.mcap")["frames/cam"]] == [3, 4, 5]
    assert report.dropped == {}, "what came before the first key frame was not dropped"


def test_packets_are_on_the_disk_within_a_second(tmp_path: Path, recorders: Callable[..., Recorder]) -> None:
    recorder = recorders(tmp_path / "out.mcap", flush_s=0.1)
    recorder.tap("cam", live=True)(packet(0, size=50, key=True))
    wait_until(lambda: readable(tmp_path / "out.mcap") == [0])
    assert recorder.report.active, "the recording still goes on"


def test_killed_recording_is_readable_up_to_the_last_flush(tmp_path: Path) -> None:
    code = (
        "import os, sys, time\nfrom pathlib import Path\n"
        "from pipeline.outputs.recording import Recorder, RecordConfig\n"
        "from pipeline.recording import Piece, StreamRecord\n"
        "recorder = Recorder(Path(sys.argv[1]), RecordConfig(flush_s=0.2), {})\nrecorder.start()\n"
        "tap, stream = recorder.tap('cam', live=True), StreamRecord(live=True, format='h264')\n"
        "for index in range(100000):\n"
        "    tap(Piece(stream, os.urandom(1000), index % 10 == 0, None, index))\n    time.sleep(0.01)\n"
    )
    path = tmp_path / "out.mcap"
    environment = os.environ | {"PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'clients' / 'python'}"}
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=REPOSITORY, env=environment)
    try:
        wait_until(lambda: path.exists() and path.stat().st_size > 0 and len(readable(path)) >= 30)
    finally:
        process.kill()
        process.wait(timeout=10)
    file = RecordingFile(path)
    numbers = [message.sequence for message in file.messages("video/")]
    assert numbers == list(range(len(numbers)))
    assert "without its end" in file.damage


def test_slow_disk_drops_live_packets_up_to_a_key_frame_and_counts_them(
    tmp_path: Path, recorders: Callable[..., Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck, write = threading.Event(), os.write
    slow = threading.Event()

    def held(descriptor: int, data: Any) -> int:
        if slow.is_set():
            stuck.wait(20)
        return write(descriptor, data)

    monkeypatch.setattr(recording_part.os, "write", held)
    recorder = recorders(tmp_path / "out.mcap", queue_mb=0.05, flush_s=0.05)
    tap = recorder.tap("cam", live=True)
    tap(packet(0, key=True))
    wait_until(lambda: readable(tmp_path / "out.mcap") == [0])
    slow.set()
    begun_s = time.monotonic()
    for index in range(1, 200):
        tap(packet(index, key=index % 50 == 0))
    assert time.monotonic() - begun_s < 10, "a live source waited for the disk"
    stuck.set()
    wait_until(lambda: recorder.has_room(wait=False))
    for index in range(200, 260):
        tap(packet(index, key=index % 50 == 0))
    report = recorder.stop()
    kept = [record["frame"] for record in messages_of(tmp_path / "out.mcap")["frames/cam"]]
    assert report.dropped["cam"] == 260 - len(kept) > 0
    gaps = [after for before, after in itertools.pairwise(kept) if after != before + 1]
    assert gaps
    assert all(after % 50 == 0 for after in gaps), "after a gap it goes on with a key frame"


def test_file_waits_for_a_slow_disk_and_loses_nothing(
    tmp_path: Path, recorders: Callable[..., Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write

    def slow(descriptor: int, data: Any) -> int:
        time.sleep(0.01)
        return write(descriptor, data)

    monkeypatch.setattr(recording_part.os, "write", slow)
    recorder = recorders(tmp_path / "out.mcap", queue_mb=0.05, flush_s=0.01)
    tap = recorder.tap("clip", live=False)
    stream = StreamRecord(live=False, format="h264")
    for index in range(300):
        tap(packet(index, key=index == 0, stream=stream))
    report = recorder.stop()
    assert report.packets == 300
    assert report.dropped == {}


def test_parts_begin_with_key_frames_schemas_skeletons_and_states(
    tmp_path: Path, recorders: Callable[..., Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two sources whose key frames come at different times; together the parts hold every packet once."""
    from pipeline.outputs import recording_writer

    monkeypatch.setattr(recording_writer, "_LATE_S", 0.0)
    recorder = recorders(tmp_path / "out.mcap", part_mb=0.05, flush_s=0.02)
    taps = {name: recorder.tap(name, live=True) for name in ("a", "b")}
    streams = {name: StreamRecord(live=True, format="h264") for name in taps}
    for name in taps:
        recorder.message(SkeletonMessage(SCHEMA, 5, name, 1, 0, [SkeletonClass("mug", ["rim"], [])]))
    for index in range(200):
        for name, tap in taps.items():
            key = index % 10 == (0 if name == "a" else 5)
            tap(packet(index, key=key, stream=streams[name], source=name))
            recorder.tracked(tracked(index, name), pose(index, name))
        time.sleep(0.002)
    report = recorder.stop()
    assert len(report.files) >= 3
    assert report.files[:2] == (tmp_path / "out.mcap", tmp_path / "out-2.mcap")
    frames: dict[str, list[int]] = {"a": [], "b": []}
    for path in report.files:
        found = messages_of(path)
        for name, shift in (("a", 0), ("b", 5)):
            if f"frames/{name}" not in found:
                assert path == report.files[-1], "the end came before its key frame"
                continue
            indices = [record["frame"] for record in found[f"frames/{name}"]]
            frames[name] += indices
            assert indices[0] % 10 == shift, "it begins with a key frame"
            poses = {record["frame"] for record in found[f"tracked/{name}"] if record["frame"] >= shift}
            assert poses == set(indices), "poses are where their pictures are"
            assert found[f"skeletons/{name}"][0]["prompt_id"] == 1
            assert found[f"streams/{name}"][0]["format"] == "h264"
        assert found["prompts"][0]["prompt_id"] == 1
        assert metadata_of(path) == METADATA
    assert frames["a"] == list(range(200))
    assert frames["b"] == list(range(5, 200))


def test_part_ends_at_its_age(tmp_path: Path, recorders: Callable[..., Recorder]) -> None:
    recorder = recorders(tmp_path / "out.mcap", part_s=0.2)
    tap = recorder.tap("cam", live=True)
    for index in range(60):
        tap(packet(index, key=True))
        time.sleep(0.01)
    assert len(recorder.stop().files) == 2, "while the old part waits for late poses, there is no third"


def test_existing_file_is_not_overwritten(tmp_path: Path, recorders: Callable[..., Recorder]) -> None:
    (tmp_path / "out.mcap").write_bytes(b"precious")
    recorder = recorders(tmp_path / "out.mcap")
    assert recorder.stop().files == (tmp_path / "out-2.mcap",)
    assert (tmp_path / "out.mcap").read_bytes() == b"precious"


def test_full_disk_ends_the_recording_and_leaves_what_was_flushed(
    tmp_path: Path, recorders: Callable[..., Recorder], caplog: pytest.LogCaptureFixture
) -> None:
    """A limit on the size of files makes real writes fail in the middle."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    recorder = recorders(tmp_path / "out.mcap", flush_s=0.02)
    tap = recorder.tap("cam", live=True)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, before[1]))
    try:
        for index in range(2000):
            tap(packet(index, key=index % 10 == 0))
            time.sleep(0.001)
            if not recorder.report.active:
                break
        report = recorder.stop()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert report.failure is not None
    assert "the recording ended (the file has reached the largest size that is allowed here)" in report.failure
    assert report.failure in caplog.text
    numbers = readable(tmp_path / "out.mcap")
    assert len(numbers) > 10
    assert numbers == list(range(len(numbers)))


def test_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    recorder = Recorder(tmp_path / "file" / "out.mcap", RecordConfig(), METADATA)
    with pytest.raises(OutputError, match=r"out\.mcap: cannot be created \(.+\); choose another file$"):
        recorder.start()


@pytest.mark.parametrize(("name", "reason"), [("", "is a folder"), ("out.mp4", r"must end in \.mcap")])
def test_name_that_is_no_recording_is_refused_and_nothing_is_written(tmp_path: Path, name: str, reason: str) -> None:
    folder = tmp_path / "recordings"
    folder.mkdir()
    with pytest.raises(OutputError, match=reason):
        Recorder(folder / name, RecordConfig(), METADATA).start()
    assert list(tmp_path.rglob("*")) == [folder]


def test_without_the_extra_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "foxglove_schemas_protobuf", None)
    with pytest.raises(OutputError, match=r"pip install 'xpose-stream\[record\]'"):
        Recorder(tmp_path / "out.mcap", RecordConfig(), METADATA)


def test_encoder_makes_no_b_frames_and_repeats_its_parameters() -> None:
    import av

    encoder, decoder = PictureEncoder(crf=18), av.CodecContext.create("h264", "r")
    decoder.flags |= av.codec.context.Flags.low_delay
    keys = []
    for index in range(40):
        rgb_HW3 = np.full((33, 17, 3), 5 * index, np.uint8)
        data, key = encoder.encode(rgb_HW3, key=index == 7)
        if key:
            keys.append(index)
            assert data.startswith(b"\0\0\0\x01\x67"), "a key frame begins with its sequence parameters"
        (picture,) = decoder.decode(av.Packet(data))
        assert picture.pict_type != av.video.frame.PictureType.B
        assert abs(float(picture.to_ndarray(format="rgb24")[:33, :17].mean()) - 5 * index) < 4
    assert keys == [0, 7, 30]
