"""The monitor page in real Chromium. Each state is written as a picture into the test's temporary folder.

Debian's `chromium` is driven by Playwright; nothing is downloaded.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from pipeline.outputs.overlay import colour_of
from tests.pipeline.fakes import FakeEngine
from tests.pipeline.service.watched import Camera, until, watched
from tests.support import REPOSITORY, lacks

pytestmark = pytest.mark.timeout(300)

CHROMIUM = shutil.which("chromium")
FLAGS = ["--no-sandbox", "--disable-background-networking"]
WAIT_MS = 30_000
START_S = 120.0  # a process imports PyTorch and OpenCV first
PICTURED = (
    "() => document.querySelector('canvas') && document.querySelector('canvas').width !== 300"  # HTML's own width
)
ODD = "<img src=x onerror=alert(1)>"
PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "has_touch": True}


@pytest.fixture(scope="module")
def browser() -> Generator[Any]:
    if CHROMIUM is None:
        lacks("Chromium is absent: install the Debian package chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Any) -> Generator[Callable[..., Any]]:
    """Opens pages; a test fails where one logged an error, broke its policy, or asked for anything elsewhere."""
    contexts, wrong = [], []

    def open_one(address: str, **options: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark", **options})
        context.set_default_timeout(WAIT_MS)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
        page.on("console", lambda line: wrong.append(line.text) if "Content Security Policy" in line.text else None)
        page.on("request", lambda request: None if request.url.startswith(address) else wrong.append(request.url))
        page.goto(address)
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert wrong == []


def shot(page: Any, folder: Path, name: str) -> None:
    page.screenshot(path=folder / f"{name}.png")


def tile(page: Any, name: str) -> Any:
    return page.locator(".tile").filter(has=page.get_by_role("heading", name=name, exact=True))


def wait_for(page: Any, condition: str, argument: Any = None) -> None:
    page.wait_for_function(condition, arg=argument, timeout=WAIT_MS)


def content(tile: Any) -> str:
    """The pixels of the tile's canvas."""
    return str(tile.locator("canvas").evaluate("canvas => canvas.toDataURL()"))


def until_page(page: Any, condition: Callable[[], Any], what: str) -> None:
    """Wait for a condition of this process while the page goes on."""
    deadline_s = time.monotonic() + WAIT_MS / 1000
    while not condition():
        assert time.monotonic() < deadline_s, f"{what} did not happen within {WAIT_MS / 1000:g} s"
        page.wait_for_timeout(50)


def test_picture_moves_and_the_table_has_the_tracks_of_the_messages(
    open_page: Callable[..., Any], tmp_path: Path
) -> None:
    with watched(Camera()) as found:
        page = open_page(found.monitor.address)
        camera = tile(page, "camera")
        camera.locator(".state", has_text="live").wait_for()
        first = content(camera)
        until_page(page, lambda: content(camera) != first, "a new picture")
        assert camera.locator(".notice").is_hidden()
        wait_for(page, "() => /^\\d+ ms$/.test(document.querySelector('[data-number=age] dd').textContent)")
        wait_for(page, "() => parseFloat(document.querySelector('[data-number=rate] dd').textContent) > 0")
        assert camera.locator("[data-number=lag] dd").text_content() == "12 ms"
        shot(page, tmp_path, "live")
        camera.locator(".enlarge").click()
        rows = camera.locator("tbody tr")
        rows.first.wait_for()
        (track,) = found.operations.newest("camera").message.tracks  # type: ignore[union-attr]
        assert rows.count() == 1
        assert rows.first.get_attribute("data-track") == str(track.id)
        assert rows.first.locator("td").all_text_contents()[:4] == [str(track.id), "mug", "0.90", "3 of 3"]
        shot(page, tmp_path, "large")
        page.keyboard.press("Escape")
        assert camera.locator("table").is_hidden()


