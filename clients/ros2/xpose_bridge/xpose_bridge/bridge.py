"""The bridge: subscribes to a publisher and writes DDS topics that ROS 2 reads.

    xpose-bridge tcp://127.0.0.1:5555 [--source cam1] [--domain 0]

For a source `cam1` it writes four topics. ROS 2 shows them without the `rt`, which is its prefix in DDS.

    rt/xpose/cam1/poses        xpose_msgs/Poses               best effort, newest only
    rt/xpose/cam1/detections   vision_msgs/Detection2DArray   best effort, newest only
    rt/xpose/cam1/skeletons    xpose_msgs/Skeletons           reliable, kept for late joiners
    rt/xpose/cam1/status       xpose_msgs/SourceStatus        reliable, kept for late joiners
"""

import argparse
import os
import re
import sys
from types import TracebackType
from typing import Any

from cyclonedds.core import Policy, Qos
from cyclonedds.domain import DomainParticipant
from cyclonedds.pub import DataWriter
from cyclonedds.topic import Topic
from cyclonedds.util import duration

from xpose_bridge import convert, types
from xpose_client import ClientError, PoseSubscriber, Received, SourceState

_CDR = Policy.DataRepresentation(use_cdrv0_representation=True, use_xcdrv2_representation=False)  # ROS 2 reads XCDR 1
NEWEST = Qos(Policy.Reliability.BestEffort, Policy.Durability.Volatile, Policy.History.KeepLast(1), _CDR)
KEPT = Qos(
    Policy.Reliability.Reliable(duration(milliseconds=100)), Policy.Durability.TransientLocal,
    Policy.History.KeepLast(1), _CDR,
)  # fmt: skip
TOPICS: dict[str, tuple[type, Qos]] = {
    "poses": (types.Poses, NEWEST),
    "detections": (types.Detection2DArray, NEWEST),
    "skeletons": (types.Skeletons, KEPT),
    "status": (types.SourceStatus, KEPT),
}


class Bridge:
    """Reads one publisher and writes to one DDS domain. Belongs to one thread.

    Args:
        endpoint: the publisher's ZeroMQ address.
        source: bridge this source alone; None for all.
        domain: ROS 2's domain id.
    """

    def __init__(self, endpoint: str, *, source: str | None = None, domain: int = 0) -> None:
        self._participant = DomainParticipant(domain)
        self._subscriber = PoseSubscriber(endpoint, source=source)
        self._writers: dict[str, DataWriter[Any]] = {}
        self._prompts: dict[str, tuple[int, int]] = {}

    def step(self, timeout_s: float | None = None) -> bool:
        """Pass on one pose message or change of state; return False if none comes within `timeout_s`."""
        event = self._subscriber.receive_event(timeout_s)
        self._pass_skeletons()
        if isinstance(event, SourceState):
            self._write(event.source, "status", convert.source_status(event))
        elif isinstance(event, Received):
            message = event.message
            self._write(message.source, "poses", convert.poses(event, self._subscriber.skeleton(message)))
            self._write(message.source, "detections", convert.detections(message))
        return event is not None

    def close(self) -> None:
        """Leave the DDS domain and disconnect."""
        self._subscriber.close()
        self._writers.clear()
        del self._participant

    def __enter__(self) -> "Bridge":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _pass_skeletons(self) -> None:
        for source, message in self._subscriber.skeletons.items():
            prompts = (message.session, message.prompt_id)
            if self._prompts.get(source) != prompts:
                self._prompts[source] = prompts
                self._write(source, "skeletons", convert.skeletons(message))

    def _write(self, source: str, what: str, message: object) -> None:
        name = topic_name(source, what)
        if name not in self._writers:
            kind, qos = TOPICS[what]
            self._writers[name] = DataWriter(self._participant, Topic(self._participant, name, kind), qos)
        self._writers[name].write(message)


def topic_name(source: str, what: str) -> str:
    """Return the DDS name of a topic. ROS 2 allows letters, digits and _ between slashes, and no digit in front."""
    parts = [re.sub(r"[^A-Za-z0-9_]", "_", part) for part in source.split("/") if part]
    legal = [f"_{part}" if part[0].isdigit() else part for part in parts]
    return "/".join(["rt", "xpose", *legal, what])


def main() -> None:
    """Run until Ctrl-C."""
    parser = argparse.ArgumentParser(description="Publish the poses of X-Pose Stream to ROS 2.")
    parser.add_argument("endpoint", help="the publisher's address, such as tcp://127.0.0.1:5555")
    parser.add_argument("--source", help="bridge only this source")
    parser.add_argument("--domain", type=int, default=int(os.environ.get("ROS_DOMAIN_ID", "0")), help="ROS 2's domain")
    options = parser.parse_args()
    try:
        with Bridge(options.endpoint, source=options.source, domain=options.domain) as bridge:
            while True:
                bridge.step()
    except ClientError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
