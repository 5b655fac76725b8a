"""ROS 2's messages as DDS types. ROS 2 maps `package/msg/Name` to the DDS type `package::msg::dds_::Name_`.

`xpose_msgs` is defined in `clients/ros2/xpose_msgs/msg`. `vision_msgs` is version 4 (ROS 2 Humble and newer). The
annotations are evaluated, so this module does not postpone them.
"""

from dataclasses import dataclass

from cyclonedds.idl import IdlStruct
from cyclonedds.idl.types import array, float64, int32, int64, sequence, uint32


@dataclass
class Time(IdlStruct, typename="builtin_interfaces::msg::dds_::Time_"):
    sec: int32
    nanosec: uint32


@dataclass
class Header(IdlStruct, typename="std_msgs::msg::dds_::Header_"):
    stamp: Time
    frame_id: str


@dataclass
class Keypoint(IdlStruct, typename="xpose_msgs::msg::dds_::Keypoint_"):
    name: str
    raw: array[float64, 2]
    smoothed: array[float64, 2]
    predicted: array[float64, 2]
    velocity: array[float64, 2]
    covariance: array[float64, 3]
    measured: bool


@dataclass
class Track(IdlStruct, typename="xpose_msgs::msg::dds_::Track_"):
    id: int64
    class_name: str
    score: float64
    measured: bool
    box_xyxy: array[float64, 4]
    keypoints: sequence[Keypoint]


@dataclass
class Poses(IdlStruct, typename="xpose_msgs::msg::dds_::Poses_"):
    header: Header
    session: int64
    seq: int64
    frame: int64
    age_s: float64
    capture_clock: str
    capture_uncertainty_s: float64
    lag_s: float64
    width: uint32
    height: uint32
    prompt_id: int64
    replay: bool
    tracks: sequence[Track]


@dataclass
class SkeletonClass(IdlStruct, typename="xpose_msgs::msg::dds_::SkeletonClass_"):
    name: str
    keypoints: sequence[str]
    edges: sequence[uint32]


@dataclass
class Skeletons(IdlStruct, typename="xpose_msgs::msg::dds_::Skeletons_"):
    header: Header
    session: int64
    prompt_id: int64
    classes: sequence[SkeletonClass]


@dataclass
class SourceStatus(IdlStruct, typename="xpose_msgs::msg::dds_::SourceStatus_"):
    header: Header
    state: str
    frame_rate: float64
    lag_s: float64
    last_error: str


@dataclass
class Point(IdlStruct, typename="geometry_msgs::msg::dds_::Point_"):
    x: float64
    y: float64
    z: float64


@dataclass
class Quaternion(IdlStruct, typename="geometry_msgs::msg::dds_::Quaternion_"):
    x: float64
    y: float64
    z: float64
    w: float64


@dataclass
class Pose(IdlStruct, typename="geometry_msgs::msg::dds_::Pose_"):
    position: Point
    orientation: Quaternion


@dataclass
class PoseWithCovariance(IdlStruct, typename="geometry_msgs::msg::dds_::PoseWithCovariance_"):
    pose: Pose
    covariance: array[float64, 36]


@dataclass
class ObjectHypothesis(IdlStruct, typename="vision_msgs::msg::dds_::ObjectHypothesis_"):
    class_id: str
    score: float64


@dataclass
class ObjectHypothesisWithPose(IdlStruct, typename="vision_msgs::msg::dds_::ObjectHypothesisWithPose_"):
    hypothesis: ObjectHypothesis
    pose: PoseWithCovariance


@dataclass
class Point2D(IdlStruct, typename="vision_msgs::msg::dds_::Point2D_"):
    x: float64
    y: float64


@dataclass
class Pose2D(IdlStruct, typename="vision_msgs::msg::dds_::Pose2D_"):
    position: Point2D
    theta: float64


@dataclass
class BoundingBox2D(IdlStruct, typename="vision_msgs::msg::dds_::BoundingBox2D_"):
    center: Pose2D
    size_x: float64
    size_y: float64


@dataclass
class Detection2D(IdlStruct, typename="vision_msgs::msg::dds_::Detection2D_"):
    header: Header
    results: sequence[ObjectHypothesisWithPose]
    bbox: BoundingBox2D
    id: str


@dataclass
class Detection2DArray(IdlStruct, typename="vision_msgs::msg::dds_::Detection2DArray_"):
    header: Header
    detections: sequence[Detection2D]
