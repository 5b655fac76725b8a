"""Recordings as sources: what is wrong with a recording is one sentence, and what can be read is read."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from mcap.reader import SeekingReader
from mcap.writer import Writer
from PIL import Image

from engines.errors import PromptError
from engines.prompts import PromptClass
from engines.visual_prompts import Example
from pipeline.errors import SourceError
from pipeline.flow.recording import differences
from pipeline.frames import Frame
from pipeline.recording import PromptsRecord, prompts_of, prompts_record
from pipeline.sources import RecordingSource, SourceConfig, open_source, open_sources
from pipeline.sources.recording import Recording
from tests.pipeline.fakes import MUG, FakeEngine, FakeSource
from tests.pipeline.flow.running import make_pipeline, run
from tests.pipeline.recordings import plain_video

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording of two files of 30 frames."""
    folder = tmp_path_factory.mktemp("recording")
    pipeline = make_pipeline(record=folder / "out.mcap")
    for name in ("left", "right"):
        pipeline.add(str(plain_video(folder / f"{name}.mp4")))
    run(pipeline)
    return folder / "out.mcap"


def copy(made: Path, folder: Path, change: Callable[[bytes], bytes]) -> Path:
    path = folder / "changed.mcap"
    path.write_bytes(change(made.read_bytes()))
    return path


def read(source: object) -> tuple[list[Frame], SourceError | None]:
    """All frames of a source, and what was wrong with it."""
    assert isinstance(source, RecordingSource)
    frames: list[Frame] = []
    try:
        with closing(iter(source)) as running:
            frames.extend(running)
    except SourceError as error:
        return frames, error
    return frames, None


def test_recording_is_its_sources(made: Path) -> None:
    names = [source.name for source in open_sources(str(made))]  # whichever began first
    assert sorted(names) == ["left", "right"]
    assert [source.name for source in open_sources(f"{made}#right")] == ["right"]
    source = open_source(f"{made}#right")
    assert not source.live
    assert source.frame_count == 30
    frames, error = read(source)
    assert error is None
    assert [frame.index for frame in frames] == list(range(30))
    with pytest.raises(SourceError, match=r"holds 2 sources; give one of .*out\.mcap#\w+, .*out\.mcap#\w+"):
        open_source(str(made))
    with pytest.raises(SourceError, match=rf"out\.mcap: has no source 'up'; it has {', '.join(names)}"):
        open_source(f"{made}#up")


@pytest.mark.parametrize("share", [0.35, 0.6, 0.9])
def test_truncated_recording_gives_what_is_there(made: Path, tmp_path: Path, share: float) -> None:
    path = copy(made, tmp_path, lambda data: data[: int(len(data) * share)])
    sources = []
    with contextlib.suppress(SourceError):  # the first chunk may not be whole
        sources = open_sources(str(path))
    for source in sources:
        frames, error = read(source)
        assert error is not None
        assert error.partial == bool(frames)
        assert str(error).startswith(f"{path}: ")
        assert "what could be read is used" in str(error)


