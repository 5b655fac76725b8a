"""What 1,000 cameras on 50 GPU nodes would need: the fleet's scheduling (`pipeline.fleet.spread`) in simulated time.

    python -m benchmarks.fleet_simulation

Nothing here was measured on GPUs. The rates of the cameras and the failures of nodes are assumptions, and a move is
assumed to take as long as on the benchmark's machine. The results: the rate that the engine of each node must sustain
so that no node is overloaded after a loss of nodes, for how long cameras give no poses in a year, and the load of the
proxy and of the supervisor.
"""

import random
import statistics
import time
from collections import Counter
from dataclasses import dataclass

from benchmarks._record import record
from pipeline.fleet.config import Camera
from pipeline.fleet.spread import Spread
from xpose_client.messages import SCHEMA, StatusMessage

CAMERAS, NODES, BEATS_PER_S = 1000, 50, 2
SLOW_RATE, FAST_RATE, FAST_SHARE = 10.0, 25.0, 0.2
DAYS_BETWEEN_FAILURES, REPAIR_H = 90.0, 4.0
YEAR_S = 365 * 86400.0
SPARES = (0, 1, 2, 3, 5)
Row = dict[str, object]


@dataclass(frozen=True)
class Figures:
    """Measured figures that the simulation takes over.

    Attributes:
        move_s: from the death of a worker to the first pose of its cameras elsewhere.
        proxy_messages_per_s: highest rate of the proxy; None where it was not measured.
    """

    move_s: float = 10.0
    proxy_messages_per_s: float | None = None


def simulate(figures: Figures) -> list[Row]:
    """Return the rows: the assumptions, the capacity by failed nodes, a year, and the cost of supervising."""
    rng = random.Random(0)
    cameras = {
        f"camera{index}": Camera(f"rtsp://camera{index}/", FAST_RATE if index < CAMERAS * FAST_SHARE else SLOW_RATE)
        for index in range(CAMERAS)
    }
    load_fps = sum(camera.rate for camera in cameras.values())
    assumptions: Row = {
        "what": f"simulation: {CAMERAS} cameras on {NODES} GPU nodes, assumptions",
        "camera_rates": f"{1 - FAST_SHARE:.0%} of {SLOW_RATE:g} frames/s, {FAST_SHARE:.0%} of {FAST_RATE:g}",
        "load_frames_per_s": load_fps,
        "node_failures": f"each every {DAYS_BETWEEN_FAILURES:g} days, repaired in {REPAIR_H:g} h, independent",
        "move_s": figures.move_s,
    }
    capacities: list[Row] = [_capacity(cameras, failed) for failed in SPARES]
    return [assumptions, *capacities, _year(figures, rng), _supervisor(cameras), _proxy(load_fps, figures)]


def _capacity(cameras: dict[str, Camera], failed: int) -> Row:
    """Return the smallest capacity per node at which no node is overloaded after `failed` nodes failed one by one."""
    low, high = 1.0, 10_000.0
    while high - low > 0.5:
        middle = (low + high) / 2
        if _overloaded(cameras, middle, failed):
            low = middle
        else:
            high = middle
    return {
        "what": f"frames/s that the engine of a node must sustain, {failed} of {NODES} nodes failed",
        "frames_per_s": round(high),
        "even_share": round(sum(camera.rate for camera in cameras.values()) / (NODES - failed), 1),
    }


def _overloaded(cameras: dict[str, Camera], capacity_fps: float, failed: int) -> bool:
    spread = _spread(cameras, capacity_fps)
    for number in range(failed):
        spread.worker_lost(number)
        spread.place(0.0)
    return any(spread.load_fps(number) > capacity_fps for number in spread.ready)


def _spread(cameras: dict[str, Camera], capacity_fps: float) -> Spread:
    spread = Spread(silence_s=3.0)
    spread.set_cameras(cameras)
    for number in range(NODES):
        spread.worker_ready(number, capacity_fps)
    spread.place(0.0)
    return spread


def _year(figures: Figures, rng: random.Random) -> Row:
    """Simulate 100 years of independent failures: how many nodes are down at once, and for how long cameras stop."""
    years = 100
    events: list[tuple[float, int]] = []
    for _ in range(NODES):
        now_s = rng.expovariate(1 / (DAYS_BETWEEN_FAILURES * 86400))
        while now_s < years * YEAR_S:
            events += [(now_s, 1), (now_s + REPAIR_H * 3600, -1)]
            now_s += REPAIR_H * 3600 + rng.expovariate(1 / (DAYS_BETWEEN_FAILURES * 86400))
    down, since_s, down_for_s = 0, 0.0, Counter[int]()
    for at_s, change in sorted(events):
        down_for_s[down] += at_s - since_s  # type: ignore[assignment]
        down, since_s = down + change, at_s
    failures = sum(change > 0 for _, change in events) / years
    total_s = sum(down_for_s.values())
    dark_s = failures / NODES * figures.move_s
    return {
        "what": "a year of the simulated fleet (mean of 100)",
        "node_failures": round(failures),
        "share_of_time_by_nodes_down": {count: round(down_for_s[count] / total_s, 5) for count in sorted(down_for_s)},
        "dark_s_per_camera": round(dark_s, 1),
        "availability": round(1 - dark_s / YEAR_S, 8),
    }


def _supervisor(cameras: dict[str, Camera]) -> Row:
    """Measure the time that the supervisor needs for the decisions of a fleet of this size."""
    spread = _spread(cameras, 400.0)
    beats = [_status(name, stay.session) for name, stay in spread.stays.items()]
    begun_s = time.perf_counter()
    for beat in beats:
        spread.heard(beat, 1.0)
    heard_s = (time.perf_counter() - begun_s) / len(beats)
    ticks_s = []
    for number in range(10):
        spread.worker_lost(number)
        begun_s = time.perf_counter()
        spread.silent(2.0)
        spread.place(2.0)
        ticks_s.append(time.perf_counter() - begun_s)
    return {
        "what": f"supervisor, {CAMERAS} cameras: decisions",
        "states_per_s": CAMERAS * BEATS_PER_S,
        "us_per_state": round(heard_s * 1e6, 2),
        "ms_per_lost_node": round(statistics.median(ticks_s) * 1000, 1),
    }


def _proxy(load_fps: float, figures: Figures) -> Row:
    """Messages that one proxy would have to carry."""
    needed = load_fps + CAMERAS * BEATS_PER_S
    row: Row = {"what": "proxy, messages/s of all cameras and states", "needed": round(needed)}
    if figures.proxy_messages_per_s is not None:
        row["one_proxy_carries"] = round(figures.proxy_messages_per_s)
        row["fleets_needed"] = -int(-needed // figures.proxy_messages_per_s)
    return row


def _status(source: str, session: int) -> StatusMessage:
    return StatusMessage(SCHEMA, session, "", source, "live", 0, 0, 0, 10.0, None, {}, None, None, "stream", None, 0.5)


if __name__ == "__main__":
    rows = simulate(Figures())
    for row in rows:
        print(row)
    print(record("fleet_simulation", rows))
