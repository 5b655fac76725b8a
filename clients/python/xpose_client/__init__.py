"""Receive the poses that X-Pose Stream publishes.

with PoseSubscriber("tcp://127.0.0.1:5555") as subscriber:
    for received in subscriber:
        if received.age_s < 0.2:
            act_on(received.message.tracks)
"""

from xpose_client.errors import ClientError, EndpointError, SchemaError, WireError
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
    "EndpointError",
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
