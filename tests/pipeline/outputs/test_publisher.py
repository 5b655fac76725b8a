"""Both ends of the socket: topics, late joiners, gaps, restarts, CONFLATE, and endpoints that cannot be."""

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
import zmq

from pipeline.errors import ConfigError, PublishError
from pipeline.outputs.publisher import PublishConfig, Publisher
from tests.clients.python.made import pose, skeleton, status
from xpose_client.messages import decode, topic_of
from xpose_client.subscriber import PoseSubscriber

pytestmark = pytest.mark.timeout(30)


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    with Publisher(PublishConfig("tcp://127.0.0.1:*")) as publisher:
        yield publisher


def connect(publisher: Publisher, **options: object) -> PoseSubscriber:
    """A subscriber whose subscriptions to poses, skeletons and states the publisher has seen and served."""
    subscriber = PoseSubscriber(publisher.endpoint, **options)  # type: ignore[arg-type]
    wait_for_subscriptions(publisher, 3)
    return subscriber


def wait_for_subscriptions(publisher: Publisher, count: int) -> None:
    deadline_s = time.monotonic() + 5
    while count > 0:
        assert time.monotonic() < deadline_s
        count -= publisher.serve_late_joiners()
        time.sleep(0.005)
    answered_s = time.monotonic() + 0.15  # one prefix is answered at a time
    while time.monotonic() < answered_s:
        publisher.serve_late_joiners()
        time.sleep(0.005)


def test_subscriber_receives_every_message_in_order_with_its_age(publisher: Publisher) -> None:
    with connect(publisher) as subscriber:
        for seq in range(50):
            publisher.publish(pose(seq))
        received = [subscriber.receive(2) for _ in range(50)]
        assert [got.message.seq for got in received if got] == list(range(50))
        assert all(0 < got.age_s < 5 for got in received if got)
        assert (subscriber.received, subscriber.missed) == (50, 0)
        assert subscriber.receive(0.01) is None


def test_subscriptions_are_counted_until_their_subscriber_goes(publisher: Publisher) -> None:
    with connect(publisher), connect(publisher):
        assert publisher.subscriptions == 6  # poses, skeletons and states each
    deadline_s = time.monotonic() + 10
    while publisher.subscriptions:
        assert time.monotonic() < deadline_s
        publisher.serve_late_joiners()
        time.sleep(0.005)


def test_late_joiner_gets_the_skeletons_and_the_last_poses_at_once(publisher: Publisher) -> None:
    for source in ("cam1", "cam2"):
        publisher.publish(skeleton(source))
        for seq in range(3):
            publisher.publish(pose(seq, source))
    with connect(publisher) as subscriber:
        received = [subscriber.receive(2), subscriber.receive(2)]
        messages = [got.message for got in received if got]
        assert sorted((message.source, message.seq) for message in messages) == [("cam1", 2), ("cam2", 2)]
        found = subscriber.skeleton(messages[0])
        assert found is not None
        assert found.classes[0].keypoints == ["rim"]
        assert subscriber.missed == 0


def test_repeats_for_a_late_joiner_are_passed_over_by_those_who_had_them(publisher: Publisher) -> None:
    with connect(publisher) as early:
        publisher.publish(pose(0))
        assert early.receive(2) is not None
        with connect(publisher) as late:
            assert late.receive(2) is not None
        publisher.publish(pose(1))
        following = early.receive(2)
        assert following is not None
        assert following.message.seq == 1
        assert (early.received, early.missed) == (2, 0)


def test_subscription_to_one_source_leaves_out_those_whose_names_begin_alike(publisher: Publisher) -> None:
    with connect(publisher, source="cam1") as subscriber:
        for source in ("cam10", "cam1", "cam2"):
            publisher.publish(pose(0, source))
        received = subscriber.receive(2)
        assert received is not None
        assert received.message.source == "cam1"
        assert subscriber.receive(0.1) is None


def test_conflate_leaves_the_newest_message_and_the_skeletons(publisher: Publisher) -> None:
    with connect(publisher, source="cam1", conflate=True) as subscriber:
        publisher.publish(skeleton())
        for seq in range(20):
            publisher.publish(pose(seq))
        time.sleep(0.3)
        received = subscriber.receive(2)
        assert received is not None
        assert received.message.seq == 19
        assert subscriber.skeleton(received.message) is not None
        assert subscriber.receive(0.05) is None


def test_bare_zeromq_socket_with_a_prefix_gets_one_part_of_topic_nul_msgpack(publisher: Publisher) -> None:
    with zmq.Context() as context, context.socket(zmq.SUB) as bare:
        bare.setsockopt_string(zmq.SUBSCRIBE, "poses/")
        bare.connect(publisher.endpoint)
        wait_for_subscriptions(publisher, 1)
        publisher.publish(skeleton())
        publisher.publish(pose(7))
        assert bare.poll(2000)
        (part,) = bare.recv_multipart()
        assert part.startswith(b"poses/cam1\0")
        assert topic_of(decode(part)) == "poses/cam1"


@pytest.mark.parametrize("endpoint", ["tcp://[::1]:*", "tcp://[::]:*"])
def test_ipv6_endpoints_can_be_bound(endpoint: str) -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6")
    with Publisher(PublishConfig(endpoint)) as publisher, zmq.Context() as context, context.socket(zmq.SUB) as bare:
        bare.setsockopt(zmq.IPV6, 1)
        bare.setsockopt_string(zmq.SUBSCRIBE, "poses/")
        bare.connect(publisher.endpoint.replace("[::]", "[::1]"))
        wait_for_subscriptions(publisher, 1)
        publisher.publish(pose(0))
        assert bare.poll(2000)


