"""The command line: what it accepts, refuses, leaves behind, and how it ends on signals."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import TextIO
from unittest import mock

import av
import cv2
import msgspec
import numpy as np
import pytest
import zmq

from pipeline.cli import main
from pipeline.outputs.publisher import PublishConfig, Publisher
from tests.clients.python.made import pose
from tests.pipeline.fakes import FakeEngine
from tests.pipeline.sources.test_live import mjpeg_camera
from tests.pipeline.videos import write_video
from tests.support import REPOSITORY

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def fake_engine() -> Iterator[FakeEngine]:
    engine = FakeEngine()
    with mock.patch("engines.engine.Engine", return_value=engine):
        yield engine


def call(*arguments: str) -> int:
    """Run the command line in this process and return its exit status."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert isinstance(ended.value.code, int)
    return ended.value.code


def assert_refused(
    capsys: pytest.CaptureFixture[str], sentence: str, arguments: Sequence[str], status: int = 2
) -> None:
    """One line on standard error, that says `sentence`, and the exit status."""
    assert call(*arguments) == status
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert sentence in errors[0]


@pytest.mark.usefixtures("fake_engine")
def test_run_writes_poses_and_video_and_says_where(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # on a slow machine the times are long, and the table would wrap
    poses, video = tmp_path / "out" / "poses.jsonl", tmp_path / "out" / "annotated.mp4"
    outputs = ("--poses", str(poses), "--video", str(video))
    assert call("run", "--source", "testsrc://?frames=12&size=160x120", *outputs) == 0
    assert [json.loads(line)["frame"] for line in poses.read_text().splitlines()] == list(range(12))
    with av.open(video) as container:
        assert sum(1 for _ in container.decode(video=0)) == 12
    printed = capsys.readouterr().out
    assert str(poses) in printed.replace("\n", "")
    assert str(video) in printed.replace("\n", "")
    for column in (
        "p50 ms",
        "p95 ms",
        "p99 ms",
        "dropped",
        "capture to publish",
        "decode",
        "infer",
        "track",
        "publish",
    ):
        assert column in printed


@pytest.mark.usefixtures("fake_engine")
def test_several_sources_write_one_pose_file_and_a_video_each(tmp_path: Path) -> None:
    source = "testsrc://?frames=5&size=160x120"
    assert call("run", "--source", source, "--source", source, "--video", str(tmp_path / "v.mp4")) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v.testsrc-2.mp4", "v.testsrc.mp4"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--source", "absent.mp4"], "no such file"),
        (["--source", "testsrc://?frames=2", "--prompt", "gryphon"], "gryphon"),
        (["--source", "testsrc://?frames=2", "--prompt", "person,,dog"], "empty"),
        (["--source", "testsrc://?frames=2", "--prompt", "mug@no_such.toml"], "no_such.toml"),
        (["--source", "testsrc://?frames=2", "--config", "absent.toml"], "absent.toml"),
        (
            ["--source", "testsrc://?frames=2", "--set", "flow.age=1"],
            "unknown key flow.age; nearest: flow.age_budget_s",
        ),
        (["--source", "testsrc://?frames=2", "--backend", "abacus"], "engine.backend"),
        (["--source", "testsrc://?frames=2", "--publish", "5555"], "--publish 5555"),
        (["--source", "testsrc://?frames=2", "--video", "v.gif"], "v.gif"),
        (["--source", "testsrc://?frames=2", "--poses", "/proc/version/p.jsonl"], "cannot be written"),
        (["--source", "testsrc://?frames=2", "--prompt-image", "a.png"], "--prompt-annotation"),
        (["--source", "testsrc://?frames=2", "--prompt-from", "guess"], "example, text or mean"),
    ],
)
@pytest.mark.usefixtures("fake_engine")
def test_bad_input_is_one_sentence_and_leaves_nothing(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    outputs = [] if {"--poses", "--video"} & set(arguments) else ["--poses", "p.jsonl", "--video", "v.mp4"]
    assert_refused(capsys, sentence, ["run", *arguments, *outputs])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("fake_engine")
def test_sources_that_are_no_video_or_folder_of_images_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.mp4").write_text("these are words, and no video")
    (tmp_path / "zero.mp4").touch()
    (tmp_path / "folder").mkdir()
    for name, sentence in (("text.mp4", "text.mp4"), ("zero.mp4", "0 bytes"), ("folder", "holds no image")):
        poses = tmp_path / "p.jsonl"
        assert_refused(capsys, sentence, ["run", "--source", str(tmp_path / name), "--poses", str(poses)])
        assert not poses.exists()


def test_absent_weights_say_how_to_get_them(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    source = ["--source", "testsrc://?frames=2"]
    assert_refused(capsys, "absent.pth", ["run", *source, "--weights", str(tmp_path / "absent.pth")])


@pytest.mark.usefixtures("fake_engine")
def test_port_in_use_leaves_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Publisher(PublishConfig("tcp://127.0.0.1:*")) as taken:
        arguments = ["run", "--source", "testsrc://?frames=5", "--publish", taken.endpoint]
        assert_refused(capsys, "another program", [*arguments, "--poses", str(tmp_path / "p.jsonl")])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("fake_engine")
def test_corrupt_image_is_reported_has_an_empty_line_and_the_exit_is_not_zero(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "stills"
    folder.mkdir()
    for name in ("b.png", "c.png"):
        cv2.imwrite(str(folder / name), np.full((40, 50, 3), 30, np.uint8))
    (folder / "a.png").write_bytes(b"\x89PNG broken")
    poses = tmp_path / "p.jsonl"
    assert_refused(capsys, "a.png", ["run", "--source", str(folder), "--poses", str(poses)], status=1)
    written = [json.loads(line) for line in poses.read_text().splitlines()]
    assert [(line["file"], len(line["tracks"])) for line in written] == [("a.png", 0), ("b.png", 1), ("c.png", 1)]


def test_engine_sizes_and_precisions_that_make_no_sense_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert_refused(capsys, "HEIGHTxWIDTH", ["build-engine", "--size", "800"])
    assert_refused(capsys, "engine.precision", ["build-engine", "--precision", "fp7"])
    assert_refused(capsys, "nothing to build", ["build-engine", "--weights", "random", "--backend", "eager"])


@pytest.mark.timeout(300)  # it loads and traces a network
def test_export_onnx_writes_three_files_and_names_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "nano.onnx"
    assert call("export-onnx", "--out", str(out), "--weights", "random", "--size", "64x96", "--prompt", "person") == 0
    files = [out, tmp_path / "nano.json", tmp_path / "nano.prompts.npz"]
    assert capsys.readouterr().out.split() == [str(path) for path in files]
    description = json.loads(files[1].read_text())
    assert description["inputs"]["images_BHW3"]["shape"] == [1, 64, 96, 3]
    assert len(description["prompts"]["classes"][0]["keypoints"]) == 17
    assert_refused(capsys, "--keypoints needs a --prompt", ["export-onnx", "--out", str(out), "--keypoints", "rim"])
    assert_refused(capsys, "ends in .onnx", ["export-onnx", "--out", str(tmp_path / "nano"), "--weights", "random"])


def test_doctor_reports_what_decides(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("doctor") == 0
    printed = capsys.readouterr().out
    for what in (
        "processor",
        "vector units",
        "OpenVINO",
        "NVIDIA GPU",
        "TensorRT",
        "codecs",
        "C++ compiler",
        "weights",
    ):
        assert what in printed


@pytest.mark.parametrize("json_lines", [True, False])
def test_listen_prints_messages_and_ends_after_the_count(json_lines: bool) -> None:
    with Publisher(PublishConfig("tcp://127.0.0.1:*")) as probe:
        endpoint = probe.endpoint
    publishing = start_slow_run(0.05, "--source", "testsrc://?frames=2000&size=64x48", "--publish", endpoint)
    try:
        options = ["--count", "3", *(["--json"] if json_lines else [])]
        command = [sys.executable, "run_pipeline.py", "listen", endpoint, *options]
        listened = subprocess.run(command, cwd=REPOSITORY, capture_output=True, timeout=50, check=True)
    finally:
        publishing.kill()
        publishing.communicate()
    lines = listened.stdout.decode().splitlines()
    if json_lines:
        frames = [json.loads(line)["frame"] for line in lines]
    else:
        shown = [re.fullmatch(r"testsrc frame (\d+): person 1 \(age \d+\.\d ms, missed \d+\)", line) for line in lines]
        frames = [int(match[1]) for match in shown if match]
    assert len(frames) == len(lines) == 3
    assert frames == sorted(set(frames))


def test_listen_to_another_schema_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with zmq.Context() as context, context.socket(zmq.PUB) as stranger:
        port = stranger.bind_to_random_port("tcp://127.0.0.1")
        sending, message = threading.Event(), b"poses/cam\0" + msgspec.msgpack.encode({"schema": 99})

        def send() -> None:
            while not sending.wait(0.02):
                stranger.send(message)

        thread = threading.Thread(target=send, daemon=True)
        thread.start()
        try:
            assert_refused(capsys, "schema", ["listen", f"tcp://127.0.0.1:{port}", "--count", "1"])
        finally:
            sending.set()
            thread.join(5)


@pytest.mark.parametrize("suffix", [".mp4", ".png"])
def test_file_name_that_is_not_utf8_is_published_and_written_as_escapes(
    suffix: str, fake_engine: FakeEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9" + suffix.encode())
    if suffix == ".mp4":
        shutil.copy(write_video(tmp_path / "plain.mp4", 2), path)
    else:
        cv2.imwrite(str(tmp_path / "plain.png"), np.zeros((48, 64, 3), np.uint8))
        shutil.copy(tmp_path / "plain.png", path)
    outputs = [tmp_path / os.fsdecode(b"out\xff" + end) for end in (b".jsonl", b".mp4")]
    endpoint = f"ipc://{tmp_path}/socket"
    status = call("run", "--source", str(path), "--poses", str(outputs[0]), "--video", str(outputs[1]),
                  "--publish", endpoint)  # fmt: skip
    assert status == 0, capsys.readouterr().err
    lines = [json.loads(line) for line in outputs[0].read_bytes().splitlines()]
    assert {line["source"] for line in lines} == {r"caf\xe9"}
    assert {line["file"] for line in lines} == {r"caf\xe9.png" if suffix == ".png" else None}
    assert outputs[1].exists()


@contextmanager
def publishing() -> Iterator[str]:
    """The endpoint of a publisher that sends a message every 20 ms."""
    with zmq.Context() as context, context.socket(zmq.PUB) as socket:
        port = socket.bind_to_random_port("tcp://127.0.0.1")
        ended = threading.Event()

        def send() -> None:
            while not ended.wait(0.02):
                socket.send(b"poses/cam\0" + msgspec.msgpack.encode(pose(0)))

        thread = threading.Thread(target=send, daemon=True)
        thread.start()
        try:
            yield f"tcp://127.0.0.1:{port}"
        finally:
            ended.set()
            thread.join(5)


@contextmanager
def unusable_output(kind: str) -> Iterator[TextIO | None]:
    """A standard output that is closed, full, or whose reader has gone."""
    if kind == "closed":
        yield None
        return
    if kind == "full":
        stream = TextIOWrapper(open("/dev/full", "wb", buffering=0), write_through=True)  # noqa: SIM115
    else:
        reader, writer = os.pipe()
        os.close(reader)
        stream = os.fdopen(writer, "w")
    with stream:  # its close fails where the text was not dropped
        yield stream


@pytest.mark.usefixtures("fake_engine")
@pytest.mark.parametrize("kind", ["closed", "full", "reader gone"])
def test_run_whose_standard_output_is_unusable_keeps_its_work_and_succeeds(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poses = tmp_path / "p.jsonl"
    with unusable_output(kind) as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        assert call("run", "--source", "testsrc://?frames=5&size=64x48", "--poses", str(poses)) == 0
        sys.stdout.close()
    assert poses.read_bytes().count(b"\n") == 5


@pytest.mark.parametrize(("kind", "status"), [("full", 1), ("reader gone", 0)])
@pytest.mark.parametrize("json_lines", [True, False])
def test_listen_ends_with_its_reader_and_fails_where_the_messages_are_lost(
    kind: str, status: int, json_lines: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with publishing() as endpoint, unusable_output(kind) as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        assert call("listen", endpoint, *(["--json"] if json_lines else [])) == status


@pytest.mark.parametrize("descriptor", [0, 1, 2])
def test_closed_descriptor_is_not_given_to_an_output_file(descriptor: int) -> None:
    code = "from pipeline import standard_output as s; s.prepare(); print(open('/dev/zero').fileno() > 2, flush=True)"
    code += "; import os; os._exit(os.path.samestat(os.fstat(%d), os.stat('/dev/null')))" % descriptor  # noqa: UP031
    command = f'exec {sys.executable} -c "{code}" {descriptor}>&-'
    done = subprocess.run(["sh", "-c", command], cwd=REPOSITORY, capture_output=True, text=True, timeout=20)
    assert done.returncode == 1, done.stderr
    assert done.stdout == ("" if descriptor == 1 else "True\n")


def start_slow_run(delay_s: float, *arguments: str) -> subprocess.Popen[bytes]:
    """Run the command line in a process of its own, with an inference that takes `delay_s`; wait for the first one."""
    command = [sys.executable, "-m", "tests.pipeline.slow_run", str(delay_s), "run", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"inferring\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_drains_the_pipeline_keeps_what_was_done_and_ends_within_two_seconds(
    number: signal.Signals, tmp_path: Path
) -> None:
    poses = tmp_path / "p.jsonl"
    process = start_slow_run(0.05, "--source", "testsrc://?frames=100000&size=64x48", "--poses", str(poses))
    time.sleep(0.5)
    start_s = time.monotonic()
    process.send_signal(number)
    process.communicate(timeout=10)
    assert process.returncode == 128 + number
    assert time.monotonic() - start_s < 2.0
    frames = [json.loads(line)["frame"] for line in poses.read_text().splitlines()]
    assert frames == list(range(len(frames)))
    assert len(frames) > 0
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_second_signal_after_a_second_ends_at_once_and_deletes_nothing(tmp_path: Path) -> None:
    process = start_slow_run(60.0, "--source", "testsrc://?frames=100&size=64x48", "--video", str(tmp_path / "v.mp4"))
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.communicate(timeout=1.2)  # one inference is under way and may end
    start_s = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=5)
    assert process.returncode == 128 + signal.SIGINT
    assert time.monotonic() - start_s < 1.0
    assert [path.name for path in tmp_path.iterdir()] == ["v.part.mp4"]


def test_two_signals_at_once_end_as_one_and_keep_the_output(tmp_path: Path) -> None:
    poses = tmp_path / "p.jsonl"
    process = start_slow_run(0.3, "--source", "testsrc://?frames=1000&size=64x48", "--poses", str(poses))
    time.sleep(1.0)
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.005)
    process.communicate(timeout=10)
    assert process.returncode == 128 + signal.SIGINT
    assert poses.read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.jsonl", "p.skeletons.jsonl"]


def test_live_run_that_a_signal_ends_exits_with_0(tmp_path: Path) -> None:
    poses = tmp_path / "p.jsonl"
    with mjpeg_camera() as address:
        process = start_slow_run(0.01, "--source", address, "--poses", str(poses))
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
    assert process.returncode == 0
    assert poses.read_text(), "the signal came while the camera was read"


def test_handler_of_signals_takes_no_lock() -> None:
    """It runs while the interrupted code holds every lock of the pipeline.

    The signals are raised in a process of its own, so that no library's stack or handler for signals takes part.
    """
    code = """
import signal
from pipeline.cli import _Signals
with _Signals() as signals:
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGINT)
    assert signals.first == signal.SIGTERM
"""
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, timeout=50, check=True)
