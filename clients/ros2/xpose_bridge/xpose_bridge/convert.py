"""Messages of the wire as messages of ROS 2. What does not exist is null on the wire and NaN here."""

import math
import time
from collections.abc import Iterable
from itertools import chain

from xpose_bridge import types
from xpose_client import PoseMessage, Received, SkeletonMessage, SourceState, TrackMessage


def poses(received: Received, skeletons: SkeletonMessage | None) -> types.Poses:
    """Return all tracks of one frame. Keypoints have no names while `skeletons` is on its way (None)."""
    message = received.message
    names = {} if skeletons is None else {entry.name: entry.keypoints for entry in skeletons.classes}
    return types.Poses(
        header=_header(message.capture_unix_ns, message.source),
        session=message.session,
        seq=message.seq,
        frame=message.frame,
        age_s=received.age_s,
        capture_clock=message.capture_clock,
        capture_uncertainty_s=_number(message.capture_uncertainty_s),
        lag_s=_number(message.lag_s),
        width=message.width,
        height=message.height,
        prompt_id=message.prompt_id,
        replay=message.replay,
        tracks=[_track(track, names.get(track.class_name, [""] * len(track.keypoints))) for track in message.tracks],
    )


def detections(message: PoseMessage) -> types.Detection2DArray:
    """Return the boxes of one frame. The id of a detection is that of its track."""
    header = _header(message.capture_unix_ns, message.source)
    return types.Detection2DArray(header, [_detection(track, header) for track in message.tracks])


def skeletons(message: SkeletonMessage) -> types.Skeletons:
    """Return the keypoints and edges of all prompted classes."""
    classes = [
        types.SkeletonClass(entry.name, list(entry.keypoints), list(chain.from_iterable(entry.edges)))
        for entry in message.classes
    ]
    header = _header(message.publish_unix_ns, message.source)
    return types.Skeletons(header, message.session, message.prompt_id, classes)


def source_status(change: SourceState) -> types.SourceStatus:
    """Return a change of a source's state; that of a silent publisher is stamped by this machine."""
    status = change.status
    stamp_ns = status.since_unix_ns if change.state == status.state else time.time_ns()
    return types.SourceStatus(
        header=_header(stamp_ns, change.source),
        state=change.state,
        frame_rate=status.frame_rate,
        lag_s=_number(status.lag_s),
        last_error=status.last_error or "",
    )


def _track(track: TrackMessage, names: list[str]) -> types.Track:
    columns = zip(
        names, track.keypoints_raw, track.keypoints, track.keypoints_predicted, track.keypoints_velocity,
        track.keypoints_covariance, track.keypoints_measured, strict=True,
    )  # fmt: skip
    keypoints = [
        types.Keypoint(
            name=name,
            raw=_numbers(raw),
            smoothed=_numbers(smoothed),
            predicted=_numbers(predicted),
            velocity=_numbers(velocity),
            covariance=_numbers(covariance),
            measured=measured,
        )
        for name, raw, smoothed, predicted, velocity, covariance, measured in columns
    ]
    return types.Track(track.id, track.class_name, track.score, track.measured, list(track.box_xyxy), keypoints)


def _detection(track: TrackMessage, header: types.Header) -> types.Detection2D:
    left, top, right, bottom = track.box_xyxy
    centre = types.Pose2D(types.Point2D((left + right) / 2, (top + bottom) / 2), 0.0)
    unknown = types.PoseWithCovariance(
        types.Pose(types.Point(0.0, 0.0, 0.0), types.Quaternion(0.0, 0.0, 0.0, 1.0)), [0.0] * 36
    )
    hypothesis = types.ObjectHypothesis(track.class_name, track.score)
    return types.Detection2D(
        header=header,
        results=[types.ObjectHypothesisWithPose(hypothesis, unknown)],
        bbox=types.BoundingBox2D(centre, right - left, bottom - top),
        id=str(track.id),
    )


def _header(unix_ns: int, source: str) -> types.Header:
    seconds, nanoseconds = divmod(unix_ns, 10**9)
    return types.Header(types.Time(seconds, nanoseconds), source)


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _numbers(values: Iterable[float | None]) -> list[float]:
    return [_number(value) for value in values]
