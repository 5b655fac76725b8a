"""The commands `control` and `keys`, and `run` with both."""

import stat
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import cv2
import msgspec
import numpy as np
import pytest

from pipeline.cli import main
from pipeline.config import PipelineConfig
from pipeline.keys import KeysConfig, make_keys, revoke
from pipeline.service.config import ControlConfig
from pipeline.service.control import ControlServer
from tests.pipeline.fakes import FakeEngine, FakeSource
from tests.pipeline.flow.running import END_S
from tests.pipeline.service.running import FACTS, camera, operated, until
from tests.pipeline.service.test_control import annotation, picture
from xpose_client import Control, NoAnswerError, PoseSubscriber

pytestmark = pytest.mark.timeout(90)


@contextmanager
def steered(tmp_path: Path, keys: Path | None = None, sources: Sequence[FakeSource] = ()) -> Iterator[str]:
    """A running pipeline with these sources, by default `cam`, and a control socket; its address."""
    config = PipelineConfig(keys=KeysConfig("" if keys is None else str(keys)))
    endpoint = f"ipc://{tmp_path}/control"
    with (
        operated(*(sources or [camera()]), config=config) as (operations, pipeline),
        ControlServer(ControlConfig(endpoint), pipeline.keys) as server,
    ):
        server.serve(operations)
        names = [source.name for source in pipeline.sources]
        until(lambda: all(pipeline.metrics.frames_out("publish", name) > 0 for name in names))
        yield endpoint


@pytest.fixture
def fake_engine() -> Generator[FakeEngine]:
    engine = FakeEngine()
    with (
        mock.patch("engines.engine.Engine", return_value=engine),
        mock.patch("pipeline.service.operations.describe", return_value=FACTS),
    ):
        yield engine


