"""A minute of two RTSP cameras with the network that is shipped, recorded and inferred again."""

from __future__ import annotations

import time
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from engines.engine import Engine
from engines.prompts import parse_prompt
from pipeline.config import load_config
from pipeline.flow.pipeline import Pipeline
from pipeline.sources import open_sources
from pipeline.synthetic import SceneConfig, SceneVideo
from tests.pipeline.flow.running import lines_of
from tests.pipeline.recordings import stopped, without_times
from tests.pipeline.servers import RtspServer, need_rtsp_server
from tests.pipeline.videos import write_video

SECONDS = 60
RATE = 15
DRAWN = 60  # frames; drawing takes longer than inferring


def drawn_people(path: Path, seed: int) -> Path:
    """A minute of people who walk on the spot, without B-frames."""
    scenes = SceneVideo(seed=seed, config=SceneConfig(categories=("person",)), size_hw=(240, 320), rate=RATE)
    drawn = [scenes.frame(index).rgb_HW3 for index in range(DRAWN)]
    there_and_back = drawn + drawn[::-1]
    return write_video(
        path, (SECONDS + 20) * RATE, size=(320, 240), rate=RATE, codec="libx264",
        picture=lambda index: there_and_back[index % len(there_and_back)],
        codec_options={"bf": "0", "g": str(RATE), "preset": "ultrafast", "crf": "18", "slices": "1", "threads": "1"},
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_minute_of_two_cameras_with_drops_and_a_prompt_change_is_replayed_bit_for_bit(tmp_path: Path) -> None:
    need_rtsp_server()
    config = load_config(overrides=["engine.score_threshold=0.2", "flow.age_budget_s=20"], batch=2)
    first, second = (parse_prompt(words, max_classes=8, max_keypoints=68) for words in ("person", "dog,person"))
    with ExitStack() as opened:
        servers = [RtspServer(drawn_people(tmp_path / f"{seed}.mp4", seed)) for seed in (1, 2)]
        for server in servers:
            opened.callback(server.kill)
        engine = opened.enter_context(closing(Engine(config.engine_of_pipeline)))
        pipeline = Pipeline(config, poses=tmp_path / "then.jsonl", record=tmp_path / "out.mcap")
        names = [pipeline.add(server.uri) for server in servers]
        pipeline.start(engine, first)
        while pipeline.metrics.frames_out("publish") < 10:
            time.sleep(0.05)
        time.sleep(SECONDS / 2)
        pipeline.set_prompts(second)
        time.sleep(SECONDS / 2)
        drops = [pipeline.metrics.drops(name)["newer frame"] for name in names]
        stopped(pipeline, 60)
    again = Pipeline(config, poses=tmp_path / "now.jsonl")
    for source in open_sources(str(tmp_path / "out.mcap"), config.source):
        again.add(source)
    with closing(Engine(config.engine_of_pipeline)) as engine:
        again.run(engine, first)
    then, now = (
        {(message["source"], message["frame"]): without_times(message) for message in lines_of(tmp_path / name)}
        for name in ("then.jsonl", "now.jsonl")
    )
    assert min(drops) > 0, "nothing was dropped, so nothing is tested"
    assert {message["prompt_id"] for message in then.values()} == {1, 2}
    assert sum(len(message["tracks"]) for message in then.values()) > 20, "nobody was seen"
    assert then == now
    print(f"{len(then)} frames inferred, {drops} dropped")
