"""Keypoint lists: the names that the network is prompted with, and how their points are drawn, flipped and scored.

One TOML file per list. The 28 published lists are in `configs/skeletons`; a user's own file has the same form:

    name = "mug"
    instances = ["mug", "cup"]          # class names that use this list, besides its own name
    keypoints = ["rim left", "rim right", "handle"]
    edges = [[0, 1], [1, 2]]            # optional; so are flip_pairs, sigmas and source
    flip_pairs = [[0, 1]]
    sigmas = [0.05, 0.05, 0.05]         # OKS sigma of each keypoint; COCO's nose has 0.026
"""

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from engines.capacity import MAX_KEYPOINTS
from engines.errors import PromptError, quoted, shortened

PLACEHOLDER = "none"
"""A slot that is prompted as in training but is not a keypoint. Its points are never published."""

DEFAULT_SIGMA = 0.05
"""Sigma for lists that give none. Our choice: between COCO's wrist (0.062) and ear (0.035)."""

LONGEST_PATH = 400
"""Characters of a path that an error repeats."""

_FOLDER = Path(__file__).resolve().parent.parent / "configs" / "skeletons"


@dataclass(frozen=True)
class Skeleton:
    """A named list of keypoints.

    `edges` and `flip_pairs` hold indices into `keypoints`; `sigmas` are OKS sigmas, None if none were published.
    """

    name: str
    keypoints: tuple[str, ...]
    edges: tuple[tuple[int, int], ...] = ()
    flip_pairs: tuple[tuple[int, int], ...] = ()
    sigmas: tuple[float, ...] | None = None
    instances: tuple[str, ...] = ()
    source: str = ""

    def __post_init__(self) -> None:
        count = len(self.keypoints)
        if not 1 <= count <= MAX_KEYPOINTS:
            raise PromptError(f"key 'keypoints': {count} names, allowed are 1 to {MAX_KEYPOINTS}")
        seen: set[str] = set()
        for name in self.keypoints:
            if not name.strip():
                raise PromptError("key 'keypoints': an empty name, each keypoint needs words")
            if name in seen and name != PLACEHOLDER:
                raise PromptError(
                    f"key 'keypoints': {quoted(name)} occurs twice, names must differ (except {PLACEHOLDER!r})"
                )
            seen.add(name)
        for key, pairs in (("edges", self.edges), ("flip_pairs", self.flip_pairs)):
            for pair in pairs:
                if pair[0] == pair[1] or not all(0 <= index < count for index in pair):
                    raise PromptError(f"key '{key}': {list(pair)}, allowed are two different indices in 0..{count - 1}")
        flipped = [index for pair in self.flip_pairs for index in pair]
        if len(set(flipped)) != len(flipped):
            raise PromptError("key 'flip_pairs': a keypoint is in two pairs, allowed is one")
        if self.sigmas is not None and (len(self.sigmas) != count or min(self.sigmas) <= 0):
            raise PromptError(f"key 'sigmas': need {count} positive numbers, one per keypoint, got {list(self.sigmas)}")

    @property
    def oks_sigmas(self) -> tuple[float, ...]:
        """The list's own sigmas, or DEFAULT_SIGMA for each keypoint if it has none."""
        return self.sigmas if self.sigmas is not None else (DEFAULT_SIGMA,) * len(self.keypoints)


def known_skeletons() -> tuple[str, ...]:
    """Names of the published lists, sorted."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.toml")))


def load_skeleton(name_or_path: str | Path) -> Skeleton:
    """Load a published list by its name, or a user's own file by its path.

    Raises:
        PromptError: no such list, or the file has errors; the message names file, key and what is allowed.
    """
    if isinstance(name_or_path, str) and not name_or_path.endswith(".toml") and "/" not in name_or_path:
        name = _names_by_fold().get(fold(name_or_path))
        if name is None:
            raise PromptError(
                f"no keypoint list is called {quoted(name_or_path)}{nearest(name_or_path, known_skeletons())}; "
                "give one of `configs/skeletons` or the path of a .toml file"
            )
        return _published(name)
    return _read(Path(name_or_path))


def read_skeleton(content: bytes, name: str) -> Skeleton:
    """Read a list from the content of a .toml file.

    Args:
        name: what errors call the file.
    Raises:
        PromptError: the content has errors; the message names file, key and what is allowed.
    """
    try:
        table: dict[str, Any] = tomllib.loads(content.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PromptError(f"{name} is not a TOML file: {error}") from error
    allowed = [field.name for field in fields(Skeleton)]
    for key in table:
        if key not in allowed:
            raise PromptError(
                f"{name}: unknown key {quoted(key)}{nearest(key, allowed)}; allowed are {', '.join(allowed)}"
            )
    try:
        return msgspec.convert(table, Skeleton)
    except msgspec.ValidationError as error:
        cause = error.__cause__
        reason = str(cause) if isinstance(cause, PromptError) else str(error).replace("$.", "key ")
        raise PromptError(f"{name}: {reason}") from error


def skeletons_by_instance() -> Mapping[str, Skeleton]:
    """Map every folded class name that uses a published list to that list."""
    return _by_instance()


def fold(name: str) -> str:
    """Reduce a name to lower-case words: case, "_", "-" and the number of blanks do not matter."""
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())


def letters(name: str) -> str:
    """Reduce a keypoint's name to `fold` without blanks: "leftear" equals "left ear"."""
    return fold(name).replace(" ", "")


def nearest(name: str, allowed: tuple[str, ...] | list[str]) -> str:
    """Return "; nearest: a, b" for an error message, or "" if nothing is near."""
    folded = {fold(candidate): candidate for candidate in allowed}
    near = difflib.get_close_matches(fold(name), list(folded), n=4, cutoff=0.6)
    return f"; nearest: {', '.join(folded[candidate] for candidate in near)}" if near else ""


@cache
def _names_by_fold() -> dict[str, str]:
    return {fold(name): name for name in known_skeletons()}


@cache
def _published(name: str) -> Skeleton:
    return _read(_FOLDER / f"{name}.toml")


@cache
def _by_instance() -> dict[str, Skeleton]:
    resolved: dict[str, Skeleton] = {}
    for name in known_skeletons():
        skeleton = _published(name)
        for instance in (skeleton.name, *skeleton.instances):
            other = resolved.setdefault(fold(instance), skeleton)
            if other is not skeleton:
                raise PromptError(f"{instance!r} is claimed by the lists {other.name!r} and {skeleton.name!r}")
    return resolved


def _read(path: Path) -> Skeleton:
    try:
        content = path.read_bytes()
    except OSError as error:
        shown = shortened(str(path), LONGEST_PATH)
        raise PromptError(f"cannot read the skeleton file {shown}: {error.strerror}") from error
    return read_skeleton(content, str(path))