class Shell:
    """Runs commands of the command line in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def succeed(self, *arguments: str) -> str:
        """Standard output of a command that succeeds and says nothing on standard error."""
        status, out, error = self._call(*arguments)
        assert (status, error) == (0, "")
        return out

    def fail(self, *arguments: str) -> str:
        """The one sentence of a command that fails."""
        status, out, error = self._call(*arguments)
        assert (status, out) == (2, "")
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        return error

    def _call(self, *arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        assert isinstance(ended.value.code, int)
        return ended.value.code, *self._capsys.readouterr()


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


def test_each_command_says_what_was_done(tmp_path: Path, shell: Shell) -> None:
    with steered(tmp_path) as endpoint:
        shown = shell.succeed("control", endpoint, "status")
        for part in (
            "nano on eager, fp32, 64 x 64 px",
            "prompt 1: mug (3 keypoints)",
            "score above 0.48",
            "cam",
            "live",
        ):
            assert part in shown
        out = shell.succeed("control", endpoint, "prompt", "cup,person", "--keypoints", "rim,base")
        assert out.startswith("prompt 2: cup (2 keypoints), person (2 keypoints); from frame ")
        assert out.endswith(" of cam\n")
        out = shell.succeed("control", endpoint, "thresholds", "--score", "0.6")
        assert out.startswith("score above 0.6, doubtful above 0.2, NMS IoU 0.5; from frame ")
        out = shell.succeed("control", endpoint, "add", "rtsp://127.0.0.1:9/x", "--name", "door")
        assert out.startswith("added door at ")
        out = shell.succeed("control", endpoint, "add", "rtsp://127.0.0.1:9/x", "--name", "door")
        assert out.startswith("added as door-2: door is taken; from ")
        assert shell.succeed("control", endpoint, "remove", "door").startswith("removed door at ")
        path = tmp_path / "cam.jpg"
        out = shell.succeed("control", endpoint, "snapshot", "cam", "--out", str(path))
        assert out.startswith(f"{path}: frame ")
        assert cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR) is not None
        answer = msgspec.json.decode(shell.succeed("control", endpoint, "status", "--json"))
        assert [entry["name"] for entry in answer["prompts"]["classes"]] == ["cup", "person"]
        assert shell.succeed("control", endpoint, "stop").startswith("stopping since ")


def test_thresholds_command_says_where_doubtful_followed_the_score(tmp_path: Path, shell: Shell) -> None:
    """A score below `doubtful` lowers it too, and a doubtful score above the score is cut."""
    with steered(tmp_path) as endpoint:
        for options, shown, follows in (
            (("--score", "0.6"), "score above 0.6, doubtful above 0.2, NMS IoU 0.5", ""),
            (("--score", "0.1"), "score above 0.1, doubtful above 0.1,", "followed the score, from 0.2 to 0.1: it is"),
            (("--score", "0.5"), "score above 0.5, doubtful above 0.2,", "followed the score, from 0.1 to 0.2: it is"),
            (("--doubtful", "0.9"), "score above 0.5, doubtful above 0.5,", "doubtful is 0.5 and not 0.9: it is never"),
            (("--doubtful", "0.3"), "score above 0.5, doubtful above 0.3,", ""),
            (("--nms-iou", "0.7"), "score above 0.5, doubtful above 0.3, NMS IoU 0.7", ""),
        ):
            first, _, second = shell.succeed("control", endpoint, "thresholds", *options).partition("\n")
            assert first.startswith(shown)
            assert follows in second
            assert bool(follows) == bool(second)


def test_status_shows_each_error_on_a_line_of_its_own_under_the_table(tmp_path: Path, shell: Shell) -> None:
    error = f"rtsp://[bold]/a: {'this is long, ' * 20}\nand has a second line"
    door, gate = camera("door"), camera("gate")
    door.status.warn(error)
    gate.status.warn("the wrong password")
    with steered(tmp_path, sources=(camera(), door, gate)) as endpoint:
        lines = shell.succeed("control", endpoint, "status").splitlines()
    assert lines[-2:] == [f"door: {' '.join(error.split())}", "gate: the wrong password"]
    assert [line.split()[:2] for line in lines[-6:-2]] == [
        ["source", "state"],
        *([n, "live"] for n in ("cam", "door", "gate")),
    ]


def test_example_images_and_keypoint_lists_are_read_where_the_command_runs(tmp_path: Path, shell: Shell) -> None:
    annotation(tmp_path)
    (tmp_path / "mug.png").write_bytes(picture())
    (tmp_path / "own.toml").write_text('name = "cup"\nkeypoints = ["rim", "base"]\n')
    example = ("--prompt-image", str(tmp_path / "mug.png"), "--prompt-annotation", str(tmp_path / "mug.json"))
    with steered(tmp_path) as endpoint:
        out = shell.succeed("control", endpoint, "prompt", f"mug,cup@{tmp_path}/own.toml", *example)
        assert "mug (3 keypoints), cup (2 keypoints)" in out
        answer = msgspec.json.decode(shell.succeed("control", endpoint, "status", "--json"))
        assert [entry["examples"] for entry in answer["prompts"]["classes"]] == [1, 0]


def test_refusals_are_one_sentence(tmp_path: Path, shell: Shell) -> None:
    absent, image = str(tmp_path / "absent"), str(tmp_path / "mug.png")
    annotation(tmp_path)
    with steered(tmp_path) as endpoint:
        for arguments, sentence in (
            (("prompt", "gizmo"), "no keypoint list is known for 'gizmo'"),
            (("prompt", "gizmo" * 20_000), f"no keypoint list is known for '{'gizmo' * 8}…'. Choose one with"),
            (("prompt", f"cup@{absent}.toml"), f"cannot read the skeleton file {absent}.toml: No such file"),
            (("prompt", "mug", "--prompt-image", image), "1 --prompt-image with 0 --prompt-annotation"),
            (("prompt", "mug", "--prompt-image", image, "--prompt-annotation", absent), "cannot read the annotation"),
            (("add", "/etc/passwd"), "is a file, and a running pipeline takes live addresses only"),
            (("remove", "z"), "z: there is no source of this name; the sources are cam"),
            (("thresholds",), "nothing to change; give --score, --doubtful or --nms-iou"),
            (("thresholds", "--nms-iou", "3"), "nms_iou is 3.0, allowed is 0 to 1"),
            (("snapshot", "cam", "--out", absent + "/x.jpg"), "cannot be written (No such file or directory)"),
        ):
            assert sentence in shell.fail("control", endpoint, *arguments)
    assert "no answer within 0.2 s; check that" in shell.fail("control", endpoint, "status", "--timeout", "0.2")
    assert "is not a ZeroMQ address" in shell.fail("control", "nonsense", "status")


def test_run_without_sources_waits_for_them_until_it_is_told_to_stop(tmp_path: Path, fake_engine: FakeEngine) -> None:
    endpoint, publish = f"ipc://{tmp_path}/control", f"ipc://{tmp_path}/poses"
    keys = tmp_path / "keys"
    make_keys(keys, ["robot"])
    seen: list[object] = []

    def steer() -> None:
        with (
            Control(endpoint, keys=keys / "robot.key", timeout_s=60) as control,
            PoseSubscriber(publish, keys=keys / "robot.key") as subscriber,
        ):
            seen.append([report.status.source for report in control.status().sources])
            control.add_source("testsrc://?size=64x48&frames=100000", "demo")
            received = subscriber.receive(60)
            seen.append(received and received.message.source)
            control.stop()

    thread = threading.Thread(target=steer)
    thread.start()
    arguments = ["--control", endpoint, "--publish", publish, "--keys", str(keys), "--prompt", "person"]
    with pytest.raises(SystemExit) as ended:
        main(["run", *arguments])
    thread.join(END_S)
    assert ended.value.code == 0
    assert seen == [[], "demo"]


def test_run_of_files_ends_with_them_although_it_could_be_steered(tmp_path: Path, fake_engine: FakeEngine) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["run", "--source", "testsrc://?size=64x48&frames=5", "--control", f"ipc://{tmp_path}/control"])
    assert ended.value.code == 0
    assert fake_engine.images == 5


def test_run_without_sources_and_without_a_way_to_add_any_is_refused(shell: Shell) -> None:
    assert "there is no source; give --source, or --control or --monitor to add some" in shell.fail("run")


@pytest.mark.parametrize("option", ["--control", "--publish"])
def test_run_on_an_address_that_others_can_reach_needs_keys(option: str, shell: Shell) -> None:
    sentence = shell.fail("run", "--source", "testsrc://", option, "tcp://*:5999")
    assert f"{option} tcp://*:5999: other machines can reach this address, and there are no keys; make some" in sentence
    assert ("publish.without_keys" in sentence) == (option == "--publish")


def test_keys_command_makes_adds_and_revokes(tmp_path: Path, shell: Shell) -> None:
    folder = tmp_path / "keys"
    made = shell.succeed("keys", str(folder), "--client", "robot", "--client", "wall").split()
    assert {Path(path).name for path in made} == {"server.key", "allowed_clients", "robot.key", "wall.key"}
    assert {stat.S_IMODE(Path(path).stat().st_mode) for path in made} == {0o600}
    assert shell.succeed("keys", str(folder), "--client", "third") == f"{folder}/third.key\n"
    (folder / "wall.key").unlink()
    assert shell.succeed("keys", str(folder)).splitlines() == [
        f"{folder}: is complete; allowed clients and their key files:",
        f"robot: {folder}/robot.key",
        "wall: its key file is no longer in this folder",
        f"third: {folder}/third.key",
    ]
    assert "--client robot: has keys already" in shell.fail("keys", str(folder), "--client", "robot")
    assert shell.succeed("keys", str(folder), "--revoke", "robot") == "revoked: robot\n"
    assert "--revoke robot: is not on the list; its clients are wall, third" in shell.fail(
        "keys", str(folder), "--revoke", "robot"
    )


def test_keys_command_says_that_a_folder_without_clients_is_complete(tmp_path: Path, shell: Shell) -> None:
    shell.succeed("keys", str(tmp_path / "keys"))
    said = shell.succeed("keys", str(tmp_path / "keys"))
    assert said == f"{tmp_path}/keys: is complete; no client is allowed yet, make keys with --client NAME\n"


def test_control_lets_in_allowed_clients_and_cuts_off_revoked_ones(tmp_path: Path, shell: Shell) -> None:
    folder = tmp_path / "keys"
    make_keys(folder, ["robot", "wall"])
    make_keys(tmp_path / "other", ["robot"])
    with (
        steered(tmp_path, folder) as endpoint,
        Control(endpoint, keys=folder / "robot.key", timeout_s=END_S) as robot,
        Control(endpoint, keys=folder / "wall.key", timeout_s=END_S) as wall,
    ):
        assert robot.status().refused == 0
        for wrong in (None, tmp_path / "other" / "robot.key"):
            with Control(endpoint, keys=wrong, timeout_s=0.5) as stranger, pytest.raises(NoAnswerError):
                stranger.status()
        refused = robot.status().refused
        assert refused is not None
        assert refused >= 2
        shown = shell.succeed("control", endpoint, "status", "--keys", str(folder / "robot.key"))
        assert "attempts without an allowed key" in shown
        revoke(folder, ["robot"])
        robot._timeout_s = 0.5
        with pytest.raises(NoAnswerError):
            robot.stop()
        assert wall.status().prompts.id == 1


def test_listen_uses_keys(tmp_path: Path, shell: Shell) -> None:
    for option in ("listen", "control"):
        arguments = (option, "tcp://127.0.0.1:9", *(("status",) if option == "control" else ()))
        sentence = shell.fail(*arguments, "--keys", str(tmp_path / "absent.key"))
        assert "absent.key: cannot be read (No such file or directory); give the path of a key file" in sentence
