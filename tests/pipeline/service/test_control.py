"""The control socket: what is asked is done or refused with a sentence, and no caller can harm the pipeline."""

import io
import os
import socket
import stat
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from engines.annotate import write_annotation
from engines.errors import PromptError
from engines.skeletons import Skeleton
from engines.visual_prompts import Example
from pipeline.config import PipelineConfig
from pipeline.errors import ConfigError, PublishError
from pipeline.flow.pipeline import Pipeline
from pipeline.outputs.recording import RecordConfig
from pipeline.service.config import ControlConfig
from pipeline.service.control import ControlServer
from tests.pipeline.fakes import MUG, FakeEngine
from tests.pipeline.flow.running import END_S
from tests.pipeline.service.running import camera, operated, until
from xpose_client import Control, ControlError, ExampleImage, NoAnswerError
from xpose_client.control_messages import (
    MOST_REQUEST_BYTES,
    ErrorAnswer,
    PromptsRequest,
    SnapshotRequest,
    StatusAnswer,
    StatusRequest,
    decode_answer,
    encode,
)

pytestmark = pytest.mark.timeout(60)


@contextmanager
def controlled(tmp_path: Path, *sources: Any, **options: Any) -> Iterator[tuple[str, Pipeline]]:
    """A running pipeline of fakes with a control socket; its address and the pipeline."""
    endpoint = f"ipc://{tmp_path}/control"
    with (
        operated(*sources, **options) as (operations, pipeline),
        ControlServer(ControlConfig(endpoint)) as server,
    ):
        server.serve(operations)
        yield endpoint, pipeline


def bare(endpoint: str) -> zmq.Socket[bytes]:
    """A caller that may send anything, as a REQ socket would."""
    caller: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
    caller.linger = 0
    caller.connect(endpoint)
    return caller


def ask(caller: zmq.Socket[bytes], body: bytes) -> Any:
    """Send a body and return its answer."""
    caller.send_multipart([b"", body])
    assert caller.poll(END_S * 1000), "no answer came"
    empty, answer = caller.recv_multipart()
    assert empty == b""
    return decode_answer(answer)


def picture(width: int = 200, height: int = 100) -> bytes:
    """A PNG file."""
    data = io.BytesIO()
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(data, "PNG")
    return data.getvalue()


def claiming(png: bytes, width: int, height: int) -> bytes:
    """The PNG file with another size in its header."""
    header = b"IHDR" + struct.pack(">II", width, height) + png[24:29]
    return png[:12] + header + struct.pack(">I", zlib.crc32(header)) + png[33:]


def annotation(tmp_path: Path) -> bytes:
    """An annotation file that marks a mug in mug.png."""
    skeleton = Skeleton("mug", ("rim", "base", "handle"))
    keypoints_K3 = np.array([[60, 20, 2], [60, 80, 2], [90, 50, 2]], np.float32)
    example = Example("mug", skeleton, np.zeros((100, 200, 3), np.uint8), (40, 10, 100, 90), keypoints_K3)
    write_annotation(example, "mug.png", tmp_path / "mug.json")
    return (tmp_path / "mug.json").read_bytes()


def test_every_request_is_carried_out(tmp_path: Path) -> None:
    engine = FakeEngine()
    with (
        controlled(tmp_path, camera("a"), camera("b"), engine=engine) as (endpoint, pipeline),
        Control(endpoint, timeout_s=END_S) as control,
    ):
        until(lambda: pipeline.metrics.frames_out("publish", "b") > 0)
        answer = control.set_prompts("mug,lamp", "rim,handle")
        assert [entry.name for entry in answer.prompts.classes] == ["mug", "lamp"]
        assert set(answer.after_frames) == {"a", "b"}
        assert abs(answer.from_unix_ns - time.time_ns()) < 5e9
        assert pipeline.prompts.id == answer.prompts.id == control.status().prompts.id
        assert control.set_thresholds(score=0.6).thresholds.score == 0.6
        assert engine.thresholds == (0.2, 0.5)
        assert control.add_source("rtsp://127.0.0.1:9/door", "door").source == "door"
        assert [report.status.source for report in control.status().sources] == ["a", "b", "door"]
        assert control.remove_source("a").source == "a"
        assert [report.status.source for report in control.status().sources] == ["b", "door"]
        assert cv2.imdecode(np.frombuffer(control.snapshot("b").jpeg, np.uint8), cv2.IMREAD_COLOR) is not None
        assert control.stop().from_unix_ns > 0
        assert pipeline.wait(END_S)


