"""Pictures for many viewers: newest frame wins, encoded once, and only while somebody looks."""

import json
import time
from collections import Counter
from contextlib import ExitStack
from typing import Any
from unittest import mock

import pytest
from websockets.exceptions import ConnectionClosed

from pipeline.service import pictures
from tests.pipeline.fakes import FakeSource
from tests.pipeline.service.watched import Camera, Watched, split, until, watched

pytestmark = pytest.mark.timeout(120)


class Encodings:
    """Counts the pictures that are encoded, by source and form."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, bool]] = Counter()
        self._encode = pictures.Pictures._encode

    def __call__(self, feeds: pictures.Pictures, source: str, annotated: bool, view: pictures.View) -> bytes:
        self.counts[source, annotated] += 1
        return self._encode(feeds, source, annotated, view)


@pytest.fixture
def encodings() -> Any:
    counting = Encodings()
    with mock.patch.object(pictures.Pictures, "_encode", lambda *given: counting(*given)):
        yield counting


def next_picture(socket: Any, *, seen: bool = True) -> tuple[dict[str, Any], bytes]:
    """The next picture; statuses are skipped."""
    while isinstance(data := socket.recv(20), str):
        pass
    head, jpeg = split(data)
    if seen:
        socket.send(json.dumps({"seen": head["source"]}))
    return head, jpeg


def test_viewer_gets_each_picture_with_its_own_message(encodings: Encodings) -> None:
    with watched(Camera(), picture_rate=100) as found, found.live() as socket:
        socket.send('{"look": ["camera"]}')
        heads = [next_picture(socket)[0] for _ in range(5)]
        frames = [head["message"]["frame"] for head in heads]
        assert frames == sorted(set(frames))
        assert [entry["name"] for entry in heads[0]["skeleton"]["classes"]] == ["mug"]
        assert [head["skeleton"] for head in heads[1:]] == [None] * 4
        assert all(0 <= head["age_s"] < 10 for head in heads)
        assert heads[0]["message"]["tracks"][0]["keypoints"]


def test_nothing_is_encoded_while_nobody_looks(encodings: Encodings) -> None:
    with watched(Camera(), picture_rate=100) as found:
        until(lambda: found.pipeline.metrics.frames_out("publish") > 10)
        with found.live() as socket:
            socket.recv(20)
            time.sleep(0.3)
            assert not encodings.counts  # the page is open and shows no picture
            socket.send('{"look": ["camera"]}')
            next_picture(socket)
            socket.send('{"look": []}')
            time.sleep(0.3)
            encoded = encodings.counts.total()
            time.sleep(0.5)
            assert encodings.counts.total() == encoded


def test_pictures_are_encoded_once_for_all_viewers_and_at_most_at_the_rate(encodings: Encodings) -> None:
    with watched(Camera(interval_s=0.005), picture_rate=10) as found, ExitStack() as opened:
        sockets = [opened.enter_context(found.live()) for _ in range(4)]
        for socket in sockets:
            socket.send('{"look": ["camera"]}')
        begun_s = time.monotonic()
        frames = [[next_picture(socket)[0]["message"]["frame"] for socket in sockets] for _ in range(8)]
        took_s = time.monotonic() - begun_s
        assert encodings.counts["camera", False] <= 10 * took_s + 3
        assert encodings.counts["camera", False] < 20  # and not 4 x 8
        assert len(frames) == 8


def test_viewer_that_draws_nothing_gets_two_pictures_and_then_the_newest(encodings: Encodings) -> None:
    with watched(Camera(), picture_rate=50) as found, found.live() as sleeping, found.live() as awake:
        for socket in (sleeping, awake):
            socket.send('{"look": ["camera"]}')
        asleep = [next_picture(sleeping, seen=False)[0]["message"]["frame"] for _ in range(2)]
        for _ in range(20):
            newest = next_picture(awake)[0]["message"]["frame"]
        sleeping.send('{"seen": "camera"}')
        woken = next_picture(sleeping)[0]["message"]["frame"]
        assert woken >= newest > asleep[1] + 10


def test_viewer_that_reads_nothing_at_all_slows_neither_the_pipeline_nor_another_viewer() -> None:
    with watched(Camera(), picture_rate=50) as found, ExitStack() as opened:
        stuck = [opened.enter_context(found.live(max_queue=1)) for _ in range(3)]
        for socket in stuck:
            socket.send('{"look": ["camera"]}')
            for _ in range(1000):
                socket.send('{"seen": "camera"}')  # it claims to have drawn
        with found.live() as socket:
            socket.send('{"look": ["camera"]}')
            before = found.pipeline.metrics.frames_out("publish")
            for _ in range(30):
                next_picture(socket)
            assert found.pipeline.metrics.frames_out("publish") - before >= 25
        for socket in stuck:
            socket.socket.close()


def test_only_known_sources_can_be_looked_at_and_each_viewer_gets_what_it_asked_for() -> None:
    with watched(Camera("a"), Camera("b")) as found, found.live() as socket:
        socket.send(json.dumps({"look": ["a", "none", "../a", ""]}))
        assert {next_picture(socket)[0]["source"] for _ in range(5)} == {"a"}
        socket.send(json.dumps({"look": ["b"]}))
        until(lambda: next_picture(socket)[0]["source"] == "b")
        assert {next_picture(socket)[0]["source"] for _ in range(5)} == {"b"}


def test_status_names_states_prompt_categories_and_what_may_be_changed() -> None:
    camera = Camera()
    with watched(camera, FakeSource(5, "file"), steer="prompts") as found, found.live() as socket:
        status = until(lambda: (s := json.loads(socket.recv(20)))["sources"][0]["published"] > 3 and s)
        assert status["prompt"] == {"id": 1, "text": "mug"}
        assert status["may"] == {"prompts": True, "free_words": False, "sources": False}
        assert "person" in status["categories"]
        source = status["sources"][0]
        assert (source["name"], source["state"], source["last_error"]) == ("camera", "live", None)
        assert 0 <= source["age_s"] < 10
        assert source["found_ago_s"] < 10
        assert status["sources"][1]["age_s"] is None  # a file was filmed at another time
        camera.lost = True
        lost = until(lambda: (s := json.loads(socket.recv(20)))["sources"][0]["state"] == "lost" and s)["sources"][0]
        assert "nothing listens on port 554" in lost["last_error"]
        assert lost["age_s"] == lost["silent_s"] > 0


@pytest.mark.parametrize(
    "request_", ["{", "[]", '{"look": 3}', '{"other": 1}', '{"look": [1]}', b"\x00", "x" * 100_000]
)
def test_viewer_that_says_nonsense_is_closed_and_others_go_on(request_: str | bytes) -> None:
    with watched(Camera()) as found, found.live() as good:
        with found.live() as bad:
            bad.send(request_)
            with pytest.raises(ConnectionClosed):
                read_to_the_end(bad)
        good.send('{"look": ["camera"]}')
        next_picture(good)


def test_one_viewer_too_many_is_told_so() -> None:
    with watched(Camera(), viewers=1) as found, found.live() as first:
        first.recv(20)
        with pytest.raises(Exception, match=r"1013|403"), found.live() as second:
            second.recv(20)
        assert found.request("/sources/camera.mjpg")[0] == 503
        first.recv(20)
    assert isinstance(found, Watched)


def test_source_that_is_removed_ends_its_stream_and_its_feed() -> None:
    with watched(Camera("a"), Camera("b")) as found, found.live() as socket:
        socket.send('{"look": ["a", "b"]}')
        next_picture(socket)
        found.operations.remove_source("a")
        until(lambda: [s["name"] for s in json.loads(status_of(socket))["sources"]] == ["b"])
        until(lambda: next_picture(socket)[0]["source"] == "b")
        assert found.request("/sources/a.jpg")[0] == 404


def read_to_the_end(socket: Any) -> None:
    while True:
        socket.recv(20)


def status_of(socket: Any) -> str:
    while not isinstance(data := socket.recv(20), str):
        socket.send(json.dumps({"seen": split(data)[0]["source"]}))
    return data
