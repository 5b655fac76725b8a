"""A worker of a fleet, in this process and without Ray."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from engines.config import EngineConfig
from pipeline.config import PipelineConfig
from pipeline.errors import ConfigError, SourceError
from pipeline.fleet.cameras import CameraWorker, WorkerSettings, measure_fps
from pipeline.outputs.publisher import PublishConfig, Publisher
from pipeline.service.operations import EngineFacts
from tests.clients.python.made import status
from tests.pipeline.fakes import MUG, FakeEngine
from tests.pipeline.service.running import FACTS
from xpose_client.control import Control
from xpose_client.subscriber import PoseSubscriber

pytestmark = pytest.mark.timeout(60)

OFF = "rtsp://127.0.0.1:9/"


@dataclass
class Started:
    """A worker, and the proxy that it listens to."""

    worker: CameraWorker
    proxy: Publisher
    engine: FakeEngine


@pytest.fixture
def started() -> Iterator[Started]:
    engine = FakeEngine()
    with Publisher(PublishConfig("tcp://127.0.0.1:*")) as proxy:
        settings = WorkerSettings(
            PipelineConfig(publish=PublishConfig(beat_s=0.05)), (MUG,), proxy.endpoint, lambda config: engine, facts_of
        )
        worker = CameraWorker(settings, "127.0.0.1", "node")
        worker.start()
        yield Started(worker, proxy, engine)
        worker.stop()


def facts_of(engine: object) -> EngineFacts:
    return FACTS


def until(holds: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def test_capacity_is_what_the_engine_sustains() -> None:
    assert 60 < measure_fps(FakeEngine(delay_s=0.01), (MUG,), 0.5) < 101
    assert 120 < measure_fps(FakeEngine(delay_s=0.01, batch=4), (MUG,), 0.5) < 404


def test_cameras_come_and_go_under_the_session_that_the_fleet_gives(started: Started) -> None:
    worker = started.worker
    assert worker.start() == worker.start()
    worker.add("a", f"{OFF}a", 100)
    worker.add("b", f"{OFF}b", 101)
    with PoseSubscriber(worker.start().endpoint) as subscriber:
        until(lambda: subscriber.status("a") is not None and subscriber.status("b") is not None)
        assert (subscriber.state("a"), subscriber.status("a").session) == ("connecting", 100)  # type: ignore[union-attr]
        worker.remove("a", 100)
        until(lambda: subscriber.state("a") == "ended")
        worker.add("a", f"{OFF}a", 102)
        until(lambda: subscriber.status("a").session == 102)  # type: ignore[union-attr]
        assert subscriber.state("b") == "connecting"


def test_worker_has_a_control_socket_of_its_own(started: Started) -> None:
    started.worker.add("a", f"{OFF}a", 100)
    with Control(started.worker.start().control, timeout_s=20) as control:
        assert [source.status.source for source in control.status().sources] == ["a"]


def test_worker_that_others_can_reach_wants_keys_and_without_them_has_no_control() -> None:
    def make(publish: PublishConfig) -> CameraWorker:
        settings = WorkerSettings(
            PipelineConfig(publish=publish), (MUG,), "tcp://127.0.0.1:9", lambda config: FakeEngine(), facts_of
        )
        return CameraWorker(settings, "0.0.0.0", "node")

    with pytest.raises(ConfigError, match="there are no keys"):
        make(PublishConfig()).start()
    insisting = make(PublishConfig(without_keys=True))
    assert insisting.start().control == ""
    insisting.stop()


def test_calls_that_overtake_each_other_bring_no_old_stay_back(started: Started) -> None:
    worker = started.worker
    worker.remove("a", 100)
    worker.add("a", f"{OFF}a", 100)
    assert worker.cameras() == {}
    worker.add("a", f"{OFF}a", 105)
    worker.add("a", f"{OFF}a", 104)
    worker.remove("a", 103)
    assert worker.cameras() == {"a": 105}


def test_worker_that_was_cut_off_stops_the_cameras_that_run_elsewhere_and_no_others(started: Started) -> None:
    worker, proxy = started.worker, started.proxy
    worker.add("a", f"{OFF}a", 100)
    worker.add("ab", f"{OFF}ab", 100)
    for session in (99, 100):
        proxy.publish(status("a", session=session))
    until(lambda: proxy.serve_late_joiners() > 0)
    time.sleep(0.5)
    assert worker.cameras() == {"a": 100, "ab": 100}

    def heard() -> bool:
        proxy.serve_late_joiners()
        proxy.publish(status("a", session=101))
        return worker.cameras() == {"ab": 100}

    until(heard)
    worker.add("a", f"{OFF}a", 100)
    assert worker.cameras() == {"ab": 100}, "a call that was under way brought it back"


def test_address_that_this_machine_cannot_use_is_an_error_of_the_call_alone(started: Started) -> None:
    with pytest.raises(SourceError, match="no such file"):
        started.worker.add("a", "absent.mp4", 100)
    started.worker.add("a", f"{OFF}a", 101)
    assert started.worker.cameras() == {"a": 101}


def test_failure_of_the_pipeline_ends_the_run(started: Started) -> None:
    from tests.pipeline.fakes import FakeSource

    started.engine.fail_at = started.engine.images
    raised: list[BaseException] = []

    def run() -> None:
        try:
            started.worker.run()
        except RuntimeError as error:
            raised.append(error)

    running = threading.Thread(target=run)
    running.start()
    started.worker._pipeline.add(FakeSource(5))
    running.join(30)
    assert [str(error) for error in raised] == ["the engine broke"]


def test_engine_that_cannot_be_made_is_an_error_of_the_start() -> None:
    def refuse(config: EngineConfig) -> FakeEngine:
        raise ValueError("no weights")

    settings = WorkerSettings(PipelineConfig(), (MUG,), "tcp://127.0.0.1:9", refuse, facts_of)
    worker = CameraWorker(settings, "127.0.0.1", "node")
    with pytest.raises(ValueError, match="no weights"):
        worker.start()