def test_damaged_chunk_is_passed_over(tmp_path: Path) -> None:
    clip = plain_video(tmp_path / "clip.mp4", 120)
    pipeline = make_pipeline(record=tmp_path / "out.mcap")
    source = open_source(str(clip))
    pipeline.add(source)
    run(pipeline, FakeEngine(delay_s=0.01))  # several flushes
    with (tmp_path / "out.mcap").open("rb") as file:
        summary = SeekingReader(file).get_summary()
    assert summary is not None
    video = next(channel.id for channel in summary.channels.values() if channel.topic == "video/clip")
    chunks = [chunk for chunk in summary.chunk_indexes if video in chunk.message_index_offsets]
    assert len(chunks) >= 2
    data = bytearray((tmp_path / "out.mcap").read_bytes())
    data[chunks[1].chunk_start_offset + chunks[1].chunk_length // 2] ^= 0xFF
    (tmp_path / "out.mcap").write_bytes(data)
    frames, error = read(open_source(str(tmp_path / "out.mcap")))
    assert error is not None
    assert "has a damaged or incomplete chunk" in str(error)
    assert 10 < len(frames) < 120
    then = {frame.index: frame for frame in open_source(str(clip))}
    for frame in frames:  # also behind the gap, no picture is garbage
        np.testing.assert_array_equal(frame.rgb_HW3, then[frame.index].rgb_HW3)


def test_recording_without_an_index_is_read(made: Path, tmp_path: Path) -> None:
    with made.open("rb") as file:
        summary = SeekingReader(file).get_summary()
    assert summary is not None
    last = summary.chunk_indexes[-1]
    end = last.chunk_start_offset + last.chunk_length
    path = copy(made, tmp_path, lambda data: data[:end])
    for source in open_sources(str(path)):
        frames, error = read(source)
        assert len(frames) == 30
        assert error is not None
        assert "without its end" in str(error)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", r"is empty \(0 bytes\)"),
        (b"not a recording at all", "is not an MCAP file"),
        (b"\x89MCAP0\r\n", "holds no pictures"),
        (b"\x89MCAP0\r\n" + bytes(range(256)), "holds no pictures"),
    ],
)
def test_what_is_no_recording_is_refused(tmp_path: Path, content: bytes, sentence: str) -> None:
    (tmp_path / "out.mcap").write_bytes(content)
    with pytest.raises(SourceError, match=rf"out\.mcap: {sentence}"):
        open_source(str(tmp_path / "out.mcap"))


def foreign(path: Path, topic: str = "/chatter", metadata: dict[str, str] | None = None) -> Path:
    with path.open("wb") as file:
        writer = Writer(file)
        writer.start()
        if metadata is not None:
            writer.add_metadata("xpose.recording", metadata)
        channel = writer.register_channel(topic, "json", writer.register_schema("Text", "jsonschema", b"{}"))
        writer.add_message(channel, 1, b"{}", 1)
        writer.finish()
    return path


def test_foreign_recording_is_refused_with_its_topics(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"holds no pictures of a recording .* its topics: /chatter$"):
        open_source(str(foreign(tmp_path / "robot.mcap")))


def test_newer_recording_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="is a recording of format 9, and this version reads up to 1"):
        open_source(str(foreign(tmp_path / "new.mcap", metadata={"format": "9"})))


def test_record_that_cannot_be_read_costs_its_frame(made: Path, tmp_path: Path) -> None:
    """A newer program may write fields of other types."""
    path = tmp_path / "copy.mcap"
    with made.open("rb") as source, path.open("wb") as file:
        writer = Writer(file)
        writer.start()
        channels: dict[str, int] = {}
        for schema, channel, message in SeekingReader(source).iter_messages(log_time_order=False):
            assert schema is not None
            if channel.topic not in channels:
                kind = writer.register_schema(schema.name, schema.encoding, schema.data)
                channels[channel.topic] = writer.register_channel(channel.topic, channel.message_encoding, kind)
            data = message.data
            if channel.topic == "frames/left" and b'"frame":7,' in data:
                data = b'{"frame":"seven"}'
            writer.add_message(channels[channel.topic], message.log_time, data, 0, message.sequence)
        writer.finish()
    frames, error = read(open_source(f"{path}#left"))
    assert [frame.index for frame in frames] == [index for index in range(30) if index != 7]
    assert error is not None
    assert "a message on frames/left cannot be read" in str(error)


def test_second_source_of_one_name_is_left_out(made: Path, tmp_path: Path) -> None:
    """Two recordings that were merged: each topic has two channels."""
    path = tmp_path / "merged.mcap"
    with path.open("wb") as file:
        writer = Writer(file)
        writer.start()
        for _ in range(2):
            channels: dict[str, int] = {}
            with made.open("rb") as source:
                for schema, channel, message in SeekingReader(source).iter_messages(log_time_order=False):
                    assert schema is not None
                    if channel.topic not in channels:
                        kind = writer.register_schema(schema.name, schema.encoding, schema.data)
                        channels[channel.topic] = writer.register_channel(channel.topic, channel.message_encoding, kind)
                    writer.add_message(channels[channel.topic], message.log_time, message.data, 0, message.sequence)
        writer.finish()
    frames, error = read(open_source(f"{path}#left"))
    assert [frame.index for frame in frames] == list(range(30))
    assert error is not None
    assert "holds two sources that write on" in str(error)