def test_client_starts_and_ends_a_recording(tmp_path: Path) -> None:
    config = PipelineConfig(record=RecordConfig(folder=str(tmp_path)))
    with (
        controlled(tmp_path, camera("a"), config=config) as (endpoint, _),
        Control(endpoint, timeout_s=END_S) as control,
    ):
        assert control.start_recording("fault").recording.active
        with pytest.raises(ControlError, match="a recording is going on; stop it first"):
            control.start_recording("fault")
        recording = control.status().recording
        assert recording is not None
        assert recording.files == [str(tmp_path / "fault.mcap")]
        assert not control.stop_recording().recording.active
        assert control.status().recording is None


def test_refusals_have_the_sentence_of_the_command_line_and_change_nothing(tmp_path: Path) -> None:
    with controlled(tmp_path, camera("a")) as (endpoint, pipeline), Control(endpoint, timeout_s=END_S) as control:
        for refused, sentence in (
            (lambda: control.set_prompts("gizmo"), "no keypoint list is known for 'gizmo'"),
            (lambda: control.set_prompts("a,b,c,d,e,f,g,h,i", "tip"), "build-engine --model nano --classes 9"),
            (lambda: control.set_prompts("person", prompt_from="dream"), "--prompt-from dream: give example, text or"),
            (lambda: control.add_source("clip.mp4"), "is a file, and a running pipeline takes live addresses only"),
            (lambda: control.add_source("rtsp://host:99999/"), "is not a port"),
            (lambda: control.remove_source("z"), "z: there is no source of this name; the sources are a"),
            (lambda: control.snapshot("z"), "z: there is no source of this name; the sources are a"),
            (lambda: control.set_thresholds(score=7.0), "score_threshold is 7.0, allowed is 0 to 1"),
        ):
            with pytest.raises(ControlError) as raised:
                refused()  # type: ignore[no-untyped-call]
            assert sentence in str(raised.value)
        assert pipeline.prompts.classes == (MUG,)
        assert [source.name for source in pipeline.sources] == ["a"]


def test_plain_req_socket_can_ask(tmp_path: Path) -> None:
    with controlled(tmp_path) as (endpoint, _), zmq.Context() as context, context.socket(zmq.REQ) as caller:
        caller.linger = 0
        caller.connect(endpoint)
        caller.send(msgspec.msgpack.encode({"type": "status"}))
        assert caller.poll(END_S * 1000)
        answer = msgspec.msgpack.decode(caller.recv())
        assert answer["type"] == "status"
        assert answer["prompts"]["classes"][0]["name"] == "mug"


def test_example_images_travel_as_bytes(tmp_path: Path) -> None:
    example = ExampleImage("mug.png", picture(), "mug.json", annotation(tmp_path))
    with controlled(tmp_path) as (endpoint, pipeline), Control(endpoint, timeout_s=END_S) as control:
        answer = control.set_prompts("mug", examples=[example], prompt_from="mean/example")
        (entry,) = answer.prompts.classes
        assert (entry.examples, entry.object_from, entry.keypoints_from) == (1, "mean", "example")
        assert entry.keypoints == ["rim", "base", "handle"]
        (prompt_class,) = pipeline.prompts.classes
        assert prompt_class.examples[0].rgb_HW3.shape == (100, 200, 3)


def test_keypoint_lists_travel_as_bytes(tmp_path: Path) -> None:
    content = b'name = "mug"\nkeypoints = ["rim", "base"]\nedges = [[0, 1]]\n'
    with controlled(tmp_path) as (endpoint, _), Control(endpoint, timeout_s=END_S) as control:
        answer = control.set_prompts("cup@own.toml", lists={"own.toml": content})
        assert answer.prompts.classes[0].keypoints == ["rim", "base"]
        with pytest.raises(ControlError, match=r"own\.toml is not a TOML file"):
            control.set_prompts("cup@own.toml", lists={"own.toml": b"name ="})
        with pytest.raises(ControlError, match="files of this machine are not read"):
            control.set_prompts("cup@/etc/passwd")


