"""Many files and many machines: the measurements that one machine with two cores allows.

    python -m benchmarks.fleet [--only proxy,actor,move,batch,simulation] [--seconds 60] [--repeats 3] [--short]

    proxy       20 publishers of 30 messages/s each through the proxy to a subscriber: latency; then its highest rate
    actor       the pipeline with nano on a file: in its own process, and in a Ray actor
    move        from the death of a worker's process to the first pose of its camera from another worker
    batch       files of --seconds each: one process with one thread, one with all, two with one each, two on Ray
    simulation  1,000 cameras on 50 GPU nodes (benchmarks.fleet_simulation), with the figures of this run

Goals: p99 below 5 ms through the proxy; two workers at least 1.6 × one process with one thread, and not below one with
all threads; overhead of Ray at most 5 % of the time of a file. `--short` only shows that everything runs; its figures
mean nothing.
"""

import argparse
import contextlib
import multiprocessing
import os
import signal
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from benchmarks._record import record
from benchmarks.chaos.run import Camera, running
from benchmarks.fleet_simulation import Figures, simulate
from benchmarks.line import encode_clip
from engines.prompts import PromptClass, parse_prompt
from pipeline.config import PipelineConfig
from pipeline.fleet.cameras import WorkerSettings, engine_of
from pipeline.fleet.config import Camera as FleetCamera
from pipeline.fleet.config import FleetConfig
from pipeline.fleet.directory import ask
from pipeline.fleet.jobs import Job, find_jobs
from pipeline.fleet.local import MakeWorker, run_local
from pipeline.fleet.on_ray import run_on_ray
from pipeline.fleet.proxy import Proxy
from pipeline.fleet.ray_cluster import connected
from pipeline.fleet.supervisor import Fleet
from pipeline.fleet.worker import BatchSettings, Outcome, Worker
from pipeline.flow.pipeline import Pipeline
from pipeline.outputs.publisher import PublishConfig, Publisher
from pipeline.service.operations import describe
from xpose_client.host import boot_id
from xpose_client.messages import SCHEMA, PoseMessage, TrackMessage
from xpose_client.subscriber import PoseSubscriber

PUBLISHERS, RATE, PEOPLE, KEYPOINTS = 20, 30, 4, 17
LATENCY_GOAL_MS, SPEED_UP_GOAL, RAY_SHARE_GOAL = 5.0, 1.6, 0.05
Row = dict[str, object]


