"""Our tracker and the peers on MOT17 and DanceTrack, with the same detections: all frames, and a part of them."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.tracking.data import TUNED_ON_DANCETRACK, BoxSequence, Floats, box_sequences, thinned
from benchmarks.tracking.scores import Scores, compare_boxes, score
from trackers import Detections, Tracker, TrackerConfig

COLUMNS = ("full", "half", "quarter", "dropped")
PEERS_SCRIPT = Path(__file__).with_name("peers.py")


def track_boxes(sequence: BoxSequence, config: TrackerConfig) -> dict[int, tuple[np.ndarray, Floats]]:
    """Run our tracker from a cold start; return the measured tracks of each frame, as the peers do."""
    tracker = Tracker(config)
    results = {}
    for frame in sequence.frames:
        boxes_N4, scores_N = sequence.detections(frame)
        tracks = tracker.update(Detections(boxes_N4, scores_N, np.zeros(len(scores_N), np.int64)), frame / sequence.fps)
        results[frame] = (tracks.ids_T[tracks.measured_T], tracks.boxes_T4[tracks.measured_T])
    return results


def peers_job(sequences: Sequence[BoxSequence], path: Path) -> None:
    """Write the detections of all sequences for `peers.py`."""
    tables, shown = [], []
    for index, sequence in enumerate(sequences):
        for frame in sequence.frames:
            boxes_N4, scores_N = sequence.detections(frame)
            head = np.broadcast_to([float(index), float(frame)], (len(scores_N), 2))
            tables.append(np.concatenate((head, boxes_N4, scores_N[:, None]), axis=1))
            shown.append((index, frame))
    np.savez(path, detections=np.concatenate(tables), shown=np.array(shown))


def run_peers(action: str, sequences: Sequence[BoxSequence], peers_python: str) -> dict[str, np.ndarray]:
    """Run `peers.py` in its own environment and process."""
    with tempfile.TemporaryDirectory() as folder:
        job, out = Path(folder) / "job.npz", Path(folder) / "out.npz"
        peers_job(sequences, job)
        subprocess.run([peers_python, str(PEERS_SCRIPT), action, str(job), str(out)], check=True, cwd=folder)
        with np.load(out) as content:
            return {name: content[name] for name in content.files}


def _score_peers(sequences: Sequence[BoxSequence], peers_python: str) -> dict[str, Scores]:
    result = {}
    for name, table in run_peers("track", sequences, peers_python).items():
        comparisons = []
        for index, sequence in enumerate(sequences):
            rows = table[table[:, 0] == index]
            frames = {
                int(frame): (rows[rows[:, 1] == frame, 2].astype(np.int64), rows[rows[:, 1] == frame, 3:])
                for frame in np.unique(rows[:, 1])
            }
            comparisons.append(compare_boxes(sequence, frames))
        result[name] = score(comparisons)
    return result


def box_scores(config: TrackerConfig, peers_python: str | None) -> Iterator[tuple[str, str, str, Scores]]:
    """Yield data set, column, tracker, scores; every row of one column saw the same frames."""
    sets = {"MOT17": box_sequences("mot17_open.zip"), "DanceTrack": box_sequences("dancetrack_open.zip")}
    for name, sequences in sets.items():
        for column in COLUMNS:
            shown = [thinned(sequence, column) for sequence in sequences]
            comparisons = [compare_boxes(sequence, track_boxes(sequence, config)) for sequence in shown]
            yield name, column, "ours", score(comparisons)
            if name == "DanceTrack":
                unseen = [c for s, c in zip(shown, comparisons, strict=True) if s.name not in TUNED_ON_DANCETRACK]
                yield "DanceTrack, the 8 not tuned on", column, "ours", score(unseen)
            if peers_python is None:
                continue
            for tracker, scores in _score_peers(shown, peers_python).items():
                yield name, column, tracker, scores
            if name == "DanceTrack" and column == "full":
                for tracker, scores in _score_peers([_without_doubtful(s) for s in shown], peers_python).items():
                    yield name, column, f"{tracker}, detections below 0.5 dropped", scores


def _without_doubtful(sequence: BoxSequence) -> BoxSequence:
    return replace(sequence, detections_R=sequence.detections_R[sequence.detections_R[:, 6] >= 0.5])
