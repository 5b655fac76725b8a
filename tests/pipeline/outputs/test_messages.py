"""Messages: fields, round trip, and numbers that do not exist."""

import json
import math
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from engines.scores import ScoreScale
from pipeline.flow.tracking import PromptedTracker, ScoreRules
from pipeline.frames import Frame, FramePoses, FrameTracks
from pipeline.outputs.messages import pose_message, skeleton_message
from tests.pipeline.fakes import LAMP, MUG, FakeSource, seen
from trackers import Tracker
from xpose_client.host import boot_id
from xpose_client.messages import PoseMessage, decode, encode, to_json_line

POSE_KEYS = [
    "schema", "session", "seq", "source", "frame", "file", "pts_s", "source_pts_s", "host", "capture_clock",
    "capture_unix_ns", "capture_monotonic_ns", "capture_uncertainty_s", "lag_s", "publish_unix_ns", "width", "height",
    "prompt_id", "tracks", "replay",
]  # fmt: skip
TRACK_KEYS = [
    "id", "class", "score", "box_xyxy", "keypoints_raw", "keypoints", "keypoints_predicted", "keypoints_velocity",
    "keypoints_covariance", "keypoints_measured", "measured",
]  # fmt: skip


def tracked(frame: Frame | None = None) -> FrameTracks:
    frame = frame or next(iter(FakeSource(1, name="cam/1")))
    found = seen((MUG, LAMP), 5, 30.0)
    found.keypoints_NK2[0, 1] = np.nan
    tracker = PromptedTracker(lambda still, sigmas: Tracker(None, sigmas))
    return tracker.update(FramePoses(frame, found), ScoreRules(ScoreScale(0.3, 0.7), still_threshold=0.0))


def message() -> PoseMessage:
    return pose_message(tracked(), session=11, seq=3, publish_unix_ns=12)


def test_message_has_the_documented_fields_in_order() -> None:
    plain = msgspec.msgpack.decode(encode(message()).partition(b"\0")[2])
    assert list(plain) == POSE_KEYS
    assert list(plain["tracks"][0]) == TRACK_KEYS
    assert (plain["source"], plain["session"], plain["seq"], plain["prompt_id"]) == ("cam/1", 11, 3, 5)
    assert (plain["width"], plain["height"]) == (64, 48)
    assert plain["tracks"][1]["class"] == "lamp"


def test_encoding_and_decoding_give_the_same_message() -> None:
    sent = message()
    data = encode(sent)
    assert data.startswith(b"poses/cam/1\0")
    assert decode(data) == sent


def test_each_class_has_as_many_keypoints_as_its_own_list() -> None:
    mug, lamp = message().tracks
    assert [len(mug.keypoints), len(lamp.keypoints), len(lamp.keypoints_covariance)] == [3, 2, 2]
    assert len(lamp.keypoints_measured) == 2


def test_absent_coordinates_are_null_in_msgpack_and_in_json() -> None:
    mug = message().tracks[0]
    assert mug.keypoints_raw[1] == (None, None)
    assert mug.keypoints_velocity[1] == (None, None)
    assert mug.keypoints_covariance[1] == (None, None, None)
    assert mug.keypoints_measured == [True, False, True]
    line = to_json_line(message())
    assert b"NaN" not in line
    assert line.endswith(b"\n")
    raw = json.loads(line)["tracks"][0]["keypoints_raw"]
    as_numbers = np.array(raw, dtype=float)
    assert math.isnan(as_numbers[1, 0])
    assert as_numbers[0].tolist() == [30.0, 10.0]


def test_skeleton_message_names_keypoints_and_edges() -> None:
    skeleton = skeleton_message((MUG, LAMP), 5, source="cam", session=11, publish_unix_ns=12)
    data = encode(skeleton)
    assert data.startswith(b"skeletons/cam\0")
    assert decode(data) == skeleton
    assert skeleton.classes[0].keypoints == ["rim", "base", "handle"]
    assert skeleton.classes[0].edges == [(0, 1), (1, 2)]


@pytest.mark.parametrize(("live", "clock"), [(True, "receipt"), (False, "file")])
def test_message_says_which_clock_and_which_host_took_its_times(live: bool, clock: str) -> None:
    frame = next(iter(FakeSource(1, live=live)))
    pose = pose_message(tracked(frame), session=11, seq=3, publish_unix_ns=12)
    assert (pose.capture_clock, pose.host) == (clock, boot_id())
    assert (pose.lag_s, pose.capture_uncertainty_s, pose.source_pts_s) == (None, None, None)


def test_message_carries_what_the_source_knows_of_its_times() -> None:
    frame = next(iter(FakeSource(1)))
    known = replace(frame, capture_clock="stream", lag_s=0.5, capture_uncertainty_s=0.02, source_pts_s=7.5)
    pose = pose_message(tracked(known), session=11, seq=3, publish_unix_ns=12)
    assert pose.capture_clock == "stream"
    assert (pose.lag_s, pose.capture_uncertainty_s, pose.source_pts_s) == (0.5, 0.02, 7.5)
