"""The ROS 2 bridge: its raw DDS samples, decoded by rosbags from the message definitions, against the messages sent."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from tests.clients.python.made import skeleton, status
from tests.clients.python.sending import Sender
from tests.support import REPOSITORY
from xpose_client import PoseMessage, SkeletonClass, TrackMessage, decode

pytest.importorskip("cyclonedds", reason="the extra `ros2` is not installed")
rosbags_store = pytest.importorskip("rosbags.typesys", reason="rosbags is not installed")

from cyclonedds._clayer import ddspy_take  # noqa: E402
from cyclonedds.core import InstanceState, Policy, Qos, SampleState, ViewState  # noqa: E402
from cyclonedds.domain import DomainParticipant  # noqa: E402
from cyclonedds.sub import DataReader  # noqa: E402
from cyclonedds.topic import Topic  # noqa: E402

from xpose_bridge.bridge import KEPT, TOPICS, Bridge, topic_name  # noqa: E402

pytestmark = pytest.mark.timeout(120)

DOMAIN = 77
LOOPBACK = """<CycloneDDS><Domain id="any"><General>
<Interfaces><NetworkInterface name="lo" multicast="false"/></Interfaces>
<AllowMulticast>false</AllowMulticast></General>
<Discovery><ParticipantIndex>auto</ParticipantIndex>
<Peers><Peer address="127.0.0.1"/></Peers></Discovery></Domain></CycloneDDS>"""
ANY = SampleState.Any | ViewState.Any | InstanceState.Any
# vision_msgs 4 as its own repository defines it; the field order is the wire format.
VISION_MSGS = {
    "Point2D": "float64 x\nfloat64 y",
    "Pose2D": "vision_msgs/Point2D position\nfloat64 theta",
    "BoundingBox2D": "vision_msgs/Pose2D center\nfloat64 size_x\nfloat64 size_y",
    "ObjectHypothesis": "string class_id\nfloat64 score",
    "ObjectHypothesisWithPose": "vision_msgs/ObjectHypothesis hypothesis\ngeometry_msgs/PoseWithCovariance pose",
    "Detection2D": "std_msgs/Header header\nvision_msgs/ObjectHypothesisWithPose[] results\n"
    "vision_msgs/BoundingBox2D bbox\nstring id",
    "Detection2DArray": "std_msgs/Header header\nvision_msgs/Detection2D[] detections",
}
VECTORS = json.loads((REPOSITORY / "clients" / "vectors.json").read_text(encoding="utf-8"))["vectors"]
POSE = next(decode(bytes.fromhex(vector["hex"])) for vector in VECTORS if vector["exact"])


@pytest.fixture(scope="module")
def store() -> Any:
    """ROS 2's types with ours, from the .msg files, and those of vision_msgs."""
    store = rosbags_store.get_typestore(rosbags_store.Stores.ROS2_HUMBLE)
    texts = {f"vision_msgs/msg/{name}": text for name, text in VISION_MSGS.items()}
    for path in sorted((REPOSITORY / "clients" / "ros2" / "xpose_msgs" / "msg").glob("*.msg")):
        texts[f"xpose_msgs/msg/{path.stem}"] = path.read_text(encoding="utf-8")
    types: dict[str, Any] = {}
    for name, text in texts.items():
        types.update(rosbags_store.get_types_from_msg(text, name))
    store.register({name: definition for name, definition in types.items() if name not in store.types})
    return store


class Robot:
    """A second DDS participant, which reads raw samples of one source."""

    def __init__(self, store: Any, source: str) -> None:
        self._store = store
        self._participant = DomainParticipant(DOMAIN)
        self._readers = {}
        for what, (kind, qos) in TOPICS.items():
            topic = Topic(self._participant, topic_name(source, what), kind)
            self._readers[what] = DataReader(self._participant, topic, qos)

    def read(self, bridge: Bridge, what: str, typename: str) -> Any:
        """Let the bridge work until a sample comes; return it as rosbags decodes its bytes."""
        deadline_s = time.monotonic() + 30
        while time.monotonic() < deadline_s:
            bridge.step(0.02)
            samples = ddspy_take(self._readers[what]._ref, ANY, 10)
            assert not isinstance(samples, int), f"DDS error {samples}"
            if samples:
                data, _ = samples[-1]
                return self._store.deserialize_cdr(bytes(data), typename)
        raise AssertionError(f"no sample on {what}")


@pytest.fixture
def loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CYCLONEDDS_URI", LOOPBACK)


@pytest.fixture
def sender() -> Iterator[Sender]:
    with Sender() as sender:
        yield sender


def keep_sending(sender: Sender, bridge: Bridge, robot: Robot, message: PoseMessage, what: str, typename: str) -> Any:
    """Send a message with growing sequence numbers until a best-effort reader has one."""
    for seq in range(message.seq, message.seq + 200):
        sender.send(msgspec.structs.replace(message, seq=seq))
        bridge.step(0.05)
        samples = ddspy_take(robot._readers[what]._ref, ANY, 10)
        if samples and not isinstance(samples, int):
            return robot._store.deserialize_cdr(bytes(samples[-1][0]), typename)
    raise AssertionError(f"no sample on {what}")


def numbers(rows: Any) -> Any:
    return np.array([[np.nan if value is None else value for value in row] for row in rows])