def test_boxes_and_skeletons_are_drawn_where_the_message_says(open_page: Callable[..., Any]) -> None:
    with watched(Camera()) as found:
        page = open_page(found.monitor.address)
        wait_for(page, PICTURED)
        drawn = page.evaluate(
            """async () => {
                const { draw, colourOf } = await import("/page/draw.js");
                const canvas = document.createElement("canvas");
                canvas.style.width = "640px";
                document.body.append(canvas);
                const track = {
                    id: 7, class: "mug", score: 0.9, measured: true, box_xyxy: [100, 60, 200, 160],
                    keypoints: [[120, 80], [180, 140], [null, null]], keypoints_measured: [true, true, false],
                };
                draw(canvas, null, { width: 320, height: 240, tracks: [track] }, { mug: [[0, 1], [1, 2]] });
                const pen = canvas.getContext("2d");
                const at = (x, y) => [...pen.getImageData(x * canvas.width / 320, y * canvas.width / 320, 1, 1).data];
                const probe = document.createElement("canvas").getContext("2d");
                probe.fillStyle = colourOf(7);
                probe.fillRect(0, 0, 1, 1);
                return { colour: [...probe.getImageData(0, 0, 1, 1).data], limb: at(150, 110), corner: at(100, 65),
                         outside: at(30, 200), inside: at(110, 150) };
            }"""
        )
        assert drawn["colour"] == [*colour_of(7), 255], "as in annotated videos"
        for place in ("limb", "corner"):
            assert drawn[place] == pytest.approx(drawn["colour"], abs=30), place  # edges are smoothed
        assert drawn["outside"] == drawn["inside"] == [0, 0, 0, 0]


def test_prompt_change_takes_effect_on_the_next_frames_and_an_error_is_a_sentence(
    open_page: Callable[..., Any], tmp_path: Path
) -> None:
    with watched(Camera()) as found:
        page = open_page(found.monitor.address)
        prompt = page.get_by_label("Looking for")
        wait_for(
            page, "() => { const box = document.getElementById('prompt'); return box.value === 'mug' && !box.readOnly }"
        )
        prompt.fill("per")
        page.get_by_role("option", name="person").wait_for()
        shot(page, tmp_path, "suggestions")
        prompt.press("ArrowDown")
        prompt.press("Enter")
        assert prompt.input_value() == "person"
        prompt.press("Enter")
        until_page(page, lambda: found.operations.status().prompts.id == 2, "the change")
        page.get_by_text("Looking for person from the next frame on").wait_for()
        tile(page, "camera").locator(".enlarge").click()
        tile(page, "camera").get_by_role("cell", name="person").first.wait_for()
        message = found.operations.newest("camera").message  # type: ignore[union-attr]
        assert message.prompt_id == 2
        prompt.fill("persn")
        page.get_by_role("button", name="Apply").click()
        page.locator("#prompt-answer[data-kind=error]").wait_for()
        assert "persn" in (page.locator("#prompt-answer").text_content() or "")
        shot(page, tmp_path, "error")
        assert found.operations.status().prompts.id == 2


def test_lost_and_late_sources_look_so_and_not_alive(open_page: Callable[..., Any], tmp_path: Path) -> None:
    camera = Camera()
    with watched(camera, Camera("other")) as found:
        page = open_page(found.monitor.address)
        lost = tile(page, "camera")
        lost.locator(".state", has_text="live").wait_for()
        camera.age_s = 5.0
        lost.locator(".state", has_text="late").wait_for()
        page.get_by_text("late: the newest picture is").wait_for()
        shot(page, tmp_path, "late")
        camera.age_s, camera.lost = 0.0, True
        lost.locator(".state", has_text="lost").wait_for()
        lost.locator(".notice", has_text="no picture for").wait_for()
        lost.locator(".enlarge").click()
        lost.get_by_text("nothing listens on port 554").wait_for()
        shot(page, tmp_path, "lost")
        assert tile(page, "other").locator(".notice").is_hidden()
        camera.lost = False
        lost.locator(".state", has_text="live").wait_for()
        lost.locator(".notice").wait_for(state="hidden")


def test_picture_that_stands_still_although_the_source_is_live_is_marked(open_page: Callable[..., Any]) -> None:
    import threading

    held, engine = threading.Event(), FakeEngine()
    with watched(Camera(), engine=engine) as found:
        page = open_page(found.monitor.address)
        wait_for(page, PICTURED)
        engine.on_submit = lambda images: held.wait(60) and None
        try:
            tile(page, "camera").locator(".notice", has_text="no new picture for").wait_for()
        finally:
            held.set()
        tile(page, "camera").locator(".notice").wait_for(state="hidden")


