"""Faults of live sources: compares the age in the messages with a time code that is drawn into each picture.

    python -m benchmarks.chaos [--only NAME ...] [--soak SECONDS]

Needs GStreamer's RTSP server for the system's Python (the Debian packages in `.ci/run`). Cameras, link and pipeline run
on one machine, so all times come from one clock. Prints a table and writes it to `benchmarks/results/chaos.md`.
`--soak` adds a run with random faults. On a busy machine the times are not reliable, because the camera process is
late, too.
"""

from __future__ import annotations

import argparse
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.synchronize import Event

import numpy as np

from benchmarks._record import RESULTS, commit, record
from benchmarks.chaos.run import Camera, Run, Verdict, has_gstreamer, judge, running
from benchmarks.chaos.subscribers import beside, deaf, flood
from benchmarks.memory import give_back_unused, resident_mib

SLOW_BYTES_PER_S = 15_000
"""A fifth of the rate at which the cameras send."""


@dataclass(frozen=True)
class Scenario:
    """A run with a sequence of faults.

    Attributes:
        name: name in the table and for `--only`.
        seconds: length of the run.
        plan: (second, command) for the first camera; see `Camera.do`.
        faults: options of our own camera (`rtp_camera`), which sends no reports; None for GStreamer's.
        settings: settings of the pipeline.
        direct: connect without the link.
        absent: the camera is absent at the start.
        others: number of further cameras, without faults; the last camera is judged.
        recovered: the command after which new messages are expected.
        beside: what a misbehaving subscriber does at the same time.
    """

    name: str
    seconds: float
    plan: Sequence[tuple[float, str]] = ()
    faults: Sequence[str] | None = None
    settings: Sequence[str] = ()
    direct: bool = False
    absent: bool = False
    others: int = 0
    recovered: str = ""
    beside: Callable[[str, Event], None] | None = None


@dataclass
class Outcome:
    """A verdict with the other measurements."""

    verdict: Verdict
    delays_ms: list[float] = field(default_factory=list)
    memory_mib: float = 0.0
    threads: int = 0
    reconnects: int = 0
    skipped: int = 0


SCENARIOS = (
    Scenario("no fault", 15),
    Scenario("no fault, no reports", 15, faults=()),
    Scenario("server killed and back", 16, ((6, "kill"), (9, "start")), recovered="start"),
    Scenario("connection cut", 12, ((6, "cut"),), recovered="cut"),
    Scenario("stall and burst", 16, ((6, "stall"), (9, "pass")), recovered="pass"),
    Scenario("stall and burst, no reports", 16, ((6, "stall"), (9, "pass")), faults=(), recovered="pass"),
    Scenario("delay of 3 s that stays", 25, ((6, "delay 3"), (18, "pass")), recovered="pass"),
    Scenario("delay of 1 s that stays, no reports", 25, ((8, "delay 1"),), faults=()),
    Scenario("link too slow by a factor of 5", 30, ((6, f"rate {SLOW_BYTES_PER_S}"), (20, "pass")), recovered="pass"),
    Scenario(
        "link too slow by a factor of 5, no reports",
        30,
        ((8, f"rate {SLOW_BYTES_PER_S}"), (20, "pass")),
        faults=(),
        recovered="pass",
    ),
    Scenario(
        "2 % of packets lost (UDP)",
        15,
        faults=("--loss", "0.02"),
        settings=("source.rtsp_transport=udp",),
        direct=True,
    ),
    Scenario("one time stamp an hour ahead", 15, faults=("--wrong-at", "8")),
    Scenario("time stamps jump back by 30 s", 15, faults=("--jump-at", "8", "--jump-by", "-30")),
    Scenario("camera absent at the start", 12, ((5, "start"),), absent=True, recovered="start"),
    Scenario("another camera misbehaves", 16, ((4, "cut"), (5, "stall"), (9, "pass"), (10, "kill")), others=1),
    Scenario("a subscriber does not read", 12, beside=deaf),
    Scenario("subscriptions as fast as possible", 12, beside=flood),
)


def play(scenario: Scenario) -> Outcome:
    """Run a scenario and judge the last camera."""
    cameras = [Camera(faults=scenario.faults, direct=scenario.direct) for _ in range(1 + scenario.others)]
    recovered_ns: int | None = None
    with (
        running(cameras, absent=[0] if scenario.absent else []),
        Run(cameras, scenario.settings) as run,
        beside(scenario.beside, run.endpoint),
    ):
        for at_s, command in scenario.plan:
            _wait_until(run, at_s)
            cameras[0].do(command)
            if command == scenario.recovered:
                recovered_ns = time.monotonic_ns()
        _wait_until(run, scenario.seconds)
        outcome = Outcome(Verdict(0), memory_mib=resident_mib(), threads=threading.active_count())
        outcome.reconnects = run.sources[-1].status.view().reconnects
        outcome.skipped = run.sources[-1].drops["skipped to catch up"]
    camera = len(cameras) - 1
    outcome.verdict = judge(run, camera, recovered_ns=recovered_ns)
    outcome.delays_ms = [(item.received_ns - item.sent_ns) / 1e6 for item in run.of(camera)]
    return outcome


