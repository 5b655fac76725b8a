"""Accuracy of coasting tracks: true poses are hidden for a while and compared with the published predictions.

Every sequence is shown for 16 frames and then hidden for some frames, again and again, and this is repeated with four
offsets. The keypoints of the last visible frame are compared. The settings were tuned on the Bonn sequences 0000* and
the first half of sleap_clip. The tables show the other Bonn sequences and the second half of the clip.

Legend: T tracks, K keypoints, E errors of many keypoints and frames.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import ceil, log

import numpy as np

from benchmarks.tracking.data import Floats, PoseSequence, bonn_sequences, pose_sequence, shared_folder
from trackers import Detections, Tracker, TrackerConfig, Tracks

HIDDEN_S = (0.1, 0.2, 0.4)
_VISIBLE_FRAMES = 16
_OFFSETS = (0, 4, 8, 12)
_ELLIPSE = -2.0 * log(0.1)  # squared radius of the 90 % ellipse, in standard deviations
PREDICTIONS = ("ours", "constant velocity (before)", "rigid with the box")


@dataclass(slots=True)
class Tally:
    """Errors in px, and whether the truth was inside the published 90 % ellipse."""

    errors: dict[str, list[Floats]] = field(default_factory=lambda: {name: [] for name in PREDICTIONS})
    coasting_inside: list[Floats] = field(default_factory=list)
    measured_inside: list[Floats] = field(default_factory=list)

    def mean_error(self, name: str) -> float:
        """Mean distance from the truth, px."""
        return float(np.mean(np.concatenate(self.errors[name])))

    @staticmethod
    def share(inside: Sequence[Floats]) -> float:
        """Percentage inside."""
        return 100.0 * float(np.mean(np.concatenate(inside)))


@dataclass(frozen=True, slots=True)
class _LastSeen:
    """A track in its last measured frame."""

    person: int
    frame: int
    box_4: Floats
    keypoints_K2: Floats
    velocity_K2: Floats


def tuning_split(tuned: bool) -> list[tuple[str, list[PoseSequence]]]:
    """The sequences that the settings were tuned on, or the others."""
    bonn = [sequence for sequence in bonn_sequences() if sequence.name.startswith("0000") == tuned]
    clip = pose_sequence(shared_folder() / "tracks" / "sleap_clip_gt.json.gz", 25.0)
    middle = len(clip.ids) // 2
    part = slice(0, middle) if tuned else slice(middle, None)
    return [("Bonn", bonn), ("sleap_clip", [replace(clip, ids=clip.ids[part], keypoints=clip.keypoints[part])])]


def hide(
    sequence: PoseSequence, noise_px: float, hidden_s: float, offset: int, config: TrackerConfig, tally: Tally
) -> None:
    """Run the tracker over one sequence and add to the tally."""
    rng = np.random.default_rng(offset)
    hidden_frames = ceil(hidden_s * sequence.fps)
    lifecycle = replace(config.lifecycle, coast_s=(hidden_frames + 0.5) / sequence.fps)
    tracker = Tracker(replace(config, lifecycle=lifecycle))
    seen: dict[int, _LastSeen] = {}
    for frame, truth in enumerate(sequence.keypoints):
        hidden = (frame + offset) % (_VISIBLE_FRAMES + hidden_frames) >= _VISIBLE_FRAMES
        shown = truth + rng.normal(0.0, noise_px, truth.shape) if not hidden else np.empty((0, *truth.shape[1:]))
        detections = Detections.of(np.full((len(shown), 4), np.nan), keypoints=shown)
        tracks = tracker.update(detections, frame / sequence.fps)
        if hidden:
            _judge_coasting(sequence, frame, tracks, seen, tally)
        else:
            seen = _judge_measured(sequence, frame, tracks, tally)


def _judge_measured(sequence: PoseSequence, frame: int, tracks: Tracks, tally: Tally) -> dict[int, _LastSeen]:
    """Add the measured keypoints of one frame; return its tracks."""
    seen = {}
    for row, detection in enumerate(tracks.detection_T):
        if detection < 0:
            continue
        truth_K2 = sequence.keypoints[frame][detection]
        tally.measured_inside.append(_inside(tracks, row, truth_K2)[tracks.measured_TK[row]])
        keypoints_K2 = np.where(tracks.measured_TK[row, :, None], tracks.keypoints_predicted_TK2[row], np.nan)
        person = int(sequence.ids[frame][detection])
        seen[int(tracks.ids_T[row])] = _LastSeen(
            person, frame, tracks.boxes_T4[row], keypoints_K2, tracks.velocity_TK2[row]
        )
    return seen


def _judge_coasting(
    sequence: PoseSequence, frame: int, tracks: Tracks, seen: dict[int, _LastSeen], tally: Tally
) -> None:
    """Add the coasting keypoints of one frame."""
    for row, track_id in enumerate(tracks.ids_T.tolist()):
        last = seen.get(track_id)
        if last is None or last.person not in sequence.ids[frame]:
            continue
        truth_K2 = sequence.keypoints[frame][list(sequence.ids[frame]).index(last.person)]
        known_K = ~np.isnan(truth_K2[:, 0]) & ~np.isnan(last.keypoints_K2[:, 0])
        elapsed_s = (frame - last.frame) / sequence.fps
        predictions = (
            tracks.keypoints_predicted_TK2[row],
            last.keypoints_K2 + elapsed_s * last.velocity_K2,
            _held(last.keypoints_K2, last.box_4, tracks.boxes_T4[row]),
        )
        for name, predicted_K2 in zip(PREDICTIONS, predictions, strict=True):
            tally.errors[name].append(np.linalg.norm(predicted_K2 - truth_K2, axis=1)[known_K])
        tally.coasting_inside.append(_inside(tracks, row, truth_K2)[known_K])


def _held(keypoints_K2: Floats, before_4: Floats, now_4: Floats) -> Floats:
    """Return the pose moved and scaled with its box."""
    share_K2 = (keypoints_K2 - before_4[:2]) / (before_4[2:] - before_4[:2])
    return np.asarray(now_4[:2] + share_K2 * (now_4[2:] - now_4[:2]))


def _inside(tracks: Tracks, row: int, truth_K2: Floats) -> Floats:
    """Return 1 if the truth is inside the 90 % ellipse of the published covariance, else 0, per keypoint."""
    x_K, y_K = (truth_K2 - tracks.keypoints_predicted_TK2[row]).T
    xx_K, xy_K, yy_K = tracks.covariance_TK3[row].T
    squared_K = (yy_K * x_K**2 - 2.0 * xy_K * x_K * y_K + xx_K * y_K**2) / (xx_K * yy_K - xy_K**2)
    return np.asarray(squared_K <= _ELLIPSE, np.float64)


def coasting_scores(config: TrackerConfig, tuned: bool = False) -> Iterator[tuple[str, float, float, Tally]]:
    """Yield data, noise in px, hidden time in s, tally."""
    noises = {"Bonn": (0.0, 3.0, 10.0), "sleap_clip": (0.0, 0.5, 2.0)}
    for name, sequences in tuning_split(tuned):
        for noise_px in noises[name]:
            for hidden_s in HIDDEN_S:
                tally = Tally()
                for sequence in sequences:
                    for offset in _OFFSETS:
                        hide(sequence, noise_px, hidden_s, offset, config, tally)
                yield name, noise_px, hidden_s, tally
