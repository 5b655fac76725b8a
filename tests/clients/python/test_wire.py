"""Encoding and decoding without the pipeline."""

from __future__ import annotations

import json

import msgspec
import pytest

from tests.clients.python.made import pose, skeleton, status
from xpose_client.errors import WireError
from xpose_client.messages import SCHEMA, Message, TrackMessage, decode, encode, to_json_line, topic_of

TRACK = TrackMessage(
    id=7,
    class_name="mug",
    score=0.75,
    box_xyxy=(1.0, 2.0, 30.5, 40.25),
    keypoints_raw=[(None, None), (5.0, 6.0)],
    keypoints=[(4.5, 5.5), (5.0, 6.0)],
    keypoints_predicted=[(4.75, 5.75), (5.0, 6.0)],
    keypoints_velocity=[(None, None), (1.0, -1.0)],
    keypoints_covariance=[(None, None, None), (1.0, 0.0, 1.0)],
    keypoints_measured=[False, True],
    measured=True,
)
MESSAGES = [pose(tracks=[TRACK]), skeleton(), status(drops={"newer frame": 3}, last_error="refused")]
BODY = {"schema": SCHEMA, "session": 1}


@pytest.mark.parametrize("message", MESSAGES, ids=topic_of)
def test_decoding_undoes_encoding(message: Message) -> None:
    assert decode(encode(message)) == message


@pytest.mark.parametrize("message", MESSAGES, ids=topic_of)
def test_json_line_has_the_keys_of_the_wire_and_ends_with_a_newline(message: Message) -> None:
    line = to_json_line(message)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    on_the_wire = msgspec.msgpack.decode(encode(message).partition(b"\0")[2])
    assert json.loads(line) == on_the_wire


def test_key_of_the_class_is_class() -> None:
    assert json.loads(to_json_line(MESSAGES[0]))["tracks"][0]["class"] == "mug"


@pytest.mark.parametrize("message", MESSAGES, ids=topic_of)
def test_unknown_fields_of_a_later_program_are_ignored(message: Message) -> None:
    body = {**msgspec.to_builtins(message), "humidity": [0.4, {"deep": None}]}
    assert decode(topic_of(message).encode() + b"\0" + msgspec.msgpack.encode(body)) == message


@pytest.mark.parametrize("topic", ["poses/cam1", "skeletons/cam1", "status/cam1"])
@pytest.mark.parametrize("schema", [1, SCHEMA + 1])
def test_another_schema_is_named_whatever_its_fields_are(topic: str, schema: int) -> None:
    body = msgspec.msgpack.encode({**BODY, "schema": schema})
    with pytest.raises(WireError, match=rf"of schema {schema} on .*{topic}.* reads schema {SCHEMA}"):
        decode(topic.encode() + b"\0" + body)


def test_another_schema_with_the_fields_of_this_one_is_refused() -> None:
    body = msgspec.msgpack.encode(msgspec.structs.replace(pose(), schema=SCHEMA + 1))
    with pytest.raises(WireError, match=f"of schema {SCHEMA + 1}"):
        decode(b"poses/cam1\0" + body)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "NUL"),
        (b"poses/cam1", "NUL"),
        (b"\0", "expected"),
        (b"weather/cam1\0\x80", "expected"),
        (b"poses\xff/cam1\0\x80", "expected"),
        (b"poses/cam1\0", "not of schema"),
        (b"poses/cam1\0\xc1", "not of schema"),
        (b"poses/cam1\0" + msgspec.msgpack.encode(BODY), "not of schema"),
        (b"status/cam1\0" + msgspec.msgpack.encode({**BODY, "schema": "two"}), "not of schema"),
        (b"status/cam1\0" + msgspec.msgpack.encode([1, 2]), "not of schema"),
    ],
)
def test_bytes_that_are_no_message_are_refused(data: bytes, reason: str) -> None:
    with pytest.raises(WireError, match=reason):
        decode(data)