def test_flood_of_subscriptions_gets_a_bounded_number_of_answers(publisher: Publisher) -> None:
    for source in ("cam1", "cam2"):
        publisher.publish(skeleton(source))
        publisher.publish(pose(0, source))
    with zmq.Context() as context, context.socket(zmq.SUB) as witness, context.socket(zmq.SUB) as flood:
        witness.setsockopt_string(zmq.SUBSCRIBE, "")
        witness.connect(publisher.endpoint)
        wait_for_subscriptions(publisher, 1)
        flood.connect(publisher.endpoint)
        started_s = time.monotonic()
        asked = read = 0
        while time.monotonic() - started_s < 1.0:
            for _ in range(20):
                flood.setsockopt_string(zmq.SUBSCRIBE, "poses/")
                flood.setsockopt_string(zmq.UNSUBSCRIBE, "poses/")
                asked += 1
            read += publisher.serve_late_joiners()
        passed_s = time.monotonic() - started_s
        answers = 0
        while witness.poll(200):
            witness.recv()
            answers += 1
    assert read > 200
    assert answers <= 2 * passed_s / 0.02 + 10, "two messages in each 20 ms, and the witness's own"


def test_two_prefixes_are_answered_one_after_the_other(publisher: Publisher, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock stands still, so that a second answer within one interval cannot pass for a later one."""
    clock = SimpleNamespace(now_s=100.0)
    monkeypatch.setattr("pipeline.outputs.publisher.time", SimpleNamespace(monotonic=lambda: clock.now_s))
    for source in ("cam1", "cam2"):
        publisher.publish(pose(0, source))
    with zmq.Context() as context, context.socket(zmq.SUB) as one, context.socket(zmq.SUB) as two:
        for socket, source in ((one, "cam1"), (two, "cam2")):
            socket.setsockopt_string(zmq.SUBSCRIBE, f"poses/{source}")
            socket.connect(publisher.endpoint)
        wait_for_subscriptions(publisher, 2)
        publisher.serve_late_joiners()
        assert sorted(socket.poll(200) for socket in (one, two)) == [0, zmq.POLLIN]
        clock.now_s += 1.0
        publisher.serve_late_joiners()
        assert [socket.poll(2000) for socket in (one, two)] == [zmq.POLLIN, zmq.POLLIN]


def test_late_joiner_gets_the_state_of_each_source(publisher: Publisher) -> None:
    publisher.publish(status("cam1"))
    publisher.publish(pose(0))
    with zmq.Context() as context, context.socket(zmq.SUB) as bare:
        bare.setsockopt_string(zmq.SUBSCRIBE, "")
        bare.connect(publisher.endpoint)
        wait_for_subscriptions(publisher, 1)
        received = [decode(bare.recv()) for _ in range(2) if bare.poll(2000)]
    assert [topic_of(message) for message in received] == ["status/cam1", "poses/cam1"], "the state comes first"


def test_port_in_use_is_one_sentence() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        endpoint = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(PublishError, match="another program uses this address"):
            Publisher(PublishConfig(endpoint))


def test_ipc_endpoint_is_never_taken_from_a_program_that_listens(tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path / 'poses'}"
    with Publisher(PublishConfig(endpoint)), pytest.raises(PublishError, match="another program uses this address"):
        Publisher(PublishConfig(endpoint))


def test_ipc_endpoint_of_a_program_that_was_killed_is_bound_again(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(tmp_path / "poses"))
    with Publisher(PublishConfig(f"ipc://{tmp_path / 'poses'}")):
        pass


@pytest.mark.parametrize(
    "endpoint",
    [
        *("5555", "tcp://", "tcp://127.0.0.1", "tcp://*:99999", "tcp://*:-1", "tcp://*:abc", "http://*:80", "ipc://"),
        *("tcp://::1:5555", "tcp://[::1]", "tcp://[::1]:70000", "tcp://[::1:5555"),
    ],
)
def test_malformed_endpoint_is_refused(endpoint: str) -> None:
    with pytest.raises(ConfigError, match="--publish"):
        PublishConfig(endpoint)


@pytest.mark.parametrize(
    "endpoint", ["tcp://192.0.2.1:5555", "tcp://no-such-interface:5555", "ipc:///no/such/folder/x"]
)
def test_address_of_no_interface_or_folder_is_one_sentence(endpoint: str) -> None:
    with pytest.raises(PublishError, match=r"no network interface|does not exist"):
        Publisher(PublishConfig(endpoint))


def test_ipc_never_removes_a_file_that_is_no_socket(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("keep me")
    with pytest.raises(ConfigError, match="not a socket"):
        PublishConfig(f"ipc://{precious}")
    assert precious.read_text() == "keep me"


def test_slow_subscriber_loses_what_does_not_fit_into_the_send_queue() -> None:
    """Messages of 1 MB, so that the buffers of the system hold only a few."""
    received: dict[int, int] = {}
    for send_queue in (2, 1000):
        with (
            Publisher(PublishConfig("tcp://127.0.0.1:*", send_queue=send_queue)) as publisher,
            zmq.Context() as context,
            context.socket(zmq.SUB) as slow,
        ):
            slow.setsockopt(zmq.RCVHWM, 1)
            slow.setsockopt_string(zmq.SUBSCRIBE, "")
            slow.connect(publisher.endpoint)
            wait_for_subscriptions(publisher, 1)
            for seq in range(60):
                publisher.publish(msgspec.structs.replace(pose(seq), file="x" * 1_000_000))
            received[send_queue] = 0
            while slow.poll(1000):
                slow.recv()
                received[send_queue] += 1
    assert received[1000] == 60
    assert 2 <= received[2] < 50
