"""Makes all tables and plots of tracking and smoothing. The other trackers are called peers.

    python -m benchmarks.tracking --peers-python PEERS/bin/python

The peers need their own environment, once:  python3.11 -m venv PEERS && PEERS/bin/pip install trackers==2.6.1
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np

from benchmarks.tracking.boxes import box_scores
from benchmarks.tracking.coasting import PREDICTIONS, coasting_scores
from benchmarks.tracking.plots import plot_timeline, plot_trade_off, plot_trajectories
from benchmarks.tracking.poses import pose_scores
from benchmarks.tracking.smoothing import smoothing_scores, trade_off
from benchmarks.tracking.speed import box_times, memory_kib, pose_times
from trackers import TrackerConfig

RESULTS = Path(__file__).resolve().parents[1] / "results"


def write_boxes(config: TrackerConfig, peers_python: str | None, folder: Path) -> str:
    """HOTA, IDF1, MOTA and switches of every tracker, data set and column."""
    lines = ["| data | frames | tracker | HOTA / IDF1 / MOTA / switches | DetA | AssA |", "|---|---|---|---|---|---|"]
    for data, column, tracker, scores in box_scores(config, peers_python):
        lines.append(f"| {data} | {column} | {tracker} | {scores} | {scores.det_a:.1f} | {scores.ass_a:.1f} |")
    return "\n".join(lines)


def write_poses(config: TrackerConfig, peers_python: str | None, folder: Path) -> str:
    """Identities of the Bonn poses."""
    lines = ["| frame rate | tracker | HOTA / IDF1 / MOTA / switches |", "|---|---|---|"]
    lines += [f"| {rate} | {tracker} | {scores} |" for rate, tracker, scores in pose_scores(config)]
    return "\n".join(lines)


def write_coasting(config: TrackerConfig, peers_python: str | None, folder: Path) -> str:
    """Position error of hidden keypoints, px, and the share of the truth inside the published 90 % ellipses."""
    names = " | ".join(PREDICTIONS)
    lines = [f"| data | noise, px | hidden, s | {names} | inside, coasting | inside, measured |", "|---" * 8 + "|"]
    for data, noise_px, hidden_s, tally in coasting_scores(config):
        errors = " | ".join(f"{tally.mean_error(name):.2f}" for name in PREDICTIONS)
        inside = f"{tally.share(tally.coasting_inside):.1f} % | {tally.share(tally.measured_inside):.1f} %"
        lines.append(f"| {data} | {noise_px:g} | {hidden_s:g} | {errors} | {inside} |")
    return "\n".join(lines)


def write_smoothing(config: TrackerConfig, peers_python: str | None, folder: Path) -> str:
    """Position error, jitter and lag; the Bonn sequences together, then the worst of them; three plots."""
    lines = ["| stream | method | position error / raw | jitter / raw | lag, ms |", "|---|---|---|---|---|"]
    bonn: dict[str, list[float]] = {}
    for stream, method, result in smoothing_scores(config):
        if stream.startswith("bonn"):
            bonn.setdefault(method, []).append(result.error)
        else:
            lines.append(f"| {stream} | {method} | {result.error:.3f} | {result.jitter:.3f} | {result.lag_ms:.1f} |")
    for method, errors in bonn.items():
        worst = f"{np.mean(errors):.3f} (worst sequence {max(errors):.3f})"
        lines.append(f"| Bonn + 10 px, mean of {len(errors)} | {method} | {worst} | | |")
    plot_trade_off(trade_off(config), folder / "tracking_trade_off.png")
    plot_trajectories(config, folder / "tracking_trajectories.png")
    plot_timeline(config, folder / "tracking_ids.png")
    return "\n".join(lines)


def write_speed(config: TrackerConfig, peers_python: str | None, folder: Path) -> str:
    """Microseconds per update."""
    lines = ["| input | tracker | median, µs | p99, µs |", "|---|---|---|---|"]
    for count, samples in pose_times(config):
        lines.append(_speed_row(f"{count} people x 17 keypoints", "ours", samples))
    for tracker, (low, high), samples in box_times(config, peers_python):
        lines.append(_speed_row(f"{low}-{high} boxes", tracker, samples))
    return "\n".join(lines)


def _speed_row(what: str, tracker: str, samples: np.ndarray) -> str:
    return f"| {what} | {tracker} | {np.median(samples):.0f} | {np.percentile(samples, 99):.0f} |"


def write_memory(config: TrackerConfig, peers_python: str | None, folder: Path) -> str:
    """Memory over 100,000 frames of constant births and deaths."""
    lines = ["| frame | traced memory, KiB |", "|---|---|"]
    lines += [f"| {frame} | {kib:.0f} |" for frame, kib in memory_kib(config)]
    return "\n".join(lines)


PARTS: dict[str, Callable[[TrackerConfig, str | None, Path], str]] = {
    "boxes": write_boxes,
    "poses": write_poses,
    "coasting": write_coasting,
    "smoothing": write_smoothing,
    "speed": write_speed,
    "memory": write_memory,
}


def header() -> str:
    """Commit, machine and versions."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    versions = ", ".join(f"{name} {version(name)}" for name in ("numpy", "scipy", "trackeval"))
    return (
        f"commit {commit.stdout.strip()}, {platform.machine()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, {versions}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers-python", help="python of the peers' environment; without it the peers are left out")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the tables and plots")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="which tables")
    options = parser.parse_args()
    options.results.mkdir(parents=True, exist_ok=True)
    for part in options.parts:
        table = PARTS[part](TrackerConfig(), options.peers_python, options.results)
        text = f"# Tracking: {part}\n\n{PARTS[part].__doc__}\n{header()}\n\n{table}\n"
        (options.results / f"tracking_{part}.md").write_text(text)
        print(text, flush=True)


if __name__ == "__main__":
    main()
