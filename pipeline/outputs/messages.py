"""Makes messages from tracks and prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.frames import FrameTracks
from xpose_client.host import boot_id
from xpose_client.messages import SCHEMA, PoseMessage, SkeletonClass, SkeletonMessage, TrackMessage

if TYPE_CHECKING:
    from engines.prompts import PromptClass
    from trackers import Tracks

_HOST = boot_id()


def pose_message(tracked: FrameTracks, *, session: int, seq: int, publish_unix_ns: int) -> PoseMessage:
    """Make the message of one frame."""
    frame = tracked.frame
    prompts = tracked.detections.prompts
    return PoseMessage(
        schema=SCHEMA,
        session=session,
        seq=seq,
        source=frame.source,
        frame=frame.index,
        file=frame.file,
        pts_s=frame.pts_s,
        source_pts_s=frame.source_pts_s,
        host=frame.recorded.host if frame.recorded else _HOST,
        capture_clock=frame.capture_clock,
        capture_unix_ns=frame.capture_unix_ns,
        capture_monotonic_ns=frame.capture_monotonic_ns,
        capture_uncertainty_s=frame.capture_uncertainty_s,
        lag_s=frame.lag_s,
        publish_unix_ns=publish_unix_ns,
        width=frame.width,
        height=frame.height,
        prompt_id=tracked.detections.prompt_id,
        tracks=_track_messages(tracked.tracks, prompts),
        replay=frame.recorded is not None,
    )


def skeleton_message(
    prompts: tuple[PromptClass, ...],
    prompt_id: int,
    *,
    source: str,
    session: int,
    publish_unix_ns: int,
    replay: bool = False,
) -> SkeletonMessage:
    """Make the message that names the keypoints of `prompts`."""
    classes = [
        SkeletonClass(prompt.name, list(prompt.skeleton.keypoints), list(prompt.skeleton.edges)) for prompt in prompts
    ]
    return SkeletonMessage(SCHEMA, session, source, prompt_id, publish_unix_ns, classes, replay)


def _track_messages(tracks: Tracks, prompts: Sequence[PromptClass]) -> list[TrackMessage]:
    """Turn the rows of a frame's tracks into messages.

    Each array is rounded and converted once for the whole frame: a numpy call per track would take most of the time.
    Columns beyond the number of keypoints of a class are dropped.
    """
    unknown_TK1 = np.isnan(tracks.keypoints_predicted_TK2[:, :, :1])  # never measured: no velocity, no covariance
    columns = zip(
        tracks.ids_T.tolist(),
        [prompts[index] for index in tracks.classes_T.tolist()],
        tracks.scores_T.round(5).tolist(),
        tracks.boxes_T4.round(3).tolist(),
        tracks.measured_T.tolist(),
        _rows(tracks.keypoints_raw_TK2),
        _rows(tracks.keypoints_TK2),
        _rows(tracks.keypoints_predicted_TK2),
        _rows(np.where(unknown_TK1, np.nan, tracks.velocity_TK2)),
        _rows(np.where(unknown_TK1, np.nan, tracks.covariance_TK3)),
        tracks.measured_TK.tolist(),
        strict=True,
    )
    messages = []
    for track_id, prompt, score, box, measured, raw, smoothed, predicted, velocity, covariance, measured_K in columns:
        count = len(prompt.skeleton.keypoints)
        messages.append(
            TrackMessage(
                id=track_id,
                class_name=prompt.name,
                score=score,
                box_xyxy=tuple(box),
                keypoints_raw=list(map(tuple, raw[:count])),
                keypoints=list(map(tuple, smoothed[:count])),
                keypoints_predicted=list(map(tuple, predicted[:count])),
                keypoints_velocity=list(map(tuple, velocity[:count])),
                keypoints_covariance=list(map(tuple, covariance[:count])),
                keypoints_measured=measured_K[:count],
                measured=measured,
            )
        )
    return messages


def _rows(numbers_TKD: NDArray[np.float64]) -> list[Any]:
    """Round to 0.001, and replace NaN and infinity by None, because JSON has no such numbers."""
    rounded_TKD = numbers_TKD.round(3)
    finite_TKD = np.isfinite(rounded_TKD)
    if finite_TKD.all():
        return list(rounded_TKD.tolist())
    values_TKD = rounded_TKD.astype(object)
    values_TKD[~finite_TKD] = None
    return list(values_TKD.tolist())
