"""Damaged copies of real clips, from fixed seeds: nothing but SourceError ever comes out, and good frames are kept."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import av
import numpy as np
import pytest

from pipeline.errors import SourceError
from pipeline.frames import Frame
from pipeline.sources import open_source
from tests.pipeline.videos import noise, write_video
from tests.support import need_shared

CLIPS = ["intel_preview_face-demographics-walking.mp4", "intel_asl_again.mkv", "mmpose_demo.mp4", "felix_exercise.avi"]
LONGEST_BYTES = 250_000  # keeps the test quick; a cut AVI is a case of its own
CASES_PER_CLIP = 16


def damaged(data: bytes, rng: random.Random) -> bytes:
    """`data` with one kind of damage at a random place."""
    damaged = bytearray(data)
    kind = rng.choice(["cut", "flip bits", "zero", "insert", "delete", "header", "everywhere"])
    start, length = rng.randrange(len(data)), rng.randrange(1, 5000)
    if kind == "cut":
        del damaged[start:]
    elif kind == "flip bits":
        for _ in range(10):
            damaged[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == "zero":
        damaged[start : start + length] = bytes(len(damaged[start : start + length]))
    elif kind == "insert":
        damaged[start:start] = rng.randbytes(length)
    elif kind == "delete":
        del damaged[start : start + length]
    else:
        places = 3000 if kind == "header" else len(data)
        for _ in range(5 if kind == "header" else 2000):
            damaged[rng.randrange(min(places, len(data)))] = rng.randrange(256)
    return bytes(damaged)


def read(path: Path) -> tuple[list[Frame], SourceError | None]:
    frames: list[Frame] = []
    try:
        source = open_source(str(path))
        for frame in source:
            frames.append(frame)
    except SourceError as error:
        return frames, error
    return frames, None


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", CLIPS)
def test_damaged_file_ends_well_or_with_a_source_error(name: str, tmp_path: Path) -> None:
    data = need_shared(f"data/videos/{name}").read_bytes()[:LONGEST_BYTES]
    path = tmp_path / name
    errors = 0
    for seed in range(CASES_PER_CLIP):
        path.write_bytes(damaged(data, random.Random(f"{name} {seed}")))
        frames, error = read(path)
        assert [frame.index for frame in frames] == list(range(len(frames))), f"seed {seed}"
        times_s = [frame.pts_s for frame in frames if frame.pts_s is not None]
        assert all(later > earlier for earlier, later in itertools.pairwise(times_s)), f"seed {seed}"
        if error is not None:
            errors += 1
            assert error.partial == bool(frames), f"seed {seed}"
            assert "\n" not in str(error), f"seed {seed}"
    assert errors >= CASES_PER_CLIP // 3, "damage of this kind is mostly noticed"


@pytest.mark.parametrize("name", ["cut.mkv", "cut.avi", "cut.ts"])
def test_every_picture_before_a_cut_is_kept_unchanged(name: str, tmp_path: Path) -> None:
    path = write_video(tmp_path / name, 30, codec="mpeg2video" if name.endswith("ts") else "mpeg4", picture=noise)
    whole, _ = read(path)
    data = path.read_bytes()
    with av.open(str(path)) as container:
        ends = [
            packet.pos + packet.size for packet in container.demux(video=0) if packet.pos is not None and packet.size
        ]
    rng = random.Random(name)
    for cut in [rng.randrange(ends[2], len(data)) for _ in range(12)]:
        complete = sum(end <= cut for end in ends)
        path.write_bytes(data[:cut])
        frames, error = read(path)
        assert len(frames) >= complete - 1, f"cut at {cut}"  # MPEG-TS packs the end of a picture beside padding
        for frame, original in zip(frames[: complete - 1], whole, strict=False):
            np.testing.assert_array_equal(frame.rgb_HW3, original.rgb_HW3)
        assert error is None or error.partial
        if not name.endswith("ts"):
            assert error is not None, f"cut at {cut} went unnoticed"
