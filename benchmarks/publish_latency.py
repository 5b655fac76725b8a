"""Time from the tracks of a frame with 10 people to the decoded message of a subscriber on loopback.

    python -m benchmarks.publish_latency [--messages 2000]

The subscriber is another process. The measured time is the time that a robot waits for: making the message, encoding,
ZeroMQ over tcp://127.0.0.1, decoding. Both processes read the same monotonic clock. The goal is a 99th percentile below
1 ms, and a median below 25 ms during a flood of subscriptions from another process.
"""

import argparse
import multiprocessing
import time
from multiprocessing.connection import Connection

import numpy as np

from benchmarks._record import record
from benchmarks.chaos.subscribers import beside, flood
from engines.detections import Detections
from engines.prompts import parse_prompt
from engines.scores import ScoreScale
from pipeline.flow.threads import spare_loaded_objects
from pipeline.flow.tracking import PromptedTracker, ScoreRules
from pipeline.frames import Frame, FramePoses, FrameTracks, now_ns
from pipeline.outputs.messages import pose_message
from pipeline.outputs.publisher import PublishConfig, Publisher
from trackers import Tracker
from xpose_client.subscriber import PoseSubscriber

PEOPLE = 10
INTERVAL_S = 1 / 200
GOAL_MS = 1.0
FLOOD_GOAL_MS = 25.0


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=2000)
    options = parser.parse_args()
    rows = [measure(options.messages, flooded=flooded) for flooded in (False, True)]
    for row in rows:
        print(row)
    print(record("publish_latency", rows))


def measure(messages: int, *, flooded: bool) -> dict[str, object]:
    """Measure one row. With `flooded`, another process subscribes and unsubscribes as fast as it can."""
    receiving, sending = multiprocessing.Pipe(duplex=False)
    with Publisher(PublishConfig("tcp://127.0.0.1:*")) as publisher:
        process = multiprocessing.get_context("spawn").Process(
            target=subscribe, args=(publisher.endpoint, messages, sending), daemon=True
        )
        process.start()
        spare_loaded_objects()  # as `run` does
        while publisher.serve_late_joiners() == 0:
            time.sleep(0.01)
        time.sleep(0.5)
        with beside(flood if flooded else None, publisher.endpoint):
            size_bytes = publish(publisher, messages)
        delays_ms = np.array(receiving.recv())
        process.join(10)
    p50, p95, p99 = (round(float(np.percentile(delays_ms, percent)), 3) for percent in (50, 95, 99))
    under = ", under a flood of subscriptions" if flooded else ""
    return {
        "what": f"publish to subscriber on loopback, {PEOPLE} people, {round(1 / INTERVAL_S)} messages/s{under}",
        "messages": len(delays_ms),
        "json_line_bytes": size_bytes,
        "p50_ms": p50,
        "p95_ms": p95,
        "p99_ms": p99,
        "max_ms": round(float(delays_ms.max()), 3),
        **({"goal_p50_ms": FLOOD_GOAL_MS} if flooded else {"goal_p99_ms": GOAL_MS}),
    }


def publish(publisher: Publisher, messages: int) -> int:
    """Publish `messages` frames of ten moving people at a steady rate; return the bytes of one as a JSON line."""
    from xpose_client.messages import to_json_line

    prompts = parse_prompt("person", max_classes=8, max_keypoints=68)
    rng = np.random.default_rng(0)
    pose_K2 = rng.uniform(0, 60, (17, 2)).astype(np.float32)
    tracker = PromptedTracker(lambda still, sigmas: Tracker(None, sigmas))
    rules = ScoreRules(ScoreScale(0.3, 0.7), still_threshold=0.0)
    pixels = np.zeros((480, 640, 3), np.uint8)
    size_bytes = 0
    for seq in range(messages):
        start_s = time.perf_counter()
        shift_N12 = np.array(
            [[[60 * person + 5, 100 + 20 * np.sin(seq / 100)]] for person in range(PEOPLE)], np.float32
        )
        keypoints_NK2 = pose_K2 + shift_N12 + rng.normal(0, 0.5, (PEOPLE, 17, 2)).astype(np.float32)
        boxes_N4 = np.concatenate([keypoints_NK2.min(axis=1), keypoints_NK2.max(axis=1)], axis=1)
        scores_N = np.full(PEOPLE, 0.9, np.float32)
        found = Detections(boxes_N4, scores_N, np.zeros(PEOPLE, np.int64), keypoints_NK2, 1, prompts)
        frame = Frame("camera", seq, pixels, seq * INTERVAL_S, *now_ns(), "receipt")
        tracks = tracker.update(FramePoses(frame, found), rules).tracks
        stamped = Frame("camera", seq, pixels, seq * INTERVAL_S, *now_ns(), "receipt")  # the clock starts here
        publisher.serve_late_joiners()
        message = pose_message(FrameTracks(stamped, found, tracks), session=1, seq=seq, publish_unix_ns=time.time_ns())
        publisher.publish(message)
        size_bytes = len(to_json_line(message))
        time.sleep(max(0.0, INTERVAL_S - (time.perf_counter() - start_s)))
    return size_bytes


def subscribe(endpoint: str, messages: int, report: Connection) -> None:
    """Receive, and report the age of each message in milliseconds, without the first tenth, which is a warm-up."""
    ages_ms = []
    with PoseSubscriber(endpoint) as subscriber:
        for _ in range(messages):
            received = subscriber.receive(10)
            if received is None or len(received.message.tracks) != PEOPLE:
                got = "nothing" if received is None else f"{len(received.message.tracks)} people"
                raise RuntimeError(f"expected {PEOPLE} people in each message, got {got}")
            ages_ms.append(received.age_s * 1000)
    report.send(ages_ms[messages // 10 :])


if __name__ == "__main__":
    main()