def test_source_with_markup_for_a_name_is_text_and_runs_nothing(open_page: Callable[..., Any], tmp_path: Path) -> None:
    with watched(Camera(ODD)) as found:
        page = open_page(found.monitor.address)
        odd = tile(page, ODD)
        odd.locator(".state", has_text="live").wait_for()
        odd.locator(".enlarge").click()
        odd.locator("tbody tr").first.wait_for()
        assert page.locator("main img").count() == 0
        assert odd.locator("h2").text_content() == ODD
        shot(page, tmp_path, "markup")


def test_four_tiles_on_a_wide_screen_and_on_a_phone_in_both_themes(
    open_page: Callable[..., Any], tmp_path: Path
) -> None:
    names = ["door", "yard", "roof", "gate"]
    with watched(*(Camera(name) for name in names)) as found:
        for kind, size in (("wide", {"viewport": {"width": 1400, "height": 1000}}), ("phone", PHONE)):
            page = open_page(found.monitor.address, **size)
            tile(page, "gate").locator(".state", has_text="live").wait_for()
            wait_for(page, PICTURED)
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "scrolls sideways"
            boxes = [tile(page, name).bounding_box() for name in names]
            beside = {round(box["x"]) for box in boxes}
            assert len(beside) == (3 if kind == "wide" else 1), "three tiles fit side by side, on a phone one"
            shot(page, tmp_path, f"{kind}-dark")
            page.emulate_media(color_scheme="light")
            shot(page, tmp_path, f"{kind}-light")
            page.get_by_role("button", name="yard: enlarge").click()
            tile(page, "yard").locator("tbody tr").first.wait_for()
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "scrolls sideways"
            shot(page, tmp_path, f"{kind}-large")
            page.close()


def test_keyboard_walks_over_the_tiles_and_opens_one(open_page: Callable[..., Any]) -> None:
    with watched(Camera("a"), Camera("b"), Camera("c")) as found:
        page = open_page(found.monitor.address)
        tile(page, "c").locator(".state", has_text="live").wait_for()
        focused = "document.activeElement.closest('.tile').dataset.name"
        page.keyboard.press("ArrowRight")
        assert page.evaluate(focused) == "a"
        page.keyboard.press("ArrowRight")
        assert page.evaluate(focused) == "b"
        page.keyboard.press("Enter")
        assert tile(page, "b").locator("table").is_visible()
        page.keyboard.press("Escape")
        assert tile(page, "b").locator("table").is_hidden()
        page.keyboard.press("/")
        assert page.evaluate("document.activeElement.id") == "prompt"


def test_theme_is_chosen_by_the_viewer_and_kept(open_page: Callable[..., Any]) -> None:
    with watched() as found:
        page = open_page(found.monitor.address)
        page.get_by_text("There is no source yet.").wait_for()
        ground = "getComputedStyle(document.body).backgroundColor"
        dark = page.evaluate(ground)
        page.get_by_role("button", name="Theme").click()
        page.get_by_role("button", name="Theme").click()
        light = page.evaluate(ground)
        assert light != dark
        page.reload()
        page.get_by_text("There is no source yet.").wait_for()
        assert page.evaluate(ground) == light


def test_sources_where_something_was_just_found_come_first(open_page: Callable[..., Any]) -> None:
    with watched(Camera("a"), Camera("b")) as found:
        page = open_page(found.monitor.address)
        tile(page, "b").locator(".state", has_text="live").wait_for()
        page.wait_for_timeout(700)
        order = "name => Number(document.querySelector(`[data-name=${name}]`).style.order)"
        assert page.evaluate(order, "a") < page.evaluate(order, "b")
        found.pipeline.sources[0].lost = True  # type: ignore[attr-defined]
        page.get_by_label("Sources with tracks first").check()
        wait_for(page, f"() => ({order})('a') > ({order})('b')")


