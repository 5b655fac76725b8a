"""The proxy between workers and subscribers, with real sockets and a real process."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import ConfigError, PublishError
from pipeline.fleet.proxy import NewestSession, Proxy
from pipeline.keys import ServerKeys, make_keys
from pipeline.outputs.publisher import PublishConfig, Publisher
from tests.clients.python.made import pose, skeleton, status
from xpose_client.errors import KeyFileError
from xpose_client.messages import Message, PoseMessage, encode
from xpose_client.subscriber import PoseSubscriber

pytestmark = pytest.mark.timeout(60)

ANY_PORT = PublishConfig("tcp://127.0.0.1:*")


@pytest.fixture(scope="module")
def proxy() -> Iterator[Proxy]:
    made = Proxy(ANY_PORT)
    yield made
    made.close()


def of(source: str, session: int, seq: int = 0) -> PoseMessage:
    return pose(seq, source, session=session)


def sent_until_heard(publisher: Publisher, subscriber: PoseSubscriber, source: str, session: int) -> PoseMessage:
    """Publish until the subscriber hears it: connections take a moment."""
    for seq in range(2000):
        publisher.serve_late_joiners()
        publisher.publish(of(source, session, seq))
        received = subscriber.receive(0.02)
        if received is not None and (received.message.source, received.message.session) == (source, session):
            return received.message
    raise AssertionError(f"nothing of {source}, session {session}, came through")


def test_one_address_carries_the_cameras_of_all_workers(proxy: Proxy) -> None:
    with Publisher(ANY_PORT) as one, Publisher(ANY_PORT) as two, PoseSubscriber(proxy.endpoint) as subscriber:
        proxy.follow([one.endpoint, two.endpoint], "ab")
        sent_until_heard(one, subscriber, "a", 1)
        sent_until_heard(two, subscriber, "b", 1)
        proxy.follow([two.endpoint], "ab")
        time.sleep(0.2)
        one.publish(of("a", 2))
        sent_until_heard(two, subscriber, "b", 2)
        assert subscriber.restarts == 1, "a worker that does not belong to the fleet any more was heard"


def test_subscriber_that_joins_late_gets_skeletons_states_and_last_poses(proxy: Proxy) -> None:
    kept: list[Message] = [
        skeleton("late", session=5),
        status("late", session=5),
        of("late", 5, 41),
    ]
    with Publisher(ANY_PORT) as worker:
        proxy.follow([worker.endpoint], ["late"])
        with PoseSubscriber(proxy.endpoint) as early:
            sent_until_heard(worker, early, "late", 4)
            for message in kept:
                worker.publish(message)
            while (received := early.receive(5)) is not None and received.message.session != 5:
                pass
        with PoseSubscriber(proxy.endpoint, source="late") as late:
            received = late.receive(5)
            assert received is not None
            assert received.message == kept[2]
            assert late.skeletons["late"] == kept[0]
            assert late.status("late") == kept[1]
        proxy.follow([worker.endpoint], ["another"])
        with PoseSubscriber(proxy.endpoint) as later:
            sent_until_heard(worker, later, "another", 1)
            assert later.status("late") is None, "a camera that was removed is not replayed"


def test_messages_of_an_older_session_end_at_the_proxy() -> None:
    sessions = NewestSession()
    assert sessions.allows(encode(of("a", 5)))
    assert sessions.allows(encode(of("b", 3)))
    assert sessions.allows(encode(status("a", session=6)))
    assert not sessions.allows(encode(of("a", 5, 1)))
    assert sessions.allows(encode(of("a", 6)))
    assert sessions.allows(encode(of("b", 3, 1)))
    for foreign in (b"", b"poses/a", b"poses/a\0", b"poses/a\0\xc1", b"poses/a\0\x93\x01\x02\x03"):
        assert not sessions.allows(foreign)


def test_proxy_that_is_killed_comes_back_at_its_address(proxy: Proxy) -> None:
    with Publisher(ANY_PORT) as worker, PoseSubscriber(proxy.endpoint) as subscriber:
        proxy.follow([worker.endpoint], ["revived"])
        sent_until_heard(worker, subscriber, "revived", 1)
        endpoint, pid = proxy.endpoint, proxy.pid
        assert not proxy.revive()
        os.kill(pid, signal.SIGKILL)
        deadline_s = time.monotonic() + 10
        while not proxy.revive():
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
        assert proxy.endpoint == endpoint
        sent_until_heard(worker, subscriber, "revived", 2)


def test_address_that_is_taken_is_an_error_of_one_sentence(proxy: Proxy) -> None:
    with pytest.raises(PublishError, match="another program uses this address"):
        Proxy(PublishConfig(proxy.endpoint))


def test_both_sides_speak_curve_where_there_are_keys(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    make_keys(folder, ["fleet", "robot"])
    proxy = Proxy(ANY_PORT, str(folder))
    try:
        with (
            Publisher(ANY_PORT, ServerKeys(folder)) as worker,
            PoseSubscriber(proxy.endpoint) as stranger,
            PoseSubscriber(worker.endpoint) as eavesdropper,
            PoseSubscriber(proxy.endpoint, keys=folder / "robot.key") as subscriber,
        ):
            proxy.follow([worker.endpoint], ["secret"])
            sent_until_heard(worker, subscriber, "secret", 1)
            assert stranger.receive(0.5) is None
            assert eavesdropper.receive(0.1) is None
    finally:
        proxy.close()


def test_address_that_others_can_reach_wants_keys_and_keys_want_a_client_for_the_fleet(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there are no keys"):
        Proxy(PublishConfig("tcp://*:0"))
    make_keys(tmp_path / "keys", ["robot"])
    with pytest.raises(KeyFileError, match=r"fleet\.key: cannot be read"):
        Proxy(ANY_PORT, str(tmp_path / "keys"))