def test_stills_are_recorded_as_they_are(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Also turned ones, formats that viewers do not read, and files that cannot be read."""
    folder = tmp_path / "photos"
    folder.mkdir()
    pixels_HW3 = np.random.default_rng(1).integers(0, 256, (24, 40, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned
    Image.fromarray(pixels_HW3).save(folder / "a.jpg", exif=exif)
    Image.fromarray(pixels_HW3).save(folder / "b.bmp")
    Image.fromarray(pixels_HW3).save(folder / "c.png")
    (folder / "d.png").write_bytes(b"no picture")
    Image.fromarray(pixels_HW3).save(folder / "e.webp")
    pipeline = make_pipeline(record=tmp_path / "out.mcap")
    pipeline.add(str(folder))
    run(pipeline)
    frames, error = read(open_source(str(tmp_path / "out.mcap")))
    assert error is None
    then, failure = [], None
    try:
        then.extend(open_source(str(folder)))
    except SourceError as caught:
        failure = caught
    assert failure is not None
    assert [frame.file for frame in frames] == ["a.jpg", "b.bmp", "c.png", "d.png", "e.webp"]
    for before, after in zip(_frames_of(folder), frames, strict=True):
        assert before.still
        assert after.still
        assert before.error == after.error
        if before.rgb_HW3 is not None:
            np.testing.assert_array_equal(before.rgb_HW3, after.rgb_HW3)


def _frames_of(folder: Path) -> list[Frame]:
    frames = []
    with contextlib.suppress(SourceError):
        for frame in open_source(str(folder)):
            frames.append(frame)
    return frames


def test_source_that_hands_over_no_packets_has_messages_only(tmp_path: Path) -> None:
    run(make_pipeline(FakeSource(3), record=tmp_path / "out.mcap"))
    with pytest.raises(SourceError, match="holds no pictures"):
        open_source(str(tmp_path / "out.mcap"))


def test_own_prompts_may_be_looked_for_instead(made: Path) -> None:
    (frame, *_), _ = read(open_source(f"{made}#left"))
    assert frame.recorded is not None
    assert frame.recorded.prompts == (MUG,)
    (frame, *_), _ = read(open_source(f"{made}#left", SourceConfig(recorded_prompts=False)))
    assert frame.recorded is not None
    assert frame.recorded.prompts is None


def test_other_settings_and_weights_are_named(made: Path) -> None:
    from pipeline.config import load_config

    recording = Recording(made)
    assert differences(recording.metadata, load_config()) == ""
    changed = load_config(overrides=["engine.score_threshold=0.9", "engine.model=swin-t", "publish.beat_s=1"])
    assert differences(recording.metadata, changed) == (
        'engine.model="nano" (now "swin-t"), engine.score_threshold=null (now 0.9), other weights'
    )


def test_prompts_with_examples_are_recorded_exactly() -> None:
    rgb_HW3 = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    keypoints_K3 = np.array([(1.5, 2.25, 2), (0, 0, 0), (3.125, 4, 1)], np.float32)
    example = Example("mug", MUG.skeleton, rgb_HW3, (1.0, 2.0, 9.0, 9.5), keypoints_K3)
    prompt = PromptClass("mug", MUG.skeleton, (example,), "mean", "example")
    (again,) = prompts_of(prompts_record(4, (prompt,)))
    assert (again.name, again.skeleton, again.object_from, again.keypoints_from) == (
        "mug", MUG.skeleton, "mean", "example",
    )  # fmt: skip
    np.testing.assert_array_equal(again.examples[0].rgb_HW3, rgb_HW3)
    np.testing.assert_array_equal(again.examples[0].keypoints_K3, keypoints_K3)
    assert again.examples[0].box_xyxy == example.box_xyxy


def test_prompts_that_make_no_sense_are_an_error() -> None:
    record = prompts_record(4, (MUG,))
    broken = PromptsRecord(4, [type(record.classes[0])("mug", {"name": 3}, "text", "text", [])])
    with pytest.raises(PromptError, match="prompts 4 of the recording cannot be read"):
        prompts_of(broken)


def test_without_the_extra_the_error_says_what_to_install(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "foxglove_schemas_protobuf", None)
    with pytest.raises(SourceError, match=r"pip install 'xpose-stream\[record\]'"):
        open_source(str(made))