def test_example_images_are_bounded(tmp_path: Path) -> None:
    marked = annotation(tmp_path)
    bombs = [claiming(picture(), *size) for size in ((9_000, 9_000), (20_000, 20_000))]
    with controlled(tmp_path) as (endpoint, pipeline), Control(endpoint, timeout_s=END_S) as control:
        for image, sentence in (
            (bombs[0], "mug.png has 9000 x 9000 px, allowed are 50 megapixels; send a smaller picture"),
            (bombs[1], "mug.png is not an image that can be decoded, or is far too large"),
            (b"", "mug.png is not an image"),
            (b"\xff\xd8garbage", "mug.png is not an image"),
            (picture()[:60], "mug.png"),
        ):
            with pytest.raises(ControlError, match=sentence):
                control.set_prompts("mug", examples=[ExampleImage("mug.png", image, "mug.json", marked)])
        with pytest.raises(ControlError, match="40 example images were sent, allowed are 32"):
            control.set_prompts("mug", examples=[ExampleImage("mug.png", picture(), "mug.json", marked)] * 40)
        with pytest.raises(ControlError, match=r"mug.json: is not JSON"):
            control.set_prompts("mug", examples=[ExampleImage("mug.png", picture(), "mug.json", b"{")])
        with pytest.raises(ControlError, match=r"the request has \d+ bytes, allowed are"):
            control.set_prompts("mug", examples=[ExampleImage("a", bytes(MOST_REQUEST_BYTES), "b", b"")])
        assert pipeline.prompts.classes == (MUG,)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"status",
        bytes(1_000_000),
        msgspec.msgpack.encode({"type": "self_destruct"}),
        msgspec.msgpack.encode({"type": "add_source"}),
        msgspec.msgpack.encode({"type": "add_source", "address": 7}),
        msgspec.msgpack.encode({"type": "set_prompts", "prompt": "x", "examples": "many"}),
        b"\x91" * 100_000 + b"\x01",
        b"\x82\xa4type\xa6status\xa1x" + b"\x91" * 100_000 + b"\x01",
        b"\xdf\xff\xff\xff\xff",
        b"\x81\xa4type\xa6\xff\xff\xff\xff\xff\xff",
    ],
)
def test_garbage_is_answered_with_an_error(tmp_path: Path, body: bytes) -> None:
    with controlled(tmp_path, camera("a")) as (endpoint, pipeline):
        with bare(endpoint) as caller:
            answer = ask(caller, body)
            assert isinstance(answer, ErrorAnswer)
            assert "this is not a request" in answer.sentence
            assert isinstance(ask(caller, encode(StatusRequest())), StatusAnswer)
        published = pipeline.metrics.frames_out("publish")
        until(lambda: pipeline.metrics.frames_out("publish") > published)


def test_message_beyond_the_bound_closes_its_connection_alone(tmp_path: Path) -> None:
    with controlled(tmp_path) as (endpoint, _), Control(endpoint, timeout_s=END_S) as control:
        with bare(endpoint) as caller:
            caller.send_multipart([b"", bytes(MOST_REQUEST_BYTES + 1)])
            assert not caller.poll(500)
        assert control.status().sources == []


def test_message_of_many_parts_is_ignored(tmp_path: Path) -> None:
    with controlled(tmp_path) as (endpoint, _), bare(endpoint) as caller:
        caller.send_multipart([b"x"] * 1000)
        assert not caller.poll(300)
        assert isinstance(ask(caller, encode(StatusRequest())), StatusAnswer)


def test_callers_that_die_half_way_harm_nobody(tmp_path: Path) -> None:
    with controlled(tmp_path, camera("a")) as (endpoint, pipeline), Control(endpoint, timeout_s=END_S) as control:
        until(lambda: pipeline.metrics.frames_out("publish") > 0)
        for _ in range(20):
            caller = bare(endpoint)
            caller.send_multipart([b"", encode(SnapshotRequest("a"))])
            caller.send_multipart([b"", encode(PromptsRequest("mug", "rim"))])
            caller.close(0)
        for part in (b"", b"\xff", b"\xff\0\0\0\0\0\0\0\x01\x7f\x03", bytes(10_000)):
            with socket.socket(socket.AF_UNIX) as raw:
                raw.connect(endpoint.removeprefix("ipc://"))
                raw.sendall(part)
        assert control.status().prompts.classes[0].name == "mug"


