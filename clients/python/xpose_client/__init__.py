"""Receive the poses that X-Pose Stream publishes, and steer it.

with PoseSubscriber("tcp://127.0.0.1:5555") as subscriber:
    for received in subscriber:
        if received.age_s < 0.2:
            act_on(received.message.tracks)
"""

from xpose_client.control import Control
from xpose_client.control_messages import ExampleImage
from xpose_client.errors import (
    ClientError,
    ControlError,
    EndpointError,
    KeyFileError,
    NoAnswerError,
    SchemaError,
    WireError,
)
from xpose_client.events import Received, SourceState
from xpose_client.messages import (
    SCHEMA,
    PoseMessage,
    SkeletonClass,
    SkeletonMessage,
    StatusMessage,
    TrackMessage,
    decode,
)
from xpose_client.subscriber import PoseSubscriber

__all__ = [
    "SCHEMA",
    "ClientError",
    "Control",
    "ControlError",
    "EndpointError",
    "ExampleImage",
    "KeyFileError",
    "NoAnswerError",
    "PoseMessage",
    "PoseSubscriber",
    "Received",
    "SchemaError",
    "SkeletonClass",
    "SkeletonMessage",
    "SourceState",
    "StatusMessage",
    "TrackMessage",
    "WireError",
    "decode",
]
