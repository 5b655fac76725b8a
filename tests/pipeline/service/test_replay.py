"""`replay`: a recording on ZeroMQ again, and `recover`: a recording that was cut off."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from mcap.reader import SeekingReader

from pipeline.errors import SourceError
from pipeline.outputs.publisher import PublishConfig
from pipeline.outputs.recording_part import Part
from pipeline.service.recover import recover
from pipeline.service.replay import Replay, ReplayResult
from pipeline.sources.recording_file import RecordingFile
from tests.pipeline.recordings import messages_of, metadata_of
from tests.support import REPOSITORY
from xpose_client import PoseSubscriber, SourceState
from xpose_client.events import Received
from xpose_client.host import boot_id
from xpose_client.messages import (
    SCHEMA,
    PoseMessage,
    SkeletonClass,
    SkeletonMessage,
    StatusMessage,
    TrackMessage,
    encode_body,
    topic_of,
)

pytestmark = pytest.mark.timeout(60)

THEN_NS = 1_700_000_000_000_000_000
TRACK = TrackMessage(
    3, "mug", 0.75, (1.0, 2.0, 3.0, 4.0), [(None, None)], [(1.125, 2.25)], [(1.5, 2.5)], [(0.0, 0.5)],
    [(1.0, 0.0, 1.0)], [False], True,
)  # fmt: skip


def pose(index: int) -> PoseMessage:
    captured_ns = THEN_NS + index * 100_000_000
    return PoseMessage(
        SCHEMA, 5, 7 + index, "cam", 2 * index, None, index / 10, None, "another host", "sender", captured_ns, 12, None,
        0.1, captured_ns + 250_000_000, 640, 480, 1, [TRACK],
    )  # fmt: skip


def state(at_ns: int, name: str = "live") -> StatusMessage:
    return StatusMessage(
        SCHEMA, 5, "another host", "cam", name, at_ns - 10**9, at_ns, 12, 10.0, None, {"newer frame": 3}, None,
        at_ns - 10**8, "sender", None, 0.5,
    )  # fmt: skip


def write(path: Path, count: int = 20, *, ended: bool = True, backwards_at: int | None = None) -> Path:
    """Ten poses a second with their skeletons and states."""
    part = Part(path, {"xpose.recording": {"format": "1"}})
    messages: list[tuple[Any, int]] = [
        (SkeletonMessage(SCHEMA, 5, "cam", 1, THEN_NS, [SkeletonClass("mug", ["rim"], [])]), 0),
        (state(THEN_NS), 0),
    ]
    for index in range(count):
        shift_s = 0.0 if backwards_at is None or index < backwards_at else -3600.0
        messages.append((pose(index), round((index / 10 + shift_s) * 1e9)))
    if ended:
        messages.append((state(THEN_NS + count * 100_000_000, "ended"), messages[-1][1]))
    for message, after_ns in messages:
        part.write(topic_of(message), encode_body(message), THEN_NS + after_ns, 0)
        part.flush()
    part.finish()
    return path


class Listener:
    """Collects what a replay publishes, on a thread of its own."""

    def __init__(self, endpoint: str) -> None:
        self.poses: list[Received] = []
        self.times_s: list[float] = []
        self.states: list[SourceState] = []
        self.skeletons: list[SkeletonMessage] = []
        self._endpoint = endpoint
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._listen)

    def __enter__(self) -> Listener:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(10)
        assert not self._thread.is_alive()

    def _listen(self) -> None:
        with PoseSubscriber(self._endpoint) as subscriber:
            while not self._ended.is_set():
                event = subscriber.receive_event(0.05)
                if isinstance(event, Received):
                    self.poses.append(event)
                    self.times_s.append(time.monotonic())
                    self.skeletons += [found for found in [subscriber.skeleton(event.message)] if found is not None]
                elif event is not None:
                    self.states.append(event)


@pytest.fixture
def endpoint(tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/socket"


def play(path: Path, endpoint: str, **options: Any) -> tuple[Listener, ReplayResult]:
    replay = Replay(path, PublishConfig(endpoint=endpoint), **options)
    with Listener(endpoint) as listener:
        result = replay.run()
        time.sleep(0.3)
    return listener, result


def test_replay_has_fresh_stamps_the_old_intervals_and_the_mark(tmp_path: Path, endpoint: str) -> None:
    before_ns = time.time_ns()
    listener, result = play(write(tmp_path / "out.mcap"), endpoint)
    assert result.messages == 23
    assert result.damage == ""
    assert len(listener.poses) >= 15, "a subscriber that joins within half a second gets the rest"
    first, last = listener.poses[0], listener.poses[-1]
    assert last.message.frame == 38
    for received in listener.poses:
        message = received.message
        assert message.replay
        assert message.host == boot_id()
        assert message.session > before_ns
        assert message.publish_unix_ns - message.capture_unix_ns == 250_000_000, "it is as old as it was then"
        assert 0.25 <= received.age_s < 20
        assert message.tracks == [TRACK]
        assert message.frame == 2 * message.seq
    recorded_s = (last.message.seq - first.message.seq) / 10
    assert listener.times_s[-1] - listener.times_s[0] >= 0.8 * recorded_s
    assert [change.state for change in listener.states][-1] == "ended"
    assert all(change.status.replay and change.status.publish_unix_ns > before_ns for change in listener.states)
    assert all(skeleton.replay for skeleton in listener.skeletons)
    assert listener.skeletons


def test_rate_and_start_are_chosen(tmp_path: Path, endpoint: str) -> None:
    path = write(tmp_path / "out.mcap", 40)
    begun_s = time.monotonic()
    listener, result = play(path, endpoint, rate=4.0, skip_s=2.0)
    assert result.messages == 20 + 3, "skeletons and state of before come first"
    assert 0.4 <= result.duration_s < time.monotonic() - begun_s
    assert listener.poses[0].message.seq < 20
    assert listener.poses[0].message.frame >= 40
    assert listener.skeletons
    assert listener.states[0].status.beat_s == 0.125, "states come faster, and say so"


def test_rate_zero_does_not_wait(tmp_path: Path, endpoint: str) -> None:
    result = Replay(write(tmp_path / "out.mcap", 3000), PublishConfig(endpoint=endpoint), rate=0).run()
    assert result.messages == 3003
    assert result.duration_s < 30, "the recording is 300 s long"


def test_loop_begins_again_with_a_new_session_until_it_is_stopped(tmp_path: Path, endpoint: str) -> None:
    stopped = threading.Event()
    replay = Replay(
        write(tmp_path / "out.mcap", 10), PublishConfig(endpoint=endpoint), rate=10, loop=True, stopped=stopped
    )
    player = threading.Thread(target=replay.run)
    with Listener(endpoint) as listener:
        player.start()
        deadline_s = time.monotonic() + 20
        while len({received.message.session for received in listener.poses}) < 3 and time.monotonic() < deadline_s:
            time.sleep(0.02)
        stopped.set()
        player.join(10)
    sessions = [received.message.session for received in listener.poses]
    assert len(set(sessions)) >= 3
    assert sessions == sorted(sessions)
    assert any(received.restarted for received in listener.poses)


def test_replay_of_a_killed_recording_ends_its_sources(tmp_path: Path, endpoint: str) -> None:
    whole = write(tmp_path / "whole.mcap", ended=False).read_bytes()
    path = tmp_path / "cut.mcap"
    path.write_bytes(whole[: len(whole) * 2 // 3])
    listener, result = play(path, endpoint, rate=4)
    assert "cut.mcap: ends after" in result.damage
    assert listener.states[-1].state == "ended"


def test_clock_that_ran_backwards_delays_nothing(tmp_path: Path, endpoint: str) -> None:
    path = write(tmp_path / "out.mcap", 20, backwards_at=10)
    result = Replay(path, PublishConfig(endpoint=endpoint), rate=10).run()
    assert result.messages == 23
    assert result.duration_s < 10


def test_recording_without_poses_is_refused_in_a_sentence(tmp_path: Path) -> None:
    part = Part(tmp_path / "out.mcap", {})
    part.write("status/cam", encode_body(state(THEN_NS)), 0, 0)
    part.finish()
    with pytest.raises(SourceError, match=r"holds no poses to replay \(no topic poses/…; it has status/cam\)"):
        Replay(tmp_path / "out.mcap", PublishConfig(endpoint=f"ipc://{tmp_path}/socket")).run()


def test_start_behind_the_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"ends after 1\.9 s, but --from is 10"):
        Replay(write(tmp_path / "out.mcap"), PublishConfig(endpoint=f"ipc://{tmp_path}/socket"), skip_s=10).run()


def test_address_that_others_can_reach_needs_keys(tmp_path: Path) -> None:
    command = [sys.executable, "run_pipeline.py", "replay", str(write(tmp_path / "out.mcap")), "--publish", "tcp://*:0"]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=50)
    assert ended.returncode == 2
    assert "other machines can reach this address, and there are no keys" in ended.stderr


def test_command_imports_no_torch_and_ends_with_a_signal(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pipeline.cli import main\n"
        "try:\n    main(sys.argv[1:])\nfinally:\n    print('torch' in sys.modules, flush=True)\n"
    )
    path = write(tmp_path / "out.mcap", 600)
    command = [sys.executable, "-c", code, "replay", str(path), "--publish", f"ipc://{tmp_path}/socket"]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    try:
        with PoseSubscriber(f"ipc://{tmp_path}/socket") as subscriber:
            assert subscriber.receive(30) is not None
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=20)
    finally:
        process.kill()
    assert "messages published in" in output
    assert output.endswith("False\n")
    assert process.returncode == 128 + signal.SIGTERM


def test_recovered_recording_has_its_index_and_every_message(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.mcap")
    with whole.open("rb") as file:
        summary = SeekingReader(file).get_summary()
    assert summary is not None
    path = tmp_path / "cut.mcap"
    path.write_bytes(whole.read_bytes()[: summary.chunk_indexes[15].chunk_start_offset + 100])
    before = [message.data for message in RecordingFile(path).messages("poses/")]
    assert len(before) == 13, "each message has a chunk of its own here; two are no poses"
    recovered = recover(path)
    assert recovered is not None
    assert recovered.messages == len(before) + 2
    assert "cut.mcap: " in recovered.damage
    found = messages_of(path)
    assert [msgspec.msgpack.encode(message) for message in found["poses/cam"]] == before
    assert metadata_of(path) == {"xpose.recording": {"format": "1"}}
    assert recover(path) is None, "now it is whole"
    assert list(tmp_path.glob("*.part*")) == []


def test_recover_leaves_a_recording_alone_that_is_whole_or_still_written(tmp_path: Path) -> None:
    path = write(tmp_path / "whole.mcap")
    before = path.read_bytes()
    assert recover(path) is None
    assert path.read_bytes() == before
    part = Part(tmp_path / "open.mcap", {})
    part.write("status/cam", encode_body(state(THEN_NS)), 0, 0)
    part.flush()
    with pytest.raises(SourceError, match="is still being recorded"):
        recover(tmp_path / "open.mcap")
    part.finish()


def test_recovery_on_a_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.errors import OutputError
    from pipeline.service import recover as module

    whole = write(tmp_path / "whole.mcap")
    path = tmp_path / "cut.mcap"
    path.write_bytes(whole.read_bytes()[:-50])
    before = path.read_bytes()

    def full(self: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module._Copy, "finish", full)
    with pytest.raises(OutputError, match="the disk is full"):
        recover(path)
    assert path.read_bytes() == before
    assert list(tmp_path.glob("*.part*")) == []


def test_json_of_the_schema_is_that_of_the_wire(tmp_path: Path) -> None:
    with write(tmp_path / "out.mcap").open("rb") as file:
        summary = SeekingReader(file).get_summary()
    assert summary is not None
    schemas = {schema.name: schema for schema in summary.schemas.values()}
    described = json.loads(schemas["xpose.PoseMessage"].data)
    assert schemas["xpose.PoseMessage"].encoding == "jsonschema"
    assert described["type"] == "object"
    assert set(described["properties"]) == {field.name for field in msgspec.structs.fields(PoseMessage)}
