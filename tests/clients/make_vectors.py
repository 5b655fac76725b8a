"""Make `clients/vectors.json`: messages as bytes and as JSON, which the clients of all languages decode in their tests.

    python -m tests.clients.make_vectors

Run it when the wire changes on purpose, and look at the difference. Every number here is exact in binary, so that no
client can be wrong by rounding.
"""

import json
from typing import Any

import msgspec

from tests.support import REPOSITORY
from xpose_client.messages import (
    SCHEMA,
    Message,
    PoseMessage,
    SkeletonClass,
    SkeletonMessage,
    StatusMessage,
    TrackMessage,
    encode,
    topic_of,
)

PATH = REPOSITORY / "clients" / "vectors.json"

MUG = TrackMessage(
    id=7,
    class_name="mug",
    score=0.75,
    box_xyxy=(1.0, 2.5, 30.25, 40.0),
    keypoints_raw=[(None, None), (5.5, 6.0), (0.0, -3.125)],
    keypoints=[(4.5, 5.75), (5.5, 6.25), (0.0, -3.0)],
    keypoints_predicted=[(4.75, 5.875), (5.5, 6.25), (0.125, -3.0)],
    keypoints_velocity=[(None, None), (12.5, -0.5), (0.0, 0.0)],
    keypoints_covariance=[(None, None, None), (1.5, 0.25, 2.5), (1.0, 0.0, 1.0)],
    keypoints_measured=[False, True, True],
    measured=True,
)
LAMP = TrackMessage(
    id=2**40, class_name="lamp", score=0.5, box_xyxy=(-4.0, 0.0, 2000.5, 1e6), keypoints_raw=[(None, None)],
    keypoints=[(1.0, 2.0)], keypoints_predicted=[(1.0, 2.0)], keypoints_velocity=[(0.0, 0.0)],
    keypoints_covariance=[(1e6, -0.5, 1e6)], keypoints_measured=[False], measured=False,
)  # fmt: skip
POSE = PoseMessage(
    schema=SCHEMA, session=1795840317241145401, seq=3, source="cam1", frame=12, file=None, pts_s=0.5,
    source_pts_s=None, host="e3facded-4a8b-4cfc-98d6-02c03f8424e7", capture_clock="stream",
    capture_unix_ns=1795840317301036200, capture_monotonic_ns=14561752133894, capture_uncertainty_s=0.0625, lag_s=0.25,
    publish_unix_ns=1795840320865492281, width=1280, height=720, prompt_id=2, tracks=[MUG, LAMP],
)  # fmt: skip
STILL = msgspec.structs.replace(
    POSE, source="plants/grüne Bohne", file="Bild 1 – Übersicht.png", pts_s=None, capture_clock="file",
    capture_uncertainty_s=None, lag_s=None, width=0, height=0, tracks=[],
)  # fmt: skip
MENDED = msgspec.structs.replace(POSE, source_pts_s=95443.71875, tracks=[])
SKELETON = SkeletonMessage(
    schema=SCHEMA, session=1795840317241145401, source="cam1", prompt_id=2, publish_unix_ns=1795840317241145999,
    classes=[SkeletonClass("mug", ["rim", "base", "handle"], [(0, 1), (1, 2)]), SkeletonClass("lamp", ["bulb"], [])],
)  # fmt: skip
LIVE = StatusMessage(
    schema=SCHEMA, session=1795840317241145401, host="e3facded-4a8b-4cfc-98d6-02c03f8424e7", source="cam1",
    state="live", since_unix_ns=1795840317241146000, publish_unix_ns=1795840320865492281,
    publish_monotonic_ns=14561752133894, frame_rate=29.5, lag_s=0.25, drops={"newer frame": 17, "stopped": 1},
    last_error=None, last_capture_unix_ns=1795840317301036200, capture_clock="stream", clock_offset_s=None, beat_s=0.5,
)  # fmt: skip
LOST = msgspec.structs.replace(
    LIVE, state="lost", frame_rate=0.0, lag_s=None, drops={}, last_error="cam1: nothing answers (time-out after 5 s)",
    last_capture_unix_ns=None, capture_clock="receipt", clock_offset_s=-3600.5,
)  # fmt: skip
LATER_FIELDS = {"humidity": 0.5, "nested": {"deep": [1, None, {"deeper": b"\x00\xff"}]}, "list": [[], {}]}


def main() -> None:
    """Write the file."""
    text = json.dumps({"schema": SCHEMA, "vectors": vectors()}, indent=1, ensure_ascii=False)
    PATH.write_text(text + "\n", encoding="utf-8")
    print(PATH)