def soak(seconds: float, seed: int = 0) -> dict[str, object]:
    """Run random faults on two cameras; memory and the number of threads must not grow."""
    chance = random.Random(seed)
    cameras = [Camera(), Camera(faults=())]
    samples: list[tuple[float, int]] = []
    with running(cameras), Run(cameras) as run:
        _wait_until(run, 10)
        while time.monotonic_ns() - run.started_ns < seconds * 1e9:
            camera = chance.choice(cameras)
            fault = chance.choice(("cut", "stall", "delay 1", "delay 3", f"rate {SLOW_BYTES_PER_S}", "kill"))
            camera.do(fault)
            time.sleep(chance.uniform(0.5, 6))
            camera.do("start" if fault == "kill" else "pass")
            time.sleep(chance.uniform(1, 8))
            give_back_unused()
            samples.append((resident_mib(), threading.active_count()))
    third = max(1, len(samples) // 3)
    verdicts = [judge(run, camera) for camera in range(2)]
    return {
        "name": f"soak of {seconds:.0f} s with random faults",
        "faults": len(samples),
        "messages": sum(verdict.messages for verdict in verdicts),
        "claimed_beyond_budget": sum(verdict.claimed_beyond_budget for verdict in verdicts),
        "truly_beyond_budget": sum(verdict.truly_beyond_budget for verdict in verdicts),
        "memory_mib_first_third": round(float(np.median([mib for mib, _ in samples[:third]])), 1),
        "memory_mib_last_third": round(float(np.median([mib for mib, _ in samples[-third:]])), 1),
        "threads_first": samples[0][1],
        "threads_last": samples[-1][1],
    }


def main() -> None:
    """Run the scenarios, print and record the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", help="scenarios whose names contain one of these words")
    parser.add_argument("--soak", type=float, default=0.0, help="seconds of random faults at the end")
    options = parser.parse_args()
    if not has_gstreamer():
        parser.error("GStreamer's RTSP server is missing; install the Debian packages that .ci/run names")
    rows: list[dict[str, object]] = []
    for scenario in SCENARIOS:
        if not options.only or any(word in scenario.name for word in options.only):
            rows.append(row_of(scenario, play(scenario)))
            print(rows[-1], flush=True)
    table = as_table(rows)
    if options.soak:
        rows.append(soak(options.soak))
        print(rows[-1])
    print(table)
    if not options.only:
        (RESULTS / "chaos.md").write_text(f"{table}\nCommit {commit()}.\n", encoding="utf-8")
        print(record("chaos", rows))


def row_of(scenario: Scenario, outcome: Outcome) -> dict[str, object]:
    """One line of the table."""
    verdict = outcome.verdict
    younger_s, delays_ms = np.array(verdict.younger_s or [np.nan]), np.array(outcome.delays_ms or [np.nan])
    return {
        "name": scenario.name,
        "messages": verdict.messages,
        "younger_p50_s": round(float(np.percentile(younger_s, 50)), 3),
        "younger_p95_s": round(float(np.percentile(younger_s, 95)), 3),
        "younger_worst_s": round(float(younger_s.max()), 3),
        "older_worst_s": round(float(-younger_s.min()), 3),
        "claimed_beyond_budget": verdict.claimed_beyond_budget,
        "truly_beyond_budget": verdict.truly_beyond_budget,
        "share": round(verdict.share, 3),
        "recovery_s": None if verdict.recovery_s is None else round(verdict.recovery_s, 2),
        "publish_to_receipt_p50_ms": round(float(np.percentile(delays_ms, 50)), 2),
        "reconnects": outcome.reconnects,
        "skipped": outcome.skipped,
        "memory_mib": round(outcome.memory_mib, 1),
    }


def as_table(rows: Sequence[dict[str, object]]) -> str:
    """The rows as Markdown."""
    titles = {
        "name": "scenario",
        "messages": "messages",
        "younger_p50_s": "claimed younger than true, p50 (s)",
        "younger_p95_s": "p95 (s)",
        "younger_worst_s": "worst (s)",
        "claimed_beyond_budget": "beyond the budget",
        "truly_beyond_budget": "beyond it in truth",
        "share": "share published",
        "recovery_s": "fresh again after (s)",
        "publish_to_receipt_p50_ms": "publish to receipt, p50 (ms)",
        "reconnects": "reconnects",
        "skipped": "packets skipped",
        "memory_mib": "memory (MiB)",
    }
    lines = ["| " + " | ".join(titles.values()) + " |", "|" + "---|" * len(titles)]
    lines += ["| " + " | ".join("" if row[key] is None else str(row[key]) for key in titles) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _wait_until(run: Run, second: float) -> None:
    time.sleep(max(0.0, second - (time.monotonic_ns() - run.started_ns) / 1e9))


if __name__ == "__main__":
    main()
