"""Compiled engines on disk: refused rather than wrong, whole or not there.

An engine is a folder `<root>/<digest of its key>/` with the compiled file and `manifest.json`. It is built in a
temporary folder beside it and moved into place by one rename, under a lock per key: a reader never meets a
half-written engine, and of two builders of the same engine the second waits and then takes the first one's.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.capacity import Capacity
from engines.errors import EngineCacheError
from engines.folders import cache_root

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
SCHEMA = 2


@dataclass(frozen=True)
class EngineKey:
    """Everything that a compiled engine depends on; two engines are interchangeable only if all of it is equal.

    Attributes:
        backend: "tensorrt" or "openvino".
        model: name of the network ("nano", "swin-t", "swin-l"), for the rebuild command.
        weights_sha256: SHA-256 over the names, dtypes, shapes and bytes of the network's tensors.
        network: the network's configuration, as plain JSON values.
        input_hw: height and width of the network's input, pixels.
        batch: images per call.
        max_classes, max_keypoints: prompt capacity.
        precision: "fp32", "fp16", "bf16", or "auto": the build chose; its figures say which.
        sources: hash of each part of this package that can change a number (`engines.fingerprint.PARTS`).
        toolchain: what compiled it and what it runs on: versions of libraries, NVRTC and driver, compute capability or
            CPU features.
    """

    backend: str
    model: str
    weights_sha256: str
    network: dict[str, Any]
    input_hw: tuple[int, int]
    batch: int
    max_classes: int
    max_keypoints: int
    precision: str
    sources: dict[str, str]
    toolchain: dict[str, str]

    def plain(self) -> dict[str, Any]:
        """Return the key as JSON values (tuples become lists)."""
        values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return values

    def digest(self) -> str:
        """Return the folder name: 16 hex digits of the SHA-256 of the key."""
        text = json.dumps(self.plain(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def build_command(self) -> str:
        """Return the command that builds this engine."""
        height, width = self.input_hw
        return (
            f"python run_pipeline.py build-engine --backend {self.backend} --model {self.model} --weights WEIGHTS "
            f"--size {height}x{width} --batch {self.batch} --classes {self.max_classes} "
            f"--keypoints {self.max_keypoints} --precision {self.precision}"
        )


@dataclass(frozen=True)
class CachedEngine:
    """A compiled engine that was found whole: the file, and what its manifest says of it."""

    path: Path
    manifest: dict[str, Any]

    def describe(self) -> str:
        """Say what the engine runs, in one line."""
        key = self.manifest["key"]
        height, width = key["input_hw"]
        precision = self.manifest["figures"]["precision"] if key["precision"] == "auto" else key["precision"]
        return (
            f"{key['backend']} engine of {key['model']} in {precision}: {width} x {height} px, "
            f"{key['batch']} image(s) per call, up to {Capacity(key['max_classes'], key['max_keypoints'])}"
        )


def default_root() -> Path:
    """Return `$XDG_CACHE_HOME/xpose-stream/engines` (default `~/.cache`)."""
    return cache_root() / "engines"


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class EngineCache:
    """The engines under one root folder.

    Args:
        root: folder of the cache; made when the first engine is built.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or default_root()

    def has(self, key: EngineKey) -> bool:
        """Whether there is an engine for `key`, which `load` may still refuse."""
        return (self.root / key.digest()).is_dir()

    def load(self, key: EngineKey) -> CachedEngine:
        """Return the engine for `key`, checked byte for byte.

        Raises:
            EngineCacheError: there is none, it is damaged, or it was built for something else; the message names
                what differs and the command that builds it.
        """
        folder = self.root / key.digest()
        if not folder.is_dir():
            raise EngineCacheError(
                f"no {key.backend} engine for this configuration in {self.root}"
                f"{self._nearest(key)}; build it with: {key.build_command()}"
            )
        manifest = _read_manifest(folder, key)
        path = folder / str(manifest["file"])
        if not path.is_file() or path.stat().st_size != manifest["bytes"] or file_sha256(path) != manifest["sha256"]:
            raise EngineCacheError(f"{path} is truncated or altered; rebuild it with: {key.build_command()}")
        return CachedEngine(path, manifest)

    def build(self, key: EngineKey, name: str, compile_to: Callable[[Path], dict[str, Any]]) -> CachedEngine:
        """Build the engine for `key` unless it is there already, and return it.

        Args:
            name: file name of the compiled engine inside its folder.
            compile_to: writes the engine to the path it is given and returns figures for the manifest; if it raises
                (a parity gate that failed, say), nothing is left behind.

        Raises:
            EngineCacheError: the folder cannot be written (a full disk, no permission).
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with exclusive(self.root / f"{key.digest()}.lock"):
                folder = self.root / key.digest()
                if folder.is_dir():
                    try:
                        return self.load(key)
                    except EngineCacheError as error:
                        logger.warning("%s: building it anew", error)
                        shutil.rmtree(folder)
                self._build_locked(key, folder, name, compile_to)
        except OSError as error:
            raise EngineCacheError(f"cannot write the engine under {self.root}: {error.strerror or error}") from error
        return self.load(key)

    def _build_locked(
        self, key: EngineKey, folder: Path, name: str, compile_to: Callable[[Path], dict[str, Any]]
    ) -> None:
        work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=self.root))
        try:
            path = work / name
            figures = compile_to(path)
            manifest = {
                "schema": SCHEMA,
                "key": key.plain(),
                "file": name,
                "bytes": path.stat().st_size,
                "sha256": file_sha256(path),
                "figures": figures,
            }
            (work / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
            os.replace(work, folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def _nearest(self, key: EngineKey) -> str:
        """Say how the most similar engine of the cache differs, as "; the nearest one differs in ..."."""
        wanted = key.plain()
        found = [other for folder in sorted(self.root.glob("[0-9a-f]*/")) if (other := _key_in(folder)) is not None]
        differences = sorted((_differing(wanted, other) for other in found), key=len)
        return f" (the nearest one differs in {', '.join(differences[0])})" if differences else ""


def _differing(wanted: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Name what differs; within a mapping of values, each of them: "sources.network"."""
    names = []
    for name, value in wanted.items():
        its = other.get(name)
        if isinstance(value, dict) and isinstance(its, dict):
            names += [f"{name}.{key}" for key in sorted({*value, *its}) if value.get(key) != its.get(key)]
        elif value != its:
            names.append(name)
    return names


def _key_in(folder: Path) -> dict[str, Any] | None:
    """Return the key in a folder's manifest; None if it has none that can be read."""
    try:
        key = json.loads((folder / MANIFEST).read_text())["key"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return key if isinstance(key, dict) else None


def _read_manifest(folder: Path, key: EngineKey) -> dict[str, Any]:
    rebuild = f"rebuild it with: {key.build_command()}"
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise EngineCacheError(f"{folder / MANIFEST} cannot be read ({error}); {rebuild}") from error
    missing = {"schema", "key", "file", "bytes", "sha256"} - set(manifest if isinstance(manifest, dict) else ())
    if missing:
        raise EngineCacheError(f"{folder / MANIFEST} lacks {', '.join(sorted(missing))}; {rebuild}")
    if manifest["schema"] != SCHEMA:
        raise EngineCacheError(f"{folder / MANIFEST} has schema {manifest['schema']}, not {SCHEMA}; {rebuild}")
    wanted = key.plain()
    differing = _differing(wanted, manifest["key"])
    if differing:
        raise EngineCacheError(f"the engine in {folder} was built for another {', '.join(differing)}; {rebuild}")
    return manifest


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold an advisory lock on `path`, also against other processes; a second caller waits here."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