def vectors() -> list[dict[str, Any]]:
    """Return all vectors. `error` is null, "schema" (another schema) or "wire" (not a message)."""
    return [
        good("pose with a measured and a coasting track", POSE),
        good("still without pixels, names beyond ASCII", STILL),
        good("pose with a mended time stamp", MENDED),
        good("pose of a replay", msgspec.structs.replace(POSE, replay=True)),
        good("skeletons of two classes", SKELETON),
        good("skeletons of a replay", msgspec.structs.replace(SKELETON, replay=True)),
        good("status of a live source", LIVE),
        good("status of a lost source", LOST),
        good("status of a replay", msgspec.structs.replace(LIVE, replay=True)),
        changed("pose with fields of a later program", POSE, LATER_FIELDS),
        changed("skeletons with fields of a later program", SKELETON, LATER_FIELDS),
        changed("status with fields of a later program", LIVE, LATER_FIELDS),
        changed("status with a state of a later program", msgspec.structs.replace(LIVE, state="asleep"), {}),
        whole_numbers(),
        older("status without later fields", LOST),
        older("pose without later fields", POSE),
        older("skeletons without later fields", SKELETON),
        bad("schema 1, as it was", "schema", b"poses/cam1\0", {"schema": 1, "session": 5, "seq": 0, "source": "cam1"}),
        bad("schema 3 with the fields of this one", "schema", b"poses/cam1\0", plain(POSE) | {"schema": 3}),
        bad("status of schema 3 with other fields", "schema", b"status/cam1\0", {"schema": 3, "state": 7}),
        bad("no topic", "wire", b"", {"schema": SCHEMA}),
        bad("no NUL after the topic", "wire", b"poses/cam1", {"schema": SCHEMA}),
        bad("unknown topic", "wire", b"weather/cam1\0", plain(POSE)),
        bad("body of another topic", "wire", b"status/cam1\0", plain(SKELETON)),
        bad("body that is a list", "wire", b"poses/cam1\0", [SCHEMA]),
        bad("field of a wrong type", "wire", b"poses/cam1\0", plain(POSE) | {"seq": "three"}),
        bad("field that is missing", "wire", b"poses/cam1\0", {k: v for k, v in plain(POSE).items() if k != "host"}),
        raw("body that is cut off", "wire", encode(POSE)[:-20]),
        raw("bytes after the body", "wire", encode(POSE) + b"\xc0"),
        raw("empty body", "wire", b"poses/cam1\0"),
        raw("list that claims four billion entries", "wire", b"poses/cam1\0\xdd\xff\xff\xff\xff"),
    ]


def plain(message: Message) -> dict[str, Any]:
    """Return a message as plain values, with the keys of the wire."""
    values: dict[str, Any] = msgspec.to_builtins(message)
    return values


def good(name: str, message: Message) -> dict[str, Any]:
    return {"name": name, "error": None, "exact": True, "hex": encode(message).hex(), "json": plain(message)}


def changed(name: str, message: Message, fields: dict[str, Any]) -> dict[str, Any]:
    """A message with fields that this schema does not have; clients ignore them."""
    data = topic_of(message).encode() + b"\0" + msgspec.msgpack.encode(fields | plain(message))
    return {"name": name, "error": None, "exact": False, "hex": data.hex(), "json": plain(message)}


def whole_numbers() -> dict[str, Any]:
    """Numbers with a fraction elsewhere, here as msgpack integers."""
    body = plain(MENDED) | {"pts_s": 2, "lag_s": 0, "source_pts_s": -1}
    data = b"poses/cam1\0" + msgspec.msgpack.encode(body)
    return {"name": "whole numbers as integers", "error": None, "exact": False, "hex": data.hex(), "json": body}


def older(name: str, message: Message) -> dict[str, Any]:
    """A message of the first program of this schema, without the fields that were added since."""
    required = {field.name for field in msgspec.structs.fields(type(message)) if field.required}
    body = {key: value for key, value in plain(message).items() if key in required}
    data = topic_of(message).encode() + b"\0" + msgspec.msgpack.encode(body)
    return {"name": name, "error": None, "exact": False, "hex": data.hex(), "json": plain(message)}


def bad(name: str, error: str, head: bytes, body: object) -> dict[str, Any]:
    return raw(name, error, head + msgspec.msgpack.encode(body))


def raw(name: str, error: str, data: bytes) -> dict[str, Any]:
    return {"name": name, "error": error, "exact": False, "hex": data.hex(), "json": None}


if __name__ == "__main__":
    main()