def test_caller_that_never_reads_its_answers_does_not_stop_the_others(tmp_path: Path) -> None:
    with controlled(tmp_path, camera("a")) as (endpoint, pipeline), Control(endpoint, timeout_s=END_S) as control:
        until(lambda: pipeline.metrics.frames_out("publish") > 0)
        with bare(endpoint) as deaf:
            deaf.rcvhwm = 1
            for _ in range(500):
                deaf.send_multipart([b"", encode(SnapshotRequest("a"))])
            assert control.status().session == pipeline.session


def test_two_callers_at_once_each_get_their_own_answers(tmp_path: Path) -> None:
    wrong: list[str] = []
    with controlled(tmp_path) as (endpoint, pipeline):

        def call(name: str) -> None:
            with Control(endpoint, timeout_s=END_S) as control:
                for _ in range(25):
                    answer = control.set_prompts(name, "tip")
                    wrong.extend(entry.name for entry in answer.prompts.classes if entry.name != name)

        threads = [threading.Thread(target=call, args=(name,)) for name in ("left", "right")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(END_S)
        assert wrong == []
        assert pipeline.prompts.id == 51


def test_question_is_answered_while_a_change_takes_its_time(tmp_path: Path) -> None:
    encoding, go_on = threading.Event(), threading.Event()

    class Slow(FakeEngine):
        def set_prompts(self, classes: Any) -> int:
            if classes != (MUG,):
                encoding.set()
                go_on.wait(END_S)
            return super().set_prompts(classes)

    with controlled(tmp_path, camera("a"), engine=Slow()) as (endpoint, pipeline), bare(endpoint) as caller:
        caller.send_multipart([b"", encode(PromptsRequest("lamp", "bulb"))])
        assert encoding.wait(END_S)
        with Control(endpoint, timeout_s=END_S) as control:
            assert control.status().prompts.classes[0].name == "mug"
        for _ in range(40):
            caller.send_multipart([b"", encode(PromptsRequest("lamp", "bulb"))])
        assert caller.poll(END_S * 1000)
        refused = decode_answer(caller.recv_multipart()[1])
        assert isinstance(refused, ErrorAnswer)
        assert "16 changes wait to be carried out already" in refused.sentence
        published = pipeline.metrics.frames_out("publish")
        until(lambda: pipeline.metrics.frames_out("publish") > published + 5)
        go_on.set()


def test_late_answer_is_not_taken_for_another_request(tmp_path: Path) -> None:
    go_on = threading.Event()

    class Slow(FakeEngine):
        def set_prompts(self, classes: Any) -> int:
            if classes != (MUG,):
                go_on.wait(END_S)
            return super().set_prompts(classes)

    with controlled(tmp_path, engine=Slow()) as (endpoint, pipeline), Control(endpoint, timeout_s=0.3) as control:
        with pytest.raises(NoAnswerError, match=r"no answer within 0\.3 s"):
            control.set_prompts("lamp", "bulb")
        go_on.set()
        until(lambda: pipeline.prompts.classes[0].name == "lamp")
        control._timeout_s = END_S
        assert control.status().prompts.classes[0].name == "lamp"


def test_defect_in_an_operation_is_an_answer_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(FakeEngine):
        def set_prompts(self, classes: Any) -> int:
            if classes != (MUG,):
                raise RuntimeError("a defect")
            return super().set_prompts(classes)

    with controlled(tmp_path, engine=Broken()) as (endpoint, _), Control(endpoint, timeout_s=END_S) as control:
        with pytest.raises(ControlError, match=r"failed inside the pipeline \(RuntimeError\)"):
            control.set_prompts("lamp", "bulb")
        assert "a defect" in caplog.text
        assert control.status().prompts.classes[0].name == "mug"


def test_requests_wait_until_the_pipeline_has_started(tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/control"
    with ControlServer(ControlConfig(endpoint)) as server, bare(endpoint) as caller:
        caller.send_multipart([b"", encode(StatusRequest())])
        assert not caller.poll(200)
        with operated() as (operations, _):
            server.serve(operations)
            assert caller.poll(END_S * 1000)


def test_server_ends_before_the_pipeline_has_started(tmp_path: Path) -> None:
    with ControlServer(ControlConfig(f"ipc://{tmp_path}/control")):
        pass
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("control")]


def test_taken_address_is_one_sentence_that_names_the_option(tmp_path: Path) -> None:
    config = ControlConfig("tcp://127.0.0.1:*")
    with ControlServer(config) as first:
        second = ControlServer(ControlConfig(first.endpoint))
        with pytest.raises(PublishError, match=r"--control tcp://127.0.0.1:\d+: another program uses this address"):
            second.__enter__()


def test_socket_file_is_for_the_owner_alone(tmp_path: Path) -> None:
    mask = os.umask(0o022)
    os.umask(mask)
    with controlled(tmp_path) as (endpoint, _):
        mode = Path(endpoint.removeprefix("ipc://")).stat().st_mode
        assert stat.S_IMODE(mode) == 0o600
        assert os.umask(mask) == mask


@pytest.mark.parametrize("address", ["tcp://*:5556", "tcp://0.0.0.0:5556", "tcp://192.0.2.1:5556", "tcp://[::]:5556"])
def test_address_that_others_can_reach_needs_keys(address: str) -> None:
    with pytest.raises(ConfigError, match=r"--control .*: other machines can reach this address, and there are"):
        PipelineConfig(control=ControlConfig(address))


@pytest.mark.parametrize("address", ["5556", "tcp://127.0.0.1", "tcp://127.0.0.1:99999", "http://127.0.0.1:80"])
def test_malformed_address_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="--control"):
        ControlConfig(address)