def test_poses_boxes_skeletons_and_states_arrive_as_ros_messages(loopback: None, store: Any, sender: Sender) -> None:
    assert isinstance(POSE, PoseMessage)
    classes = [SkeletonClass("mug", ["rim", "base", "handle"], [(0, 1), (1, 2)]), SkeletonClass("lamp", ["bulb"], [])]
    robot = Robot(store, "cam1")
    with Bridge(sender.endpoint, domain=DOMAIN) as bridge:
        for _ in range(50):
            bridge.step(0.01)
        sender.await_subscriptions(3)
        names = skeleton(session=POSE.session, prompt_id=POSE.prompt_id, classes=classes)
        sender.send(names, status(state="late", last_error="slow link", lag_s=0.5))

        state = robot.read(bridge, "status", "xpose_msgs/msg/SourceStatus")
        assert (state.header.frame_id, state.state, state.lag_s, state.last_error) == ("cam1", "late", 0.5, "slow link")
        lists = robot.read(bridge, "skeletons", "xpose_msgs/msg/Skeletons")
        assert [(one.name, list(one.keypoints), list(one.edges)) for one in lists.classes] == [
            ("mug", ["rim", "base", "handle"], [0, 1, 1, 2]), ("lamp", ["bulb"], [])
        ]  # fmt: skip

        poses = keep_sending(sender, bridge, robot, POSE, "poses", "xpose_msgs/msg/Poses")
        stamp = poses.header.stamp
        assert (stamp.sec * 10**9 + stamp.nanosec, poses.header.frame_id) == (POSE.capture_unix_ns, POSE.source)
        for name in (
            "session",
            "frame",
            "capture_clock",
            "capture_uncertainty_s",
            "lag_s",
            "width",
            "height",
            "prompt_id",
        ):
            assert getattr(poses, name) == getattr(POSE, name), name
        assert poses.age_s != 0
        assert len(poses.tracks) == len(POSE.tracks)
        for got, sent, listed in zip(poses.tracks, POSE.tracks, classes, strict=True):
            check_track(got, sent, listed)

        boxes = robot.read(bridge, "detections", "vision_msgs/msg/Detection2DArray")
        box, track = boxes.detections[0], POSE.tracks[0]
        left, top, right, bottom = track.box_xyxy
        assert (box.id, box.results[0].hypothesis.class_id) == (str(track.id), track.class_name)
        assert (box.bbox.center.position.x, box.bbox.size_x) == ((left + right) / 2, right - left)
        assert (box.bbox.center.position.y, box.bbox.size_y) == ((top + bottom) / 2, bottom - top)


def check_track(got: Any, sent: TrackMessage, listed: SkeletonClass) -> None:
    assert (got.id, got.class_name, got.score, got.measured) == (sent.id, sent.class_name, sent.score, sent.measured)
    assert tuple(got.box_xyxy) == sent.box_xyxy
    assert [point.name for point in got.keypoints] == listed.keypoints
    assert [point.measured for point in got.keypoints] == sent.keypoints_measured
    pairs = {
        "raw": sent.keypoints_raw, "smoothed": sent.keypoints, "predicted": sent.keypoints_predicted,
        "velocity": sent.keypoints_velocity, "covariance": sent.keypoints_covariance,
    }  # fmt: skip
    for name, rows in pairs.items():
        np.testing.assert_array_equal([getattr(point, name) for point in got.keypoints], numbers(rows), err_msg=name)


def test_skeletons_are_kept_for_a_robot_that_joins_late(loopback: None, store: Any, sender: Sender) -> None:
    with Bridge(sender.endpoint, domain=DOMAIN) as bridge:
        bridge.step(0.2)
        sender.await_subscriptions(3)
        sender.send(skeleton("cam2"))
        for _ in range(20):
            bridge.step(0.02)
        late = Robot(store, "cam2")
        lists = late.read(bridge, "skeletons", "xpose_msgs/msg/Skeletons")
        assert [one.name for one in lists.classes] == ["mug"]


def test_silence_of_the_publisher_is_a_state(loopback: None, store: Any, sender: Sender) -> None:
    robot = Robot(store, "cam3")
    with Bridge(sender.endpoint, domain=DOMAIN) as bridge:
        bridge.step(0.2)
        sender.await_subscriptions(3)
        sender.send(status("cam3"))
        assert robot.read(bridge, "status", "xpose_msgs/msg/SourceStatus").state == "live"
        sender.close()
        assert robot.read(bridge, "status", "xpose_msgs/msg/SourceStatus").state == "silent"


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("cam1", "rt/xpose/cam1/poses"),
        ("cams/front door", "rt/xpose/cams/front_door/poses"),
        ("7-grüne.mp4", "rt/xpose/_7_gr_ne_mp4/poses"),
    ],
)
def test_topic_names_are_those_that_ros_allows(source: str, name: str) -> None:
    assert topic_name(source, "poses") == name


def test_quality_of_service_is_that_of_ros(loopback: None) -> None:
    assert Policy.Durability.TransientLocal in KEPT
    assert isinstance(TOPICS["poses"][1], Qos)
    assert Policy.Reliability.BestEffort in TOPICS["poses"][1]


def test_package_lists_every_message_file() -> None:
    folder: Path = REPOSITORY / "clients" / "ros2" / "xpose_msgs"
    build = (folder / "CMakeLists.txt").read_text(encoding="utf-8")
    assert all(f"msg/{path.name}" in build for path in folder.glob("msg/*.msg"))
