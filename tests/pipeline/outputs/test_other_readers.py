"""Recordings in the readers of other people; the library `mcap` reads them in all other tests."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pipeline.flow.running import make_pipeline, run
from tests.pipeline.recordings import plain_video
from tests.support import lacks

pytestmark = pytest.mark.timeout(200)

SCHEMAS = {
    "video/clip": "foxglove.CompressedVideo",
    "annotations/clip": "foxglove.ImageAnnotations",
    "poses/clip": "xpose.PoseMessage",
    "frames/clip": "xpose.FrameRecord",
    "tracked/clip": "xpose.TrackedRecord",
}


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    pipeline = make_pipeline(record=tmp_path / "out.mcap")
    pipeline.add(str(plain_video(tmp_path / "clip.mp4")))
    run(pipeline)
    return tmp_path / "out.mcap"


def test_rerun_imports_a_recording_with_its_video(recording: Path, tmp_path: Path) -> None:
    environment = os.environ | {"HOME": str(tmp_path)}  # its settings, where it is told to send nothing

    def rerun(*arguments: str) -> str:
        command = [sys.executable, "-m", "rerun", *arguments]
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=120).stdout

    rerun("analytics", "disable")
    checked = rerun("mcap", "check", str(recording))
    for topic in SCHEMAS:
        assert re.search(rf"^ok .* {topic} ", checked, re.M), checked
    rerun("mcap", "convert", str(recording), "-o", str(tmp_path / "out.rrd"))
    printed = rerun("rrd", "print", str(tmp_path / "out.rrd"))
    for topic, column in (("video", "VideoStream:sample"), ("annotations", "foxglove.ImageAnnotations:message")):
        rows = re.findall(rf"with (\d+) rows .* - /{topic}/clip - data columns: \[.*{column}", printed)
        assert sum(map(int, rows)) == 30, printed
    assert "xpose.configuration" in printed


@pytest.mark.slow
def test_npm_reader_reads_every_message_through_the_index(recording: Path, tmp_path: Path) -> None:
    npm, node = shutil.which("npm"), shutil.which("node")
    if npm is None or node is None:
        pytest.skip("no npm: install Node.js")
    install = [npm, "install", "--no-audit", "--no-fund", "--prefix", str(tmp_path), "@mcap/core@2", "fzstd@0.1"]
    installed = subprocess.run(install, capture_output=True, text=True, timeout=150)
    if installed.returncode:
        lacks(f"npm cannot install @mcap/core: {installed.stderr.strip().splitlines()[-1:]}")
    script = shutil.copy(Path(__file__).with_name("read_mcap.js"), tmp_path)
    output = subprocess.run([node, script, str(recording)], check=True, capture_output=True, text=True, timeout=60)
    found = json.loads(output.stdout)
    for topic, schema in SCHEMAS.items():
        assert found["topics"][topic]["schema"] == schema
        assert found["topics"][topic]["messages"] == 30
    assert found["topics"]["frames/clip"]["first"]["frame"] == 0
    assert found["metadata"]["xpose.recording"]["format"] == "1"
