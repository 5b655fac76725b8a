"""Simulated cameras and links for the tests of the capture clock: true capture times are known by construction."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from pipeline.sources.clock import Arrival, PictureClock, Stamp

BOOT_NS = 5_000_000_000_000
REPORTS_S = 5.0
UNIX_NS = 1_700_000_000_000_000_000


@dataclass
class Link:
    """A camera with a clock, and a first-in-first-out link to this machine.

    Attributes:
        rate: pictures a second.
        drift: rate error of the camera's clock.
        base_s: delay of the empty link.
        jitter_s: largest random delay on top.
        lag: extra delay that a picture captured at this time (s) gets on its way.
        stated: the stamp of picture `index` of time `camera_s`; the camera's own time by default.
        reports_from_s: when the first sender report comes, and then one every 5 s; None for a camera without. A report
            ties the stamps to the wall clock: when they jump, times are off by the jump until the next report.
        clock_error_s: the camera's wall clock minus the true time.
    """

    rate: float = 30.0
    drift: float = 0.0
    base_s: float = 0.04
    jitter_s: float = 0.004
    lag: Callable[[float], float] = lambda captured_s: 0.0
    stated: Callable[[int, float], float | None] = lambda index, camera_s: camera_s
    reports_from_s: float | None = None
    clock_error_s: float = 0.0
    size: Callable[[int], int] = lambda index: 1000
    seed: int = 0
    arrived_s: float = field(default=0.0, init=False)

    def arrivals(self, seconds: float, start_s: float = 0.0) -> Iterator[tuple[float, Arrival]]:
        """Yield (true capture time, arrival) of each picture."""
        rng = np.random.default_rng(self.seed)
        last_report, off_at_report_s = -1.0, 0.0
        for index in range(round(seconds * self.rate)):
            captured_s = start_s + index / self.rate
            delay_s = self.base_s + self.lag(captured_s) + rng.uniform(0, self.jitter_s)
            self.arrived_s = max(self.arrived_s + 1e-5, captured_s + delay_s)
            camera_s = (1 + self.drift) * (captured_s - start_s)
            stated_s = self.stated(index, camera_s)
            off_s = 0.0 if stated_s is None else stated_s - camera_s
            sender_ns = None
            if self.reports_from_s is not None and captured_s - start_s >= self.reports_from_s:
                report = (captured_s - start_s - self.reports_from_s) // REPORTS_S
                if report != last_report:
                    last_report, off_at_report_s = report, off_s
                sender_ns = UNIX_NS + round((captured_s + self.clock_error_s + off_s - off_at_report_s) * 1e9)
            yield captured_s, arrival(stated_s, self.arrived_s, sender_ns, self.size(index))


def arrival(stated_s: float | None, arrived_s: float, sender_ns: int | None = None, size: int = 1000) -> Arrival:
    nanoseconds = round(arrived_s * 1e9)
    return Arrival(stated_s, BOOT_NS + nanoseconds, UNIX_NS + nanoseconds, sender_ns, size)


@dataclass(frozen=True)
class Judged:
    """A stamp with the truth beside it, in seconds."""

    stamp: Stamp
    captured_s: float
    arrived_s: float

    @property
    def claimed_s(self) -> float:
        return (self.stamp.capture_monotonic_ns - BOOT_NS) / 1e9

    @property
    def younger_s(self) -> float:
        """By how much the claimed age is younger than the true one."""
        return self.claimed_s - self.captured_s


def follow(clock: PictureClock, link: Link, seconds: float, start_s: float = 0.0) -> list[Judged]:
    return [
        Judged(clock.stamp(arrival), captured_s, (arrival.monotonic_ns - BOOT_NS) / 1e9)
        for captured_s, arrival in link.arrivals(seconds, start_s)
    ]