def main() -> None:
    """Measure the parts that were asked for, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="proxy,actor,move,batch,simulation")
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="length of a file of the batch, and of the proxy's run"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--short", action="store_true")
    options = parser.parse_args()
    if options.short:
        options.seconds, options.repeats = 2.0, 1
    rows: list[Row] = []
    parts = {"proxy": proxy, "actor": actor, "move": move, "batch": batch}
    for name in options.only.split(","):
        found = simulation(rows) if name == "simulation" else parts[name](options.seconds, options.repeats)
        for row in found:
            print(row, flush=True)
        rows += found
    if not options.short:
        print(record("fleet", rows))


# The proxy


def proxy(seconds: float, repeats: int) -> list[Row]:
    """Latency at a steady rate, and the highest rate."""
    del repeats
    steady = np.array(_through_proxy(seconds, RATE), float)
    steady = steady[len(steady) // 10 :]  # the first tenth warms up
    fastest = _through_proxy(min(seconds, 10.0), None)
    p50, p95, p99 = (round(float(np.percentile(steady, percent)) / 1e6, 3) for percent in (50, 95, 99))
    what = f"proxy, {PUBLISHERS} publishers, {PEOPLE} people"
    return [
        {
            "what": f"{what}, {RATE} messages/s each: capture to subscriber",
            "messages": len(steady),
            "expected": round(0.9 * PUBLISHERS * RATE * seconds),
            "p50_ms": p50,
            "p95_ms": p95,
            "p99_ms": p99,
            "goal_p99_ms": LATENCY_GOAL_MS,
        },
        {"what": f"{what}: highest rate", "messages_per_s": round(len(fastest) / min(seconds, 10.0))},
    ]


def _through_proxy(seconds: float, rate: int | None) -> list[int]:
    """Return the age in ns of every message that came; `rate` per publisher, None for as fast as possible."""
    context = multiprocessing.get_context("spawn")
    made = Proxy(PublishConfig("tcp://127.0.0.1:*"))
    begin = context.Event()
    endpoints: Any = context.Queue()
    sender = context.Process(target=_send, args=(endpoints, begin, seconds, rate), daemon=True)
    ages: Any = context.Queue()
    receiver = context.Process(target=_receive, args=(made.endpoint, seconds, ages), daemon=True)
    try:
        for process in (sender, receiver):
            process.start()
        made.follow(endpoints.get(), [f"camera{index}" for index in range(PUBLISHERS)])
        ages.get()  # the subscriber is there
        time.sleep(1.0)
        begin.set()
        found: list[int] = ages.get()
        sender.join(10)
    finally:
        made.close()
    return found


def _send(endpoints: Any, begin: Any, seconds: float, rate: int | None) -> None:
    """Run all publishers, one after another, spread over the interval."""
    with contextlib.ExitStack() as opened:
        publishers = [opened.enter_context(Publisher(PublishConfig("tcp://127.0.0.1:*"))) for _ in range(PUBLISHERS)]
        endpoints.put([publisher.endpoint for publisher in publishers])
        while not begin.is_set():
            time.sleep(0.01)
            for publisher in publishers:
                publisher.serve_late_joiners()
        templates = [_message(f"camera{index}") for index in range(PUBLISHERS)]
        interval_s = 0.0 if rate is None else 1 / rate / PUBLISHERS
        begun_s = time.perf_counter()
        number = 0
        while (now_s := time.perf_counter() - begun_s) < seconds:
            if now_s < number * interval_s:
                time.sleep(number * interval_s - now_s)
            index = number % PUBLISHERS
            publishers[index].publish(
                msgspec.structs.replace(
                    templates[index], seq=number // PUBLISHERS, capture_monotonic_ns=time.monotonic_ns()
                )
            )
            number += 1
        time.sleep(1.0)


def _receive(endpoint: str, seconds: float, ages: Any) -> None:
    """Collect the age of each message until none comes for a second after the end."""
    found = []
    with PoseSubscriber(endpoint) as subscriber:
        ages.put(None)
        received = subscriber.receive(30)
        end_s = time.monotonic() + seconds
        while received is not None:
            found.append(time.monotonic_ns() - received.message.capture_monotonic_ns)
            received = subscriber.receive(1.0) if time.monotonic() < end_s + 2 else None
    ages.put(found)


def _message(source: str) -> PoseMessage:
    """A message of a usual size."""
    points = [(100.125 + index, 200.25 + index) for index in range(KEYPOINTS)]
    track = TrackMessage(
        1, "person", 0.9, (10.0, 20.0, 300.0, 400.0), list(points), list(points), list(points), list(points),
        [(1.5, 0.0, 1.5)] * KEYPOINTS, [True] * KEYPOINTS, True,
    )  # fmt: skip
    return PoseMessage(
        schema=SCHEMA, session=1, seq=0, source=source, frame=0, file=None, pts_s=0.0, source_pts_s=None,
        host=boot_id(), capture_clock="receipt", capture_unix_ns=1, capture_monotonic_ns=1,
        capture_uncertainty_s=None, lag_s=None,
        publish_unix_ns=1, width=640, height=480, prompt_id=1,
        tracks=[msgspec.structs.replace(track, id=number) for number in range(PEOPLE)],
    )  # fmt: skip


# An actor against a process


@dataclass
class RateOfClip:
    """Runs the pipeline with nano over a clip, with one thread."""

    clip: Path

    def measure(self) -> float:
        """Return frames per second, without the time for loading."""
        import torch

        torch.set_num_threads(1)
        settings = _settings(threads=1)
        engine = engine_of(settings.engine_of_pipeline)
        for _ in range(2):  # the first warms up
            pipeline = Pipeline(settings)
            pipeline.add(str(self.clip))
            begun_s = time.perf_counter()
            published = pipeline.run(engine, _prompts(settings)).published
        return published / (time.perf_counter() - begun_s)


def actor(seconds: float, repeats: int) -> list[Row]:
    """Measure in pairs: one in a process, then one in an actor."""
    with tempfile.TemporaryDirectory() as folder, connected("local") as ray:
        clip = Path(folder) / "clip.mp4"
        encode_clip(clip, max(10, round(5 * min(seconds, 30.0))))
        plain, on_ray = [], []
        for _ in range(repeats):
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                plain.append(pool.submit(RateOfClip(clip).measure).result())
            made = ray.remote(RateOfClip).options(num_cpus=1).remote(clip)
            on_ray.append(ray.get(made.measure.remote()))
            ray.kill(made)
    ratio = [a / b for a, b in zip(on_ray, plain, strict=True)]
    return [
        {
            "what": "pipeline with nano, one thread: an actor of Ray over a plain process",
            "process_frames_per_s": [round(rate, 2) for rate in plain],
            "actor_frames_per_s": [round(rate, 2) for rate in on_ray],
            "ratio_median": round(statistics.median(ratio), 3),
        }
    ]


# Moving a camera


def move(seconds: float, repeats: int) -> list[Row]:
    """Kill the worker that has the camera, several times."""
    del seconds
    camera = Camera(faults=())
    times_s = []
    config = FleetConfig(cameras={"camera": FleetCamera(camera.address, 5.0)}, workers=2, directory="tcp://127.0.0.1:*")
    with running([camera]), _fleet(config) as fleet, PoseSubscriber(fleet.endpoint) as subscriber:
        session = _next_session(subscriber, 0, 300)
        for _ in range(repeats):
            found = ask(fleet.directory, 10)
            while any(worker.state != "ready" for worker in found.workers):
                time.sleep(0.5)
                found = ask(fleet.directory, 10)
            os.kill(found.workers[found.cameras[0].worker or 0].pid, signal.SIGKILL)
            killed_s = time.monotonic()
            session = _next_session(subscriber, session, 60)
            times_s.append(time.monotonic() - killed_s)
    return [
        {
            "what": "death of a worker's process to the first pose of its camera from another worker",
            "times_s": [round(time_s, 2) for time_s in times_s],
            "median_s": round(statistics.median(times_s), 2),
            "largest_s": round(max(times_s), 2),
            "silence_s": config.silence_s,
            "goal_s": 10.0,
        }
    ]


def _next_session(subscriber: PoseSubscriber, session: int, timeout_s: float) -> int:
    """Wait for the first pose of a session after `session`; return it."""
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        received = subscriber.receive(1.0)
        if received is not None and received.message.session > session:
            return received.message.session
    raise RuntimeError(f"no pose of a session after {session} within {timeout_s} s")


@contextlib.contextmanager
def _fleet(config: FleetConfig) -> Iterator[Fleet]:
    """A fleet with nano on a cluster of this machine, supervised by a thread."""
    settings = _settings(threads=1)
    made: list[Fleet] = []
    begun, stop = threading.Event(), threading.Event()

    def supervise() -> None:
        try:
            with connected("local") as ray:
                fleet = Fleet(
                    ray,
                    config,
                    lambda heard: WorkerSettings(settings, _prompts(settings), heard, engine_of, describe),
                    PublishConfig("tcp://127.0.0.1:*"),
                )
                made.append(fleet)
                begun.set()
                fleet.run(stop.is_set)
        finally:
            begun.set()

    thread = threading.Thread(target=supervise)
    thread.start()
    try:
        begun.wait()
        yield made[0]
    finally:
        stop.set()
        thread.join()


# Batches


def batch(seconds: float, repeats: int) -> list[Row]:
    """Time per file without the start: (time of four files - time of two files) / 2."""
    ways: dict[str, Callable[[list[Job], Callable[[Outcome], None]], None]] = {
        "one process, one thread": partial(_locally, 1, 1),
        "one process, all threads": partial(_locally, 1, 0),
        "two processes, one thread each": partial(_locally, 2, 1),
        "Ray, one file at a time, one thread": partial(_on_ray, 1),
        "Ray, two files at a time, one thread each": partial(_on_ray, 2),
    }
    per_file_s: dict[str, list[float]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as folder, connected("local"):
        videos = Path(folder) / "videos"
        videos.mkdir()
        encode_clip(videos / "0.mp4", round(30 * seconds))
        for index in range(1, 4):
            (videos / f"{index}.mp4").symlink_to(videos / "0.mp4")
        for repeat in range(repeats):
            for name, way in ways.items():
                took_s = []
                for count in (2, 4):
                    inputs = [str(videos / f"{index}.mp4") for index in range(count)]
                    took_s.append(_time_of(way, find_jobs(inputs, Path(folder) / f"{repeat}.{name}.{count}")))
                per_file_s[name].append((took_s[1] - took_s[0]) / 2)
    middle = {name: statistics.median(times_s) for name, times_s in per_file_s.items()}
    one, every, two, ray_one, ray_two = middle.values()
    rows: list[Row] = [
        {
            "what": f"batch of files of {seconds:g} s, nano: {name}",
            "s_per_file": [round(time_s, 2) for time_s in times_s],
        }
        for name, times_s in per_file_s.items()
    ]
    return [
        *rows,
        {
            "what": "batch: rates as ratios",
            "two_over_one_thread": round(one / two, 2),
            "goal": SPEED_UP_GOAL,
            "two_over_all_threads": round(every / two, 2),
            "goal_all_threads": 1.0,
            "ray_two_over_two": round(two / ray_two, 2),
            "ray_share_of_a_file": round(ray_one / one - 1, 3),
            "goal_ray_share": RAY_SHARE_GOAL,
        },
    ]


def _time_of(way: Callable[[list[Job], Callable[[Outcome], None]], None], jobs: list[Job]) -> float:
    outcomes: list[Outcome] = []
    begun_s = time.perf_counter()
    way(jobs, outcomes.append)
    took_s = time.perf_counter() - begun_s
    failed = [outcome.error for outcome in outcomes if outcome.state != "done"]
    if failed:
        raise RuntimeError(failed[0])
    return took_s


def _locally(workers: int, threads: int, jobs: list[Job], report: Callable[[Outcome], None]) -> None:
    run_local(jobs, _make_worker(threads), workers, report)


def _on_ray(workers: int, jobs: list[Job], report: Callable[[Outcome], None]) -> None:
    run_on_ray(jobs, _make_worker(1), "local", report, workers=workers)


def _make_worker(threads: int) -> MakeWorker:
    settings = _settings(threads=threads or os.cpu_count() or 1)
    return partial(_worker, BatchSettings(settings, _prompts(settings)), settings.engine.threads)


def _worker(settings: BatchSettings, threads: int, _: int) -> Worker:
    """Take the number of threads of this measurement, not the usual share of the cores."""
    return Worker(settings, threads)


# What several parts need


def simulation(rows: Sequence[Row]) -> list[Row]:
    """Run the simulation with the figures of this run; figures that were not measured are marked as assumed."""
    measured = {key: value for row in rows for key, value in row.items() if isinstance(value, int | float)}
    return simulate(Figures(measured.get("largest_s", Figures.move_s), measured.get("messages_per_s")))


def _settings(threads: int) -> PipelineConfig:
    from engines.config import EngineConfig

    return PipelineConfig(engine=EngineConfig(threads=threads))


def _prompts(settings: PipelineConfig) -> tuple[PromptClass, ...]:
    engine = settings.engine
    return parse_prompt("person", max_classes=engine.max_classes, max_keypoints=engine.max_keypoints)


if __name__ == "__main__":
    main()