_AT_ONCE = 10  # fewer than the changes that may wait

HOSTILE_TEXT = st.one_of(st.text(max_size=50), st.sampled_from(["", "..", "/etc/passwd", "a\0b", "%s%n", "<b>", "cam"]))
HOSTILE_VALUES = st.one_of(
    st.none(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(),
    HOSTILE_TEXT,
    st.binary(max_size=20),
    st.lists(HOSTILE_TEXT),
)
HOSTILE_REQUESTS = st.one_of(
    st.binary(max_size=200),
    st.dictionaries(
        st.sampled_from(["type", "prompt", "keypoints", "address", "name", "source", "score", "nms_iou", "examples"]),
        HOSTILE_VALUES,
    ).map(lambda table: msgspec.msgpack.encode(table, order=None)),
    st.tuples(
        st.sampled_from(["status", "set_prompts", "add_source", "remove_source", "set_thresholds", "snapshot"]),
        st.dictionaries(
            st.sampled_from(["prompt", "keypoints", "prompt_from", "address", "source", "score", "doubtful"]),
            st.one_of(HOSTILE_TEXT, st.floats(min_value=1.5), st.none()),
        ),
    ).map(lambda pair: msgspec.msgpack.encode({"type": pair[0], **pair[1]})),
)


def state_of(pipeline: Pipeline) -> tuple[Any, ...]:
    """Everything that a request could change."""
    names = [source.name for source in pipeline.sources]
    return pipeline.prompts.id, names, pipeline._rules.still_threshold, threading.active_count()


def send_hostile_requests(tmp_path: Path, count: int) -> None:
    """Send random requests, none of which is allowed to change anything, and check that nothing has changed."""

    class Closed(FakeEngine):
        """Was trained on mugs alone."""

        def set_prompts(self, classes: Any) -> int:
            if classes != (MUG,):
                raise PromptError("this model was not trained on it")
            return super().set_prompts(classes)

    with controlled(tmp_path, camera("a"), engine=Closed()) as (endpoint, pipeline), bare(endpoint) as caller:
        until(lambda: pipeline.metrics.frames_out("publish") > 0)
        before, published = state_of(pipeline), pipeline.metrics.frames_out("publish")

        @settings(max_examples=count // _AT_ONCE, deadline=None, database=None)
        @given(st.lists(HOSTILE_REQUESTS, min_size=_AT_ONCE, max_size=_AT_ONCE))
        def send(bodies: list[bytes]) -> None:
            for body in bodies:
                caller.send_multipart([b"", body])
            for _ in bodies:
                assert caller.poll(END_S * 1000), "no answer came"
                decode_answer(caller.recv_multipart()[1])

        send()
        assert state_of(pipeline) == before
        until(lambda: pipeline.metrics.frames_out("publish") > published)


def test_hostile_requests_change_nothing(tmp_path: Path) -> None:
    send_hostile_requests(tmp_path, 300)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ten_thousand_hostile_requests_change_nothing_and_leak_nothing(tmp_path: Path) -> None:
    send_hostile_requests(tmp_path, 1000)
    before = Path("/proc/self/statm").read_text().split()[1]
    send_hostile_requests(tmp_path, 10_000)
    pages = int(Path("/proc/self/statm").read_text().split()[1]) - int(before)
    assert pages * os.sysconf("SC_PAGE_SIZE") < 64e6