def test_source_is_added_and_removed_on_the_page(open_page: Callable[..., Any], tmp_path: Path) -> None:
    with watched(Camera()) as found:
        page = open_page(found.monitor.address)
        page.get_by_label("Add a source").fill("testsrc://?frames=100000&size=320x240")
        page.get_by_role("button", name="Add").click()
        tile(page, "testsrc").wait_for()
        shot(page, tmp_path, "added")
        page.get_by_label("Add a source").fill("/etc/passwd")
        page.get_by_role("button", name="Add").click()
        page.locator("#source-answer[data-kind=error]", has_text="takes live addresses only").wait_for()
        page.evaluate("window.confirm = () => true")
        tile(page, "testsrc").get_by_role("button", name="Remove").click()
        tile(page, "testsrc").wait_for(state="detached")
        assert [source.name for source in found.pipeline.sources] == ["camera"]


def test_what_may_not_be_changed_is_not_shown(open_page: Callable[..., Any]) -> None:
    with watched(Camera(), steer="nothing") as found:
        page = open_page(found.monitor.address)
        tile(page, "camera").locator(".state", has_text="live").wait_for()
        for name in ("Apply", "Add", "Remove"):
            assert page.get_by_role("button", name=name, exact=True).count() == 0
        assert page.get_by_label("Add a source").is_hidden()
        assert page.get_by_label("Looking for").evaluate("input => input.readOnly")


def test_page_in_the_background_asks_for_no_pictures(open_page: Callable[..., Any]) -> None:
    with watched(Camera()) as found:
        page = open_page(found.monitor.address)
        wait_for(page, PICTURED)
        feeds = found.monitor._pictures._feeds  # type: ignore[attr-defined]
        page.evaluate(
            """() => {
                Object.defineProperty(document, "hidden", { get: () => true });
                document.dispatchEvent(new Event("visibilitychange"));
            }"""
        )
        until_page(page, lambda: not any(feed.waiting for feed in feeds.values()), "the end of the pictures")


def test_login_page_lets_in_with_the_token(open_page: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("0123456789abcdef")
    path.chmod(0o600)
    with watched(Camera(), token_file=str(path)) as found:
        page = open_page(found.monitor.address)
        page.get_by_label("Token").fill("not the right one")
        page.get_by_role("button", name="Log in").click()
        page.get_by_text("This is not the token").wait_for()
        shot(page, tmp_path, "login")
        page.get_by_label("Token").fill("0123456789abcdef")
        page.get_by_role("button", name="Log in").click()
        tile(page, "camera").locator(".state", has_text="live").wait_for()
        assert "0123456789abcdef" not in page.url
        assert "0123456789abcdef" not in page.evaluate("document.cookie")


@pytest.fixture
def start_process(tmp_path: Path) -> Generator[Callable[[int], subprocess.Popen[bytes]]]:
    """Starts the command line with a fake engine and the monitor on a port; ends what is left."""
    started: list[subprocess.Popen[bytes]] = []

    def start(port: int) -> subprocess.Popen[bytes]:
        script = Path(__file__).with_name("monitored_run.py")
        source = "testsrc://?size=320x240&frames=100000&categories=person"
        command = [sys.executable, script, "run", "--source", source, "--monitor", f"127.0.0.1:{port}"]
        environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'clients' / 'python'}"}
        with (tmp_path / "log").open("ab") as log:
            started.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=tmp_path))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait(20)


def test_page_comes_back_by_itself_after_the_pipeline_was_killed_and_restarted(
    open_page: Callable[..., Any], start_process: Callable[[int], subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = start_process(port)

    def answers() -> bool:
        assert process.poll() is None, (tmp_path / "log").read_text()
        with socket.socket() as caller:
            return caller.connect_ex(("127.0.0.1", port)) == 0

    until(answers, "the monitor", START_S)
    page = open_page(f"http://127.0.0.1:{port}/")
    source = tile(page, "testsrc")
    source.locator(".state", has_text="live").wait_for()
    process.send_signal(signal.SIGKILL)
    process.wait(20)
    source.locator(".notice", has_text="no connection to the pipeline").wait_for()
    page.locator("#connection", has_text="no connection").wait_for()
    shot(page, tmp_path, "disconnected")
    process = start_process(port)
    until(answers, "the monitor", START_S)
    source.locator(".state", has_text="live").wait_for()
    source.locator(".notice").wait_for(state="hidden")
    first = content(source)
    until_page(page, lambda: content(source) != first, "a new picture")
    page.locator("#connection", has_text="connected").wait_for()
