"""Runs every clip of a folder through the command line: it must end well and write one line per frame of the file.

    python -m benchmarks.clips ../shared/data/videos --out out/clips [--prompt person] [--weights FILE] [--video]

Each clip runs in its own process, as a user would run it. The frames of the file are counted by decoding with PyAV.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import av

from benchmarks._record import REPOSITORY, record

SUFFIXES = {".mp4", ".avi", ".mkv", ".mov"}


def run_clip(clip: Path, options: argparse.Namespace) -> dict[str, object]:
    """Run one clip and count the messages; return a row."""
    poses = options.out / f"{clip.stem}.jsonl"
    command = [sys.executable, str(REPOSITORY / "run_pipeline.py"), "run", "--source", str(clip)]
    command += ["--prompt", options.prompt, "--poses", str(poses)]
    command += ["--weights", options.weights] if options.weights else []
    command += ["--video", str(options.out / f"{clip.stem}.mp4")] if options.video else []
    started = time.perf_counter()
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    messages = [json.loads(line) for line in poses.read_text().splitlines()] if poses.exists() else []
    with av.open(str(clip)) as container:
        frames = sum(1 for _ in container.decode(video=0))
    return {
        "clip": clip.name,
        "exit": finished.returncode,
        "frames": frames,
        "lines": len(messages),
        "in_order": [message["frame"] for message in messages] == list(range(frames)),
        "frames_with_tracks": sum(bool(message["tracks"]) for message in messages),
        "ids": len({track["id"] for message in messages for track in message["tracks"]}),
        "frames_per_s_with_start": round(frames / seconds, 1),
    }


def main() -> None:
    """Run every clip, print and record; exit with 1 if a clip failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("out/clips"))
    parser.add_argument("--prompt", default="person")
    parser.add_argument("--weights", default="")
    parser.add_argument("--video", action="store_true", help="write annotated videos too")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for clip in sorted(path for path in options.folder.iterdir() if path.suffix in SUFFIXES):
        rows.append(run_clip(clip, options))
        print(rows[-1], flush=True)
    print(record("clips", rows))
    sys.exit(any(row["exit"] != 0 or not row["in_order"] for row in rows))


if __name__ == "__main__":
    main()
