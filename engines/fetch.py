"""Download the official weights from the places where their authors published them. Nothing else downloads."""

import hashlib
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO

from engines.engine_cache import file_sha256
from engines.errors import CheckpointError
from engines.folders import expanded, home_cache

OFFICIAL_FILE = "unipose_swint.pth"
CLIP_FILE = "ViT-B-32.pt"
CHUNK_BYTES = 1 << 20
TIMEOUT_S = 30.0

LICENCE = """\
X-Pose (weights): the licence of IDEA-Research/X-Pose allows non-commercial scientific research only and excludes
surveillance; read https://github.com/IDEA-Research/X-Pose/blob/main/LICENSE before you use them.
CLIP ViT-B/32 (weights): MIT licence, OpenAI, https://github.com/openai/CLIP/blob/main/LICENSE."""

Progress = Callable[[str, int, int | None], None]
"""Called with the file's name, the bytes so far and the total in bytes, None if the server does not say."""


@dataclass(frozen=True)
class Source:
    """One file and the addresses that publish it, tried in order."""

    file: str
    urls: tuple[str, ...]
    sha256: str | None  # None where its authors give none


SOURCES: dict[str, Source] = {
    "xpose": Source(
        OFFICIAL_FILE,
        (
            "https://drive.usercontent.google.com/download?id=13gANvGWyWApMFTAtC3ntrMgx0fOocjIa&export=download&confirm=t",
            "https://huggingface.co/KwaiVGI/LivePortrait/resolve/main/liveportrait_animals/xpose.pth",
        ),
        None,
    ),
    "clip": Source(
        CLIP_FILE,
        (
            "https://openaipublic.azureedge.net/clip/models/"
            "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af/ViT-B-32.pt",
        ),
        "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
    ),
}


def weights_folder() -> Path:
    """Return the folder of weights: XPOSE_WEIGHTS, or a folder in the user's cache."""
    named = os.environ.get("XPOSE_WEIGHTS")
    return expanded(named) if named else home_cache() / "weights"


def fetch_weights(
    target: str, destination: Path | None, progress: Progress, announce: Callable[[str], None] = print
) -> tuple[Path, ...]:
    """Print the licence, then download the named weights. A file that is present and intact is kept.

    Args:
        target: "xpose", "clip" or "all".
        destination: folder; None for `weights_folder()`.
        progress: called after every chunk.
        announce: prints a line of text.
    Returns:
        the files, in the order fetched.
    Raises:
        CheckpointError: unknown target, no network, or a wrong SHA-256. The message says which file to put where.
    """
    if target != "all" and target not in SOURCES:
        raise CheckpointError(f"target is {target!r}; allowed are all, {', '.join(SOURCES)}")
    folder = weights_folder() if destination is None else destination
    announce(LICENCE)
    chosen = SOURCES.values() if target == "all" else (SOURCES[target],)
    return tuple(_fetch(source, folder, progress, announce) for source in chosen)


def _fetch(source: Source, folder: Path, progress: Progress, announce: Callable[[str], None]) -> Path:
    path = folder / source.file
    if path.is_file() and (source.sha256 is None or file_sha256(path) == source.sha256):
        announce(f"{path} is there already")
        return path
    failures = []
    for url in source.urls:
        try:
            _download(url, path, source, progress)
        except (urllib.error.URLError, HTTPException, OSError, _NotWeightsError) as error:
            failures.append(f"{url}: {error}")
            continue
        announce(f"{path} fetched")
        return path
    tried = "; ".join(failures)
    raise CheckpointError(
        f"could not fetch {source.file} ({tried}). Without a network: download it elsewhere from one of these "
        f"addresses and put it at {path}"
    )


class _NotWeightsError(Exception):
    """The server sent something else than the file."""


def _download(url: str, path: Path, source: Source, progress: Progress) -> None:
    request = urllib.request.Request(url, headers={"User-Agent": "xpose-stream"})
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response, _partial(path) as file:
        if response.headers.get_content_type() == "text/html":
            raise _NotWeightsError("got a web page instead of the file; open the address in a browser")
        length = response.headers.get("Content-Length")
        total = int(length) if length else None
        digest, received = hashlib.sha256(), 0
        while chunk := response.read(CHUNK_BYTES):
            file.write(chunk)
            digest.update(chunk)
            received += len(chunk)
            progress(source.file, received, total)
        if total is not None and received != total:
            raise _NotWeightsError(f"the connection broke after {received} of {total} bytes")
        if source.sha256 is not None and digest.hexdigest() != source.sha256:
            raise _NotWeightsError(f"its SHA-256 is {digest.hexdigest()}, expected {source.sha256}")


@contextmanager
def _partial(path: Path) -> Iterator[BinaryIO]:
    """Write beside the destination and rename at the end, so that a partial file is never taken for a whole one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            yield file
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
