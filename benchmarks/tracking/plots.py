"""The PNG plots of the tracking benchmark."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.tracking.boxes import track_boxes
from benchmarks.tracking.data import box_sequences
from benchmarks.tracking.smoothing import ONE_EURO_TUNED, Result, methods, network_streams
from trackers import TrackerConfig

_SIZE_INCHES = (10.0, 3.6)
_DPI = 80


def plot_trajectories(config: TrackerConfig, path: Path) -> None:
    """Raw against smoothed, a second of each noise stream."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
    for axes, stream in zip(figure.subplots(1, 3), network_streams(), strict=True):
        shown = slice(100, 170)
        times = stream.times_s_F[shown]
        axes.plot(times, stream.noisy_SFK2[0, shown, 0, 0], ".", color="0.6", label="raw")
        for name in ("ours (default: fixed_lag)", "One-Euro tuned"):
            smoothed, _ = methods(config)[name](stream)
            axes.plot(times, smoothed[0, shown, 0, 0], label=name, linewidth=1.2)
        axes.set_title(stream.name)
        axes.set_xlabel("s")
        axes.set_ylabel("x, px")
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=_DPI)


def plot_timeline(config: TrackerConfig, path: Path) -> None:
    """When each id of a crowded sequence was measured."""
    from matplotlib.figure import Figure

    sequence = next(s for s in box_sequences("mot17_open.zip") if s.name == "MOT17-09")
    rows = [(frame, i) for frame, (ids, _) in track_boxes(sequence, config).items() for i in ids.tolist()]
    frames, ids = np.array(rows).T
    order = {value: place for place, value in enumerate(dict.fromkeys(ids.tolist()))}
    figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
    axes = figure.subplots()
    axes.scatter(frames / sequence.fps, [order[value] for value in ids.tolist()], s=2, c=ids % 20, cmap="tab20")
    axes.set_title(f"{sequence.name}, second half: ids over time")
    axes.set_xlabel("s")
    axes.set_ylabel("id, in order of appearance")
    figure.savefig(path, dpi=_DPI)


def plot_trade_off(curves: dict[str, dict[str, list[Result]]], path: Path) -> None:
    """Jitter against position error, both relative to raw; the goal is the shaded corner."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
    for axes, (stream, families) in zip(figure.subplots(1, 3), curves.items(), strict=True):
        for family, results in families.items():
            axes.plot([r.jitter for r in results], [r.error for r in results], ".-", label=family)
        tuned = families["One-Euro"]
        reference = next(r for r, beta in zip(tuned, (2.0, 1.0, 0.5), strict=False) if beta == ONE_EURO_TUNED.beta)
        axes.axvspan(0.0, 0.7 * reference.jitter, ymax=(1.10 - 0.9) / (1.8 - 0.9), alpha=0.15, color="green")
        axes.set_xlim(0.0, 1.05)
        axes.set_ylim(0.9, 1.8)
        axes.set_title(stream)
        axes.set_xlabel("jitter / raw")
        axes.set_ylabel("position error / raw")
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=_DPI)
