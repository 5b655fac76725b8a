"""Maps category and keypoint names of a source to ours. Equal names across data sets are one keypoint."""

from __future__ import annotations

import functools
from pathlib import Path

from engines.skeletons import Skeleton, fold, letters, load_skeleton, nearest, skeletons_by_instance
from training.unikpt.schema import AnnotationFileError

_OWN_FOLDER = Path(__file__).resolve().parent / "skeletons"

AFLW_FACE = str(_OWN_FOLDER / "aflw_face.toml")
BIRD = str(_OWN_FOLDER / "bird.toml")

DEEPFASHION2_SLOTS = 294
DEEPFASHION2_ORDER = (
    *("short_sleeved_shirt", "long_sleeved_shirt", "short_sleeved_outwear", "long_sleeved_outwear", "vest", "sling"),
    *("shorts", "trousers", "skirt", "short_sleeved_dress", "long_sleeved_dress", "vest_dress", "sling_dress"),
)
"""DeepFashion2 gives every instance 294 slots; the garment of the instance uses one range of them."""

_BY_CATEGORY: dict[str, tuple[str, ...]] = {
    "human body": ("person",),
    "person": ("person",),
    "macaque": ("person",),
    "human hand": ("hand",),
    "human face": ("face", AFLW_FACE),
    "face": ("face", AFLW_FACE),
    "desert locust": ("locust",),
    "vinegar fly": ("fly",),
}
"""Names of MP-100 and of the published file that no skeleton lists; several lists differ in number of keypoints."""


def category_text(category: str) -> str:
    """Return the prompt for a category of a source: lower case, no underscores, our own words for garments."""
    if category in DEEPFASHION2_ORDER:
        return load_skeleton(category).instances[0]
    return fold(category)


def skeleton_for_category(category: str, slots: int) -> str | None:
    """Return the list of a category without keypoint names, by its name and their number; None if unknown."""
    folded = fold(category)
    if slots == DEEPFASHION2_SLOTS and category in DEEPFASHION2_ORDER:
        return category
    candidates = list(_BY_CATEGORY.get(folded, ()))
    claimed = skeletons_by_instance().get(folded)
    if claimed is not None:
        candidates.append(claimed.name)
    if folded.endswith(" face"):
        candidates.append("animal_face")
    if folded.endswith(" body"):
        candidates += ["animal_in_AP10K", BIRD]
    for candidate in candidates:
        if len(load_skeleton(candidate).keypoints) == slots:
            return candidate
    return None


def columns(
    skeleton: Skeleton, names: list[str], slots: int, ignored: frozenset[str], where: str
) -> list[tuple[int, int]]:
    """Return pairs (slot in the skeleton, slot in the source).

    Args:
        names: keypoint names of the source; if they are empty or numbers, only the order is known.
        ignored: folded names that are dropped, because the skeleton does not have them.
        where: the category, for the message.
    Raises:
        AnnotationFileError: the skeleton does not have a name; or there are no names and the counts differ.
    """
    if slots == DEEPFASHION2_SLOTS and skeleton.name in DEEPFASHION2_ORDER:
        start = _deepfashion2_starts()[skeleton.name]
        return [(slot, start + slot) for slot in range(len(skeleton.keypoints))]
    if not names or all(name.strip().isdigit() for name in names):
        if slots != len(skeleton.keypoints):
            raise AnnotationFileError(
                f"{where}: {slots} keypoints without names, but the list {skeleton.name!r} has "
                f"{len(skeleton.keypoints)}; name them in the file's category or give another skeleton"
            )
        return [(slot, slot) for slot in range(slots)]
    own = {letters(name): slot for slot, name in enumerate(skeleton.keypoints)}
    pairs = []
    for column, name in enumerate(names[:slots]):
        known = _ALIASES.get(fold(name), name)
        if letters(known) in own:
            pairs.append((own[letters(known)], column))
        elif fold(known) not in ignored:
            raise AnnotationFileError(
                f"{where}: keypoint {name!r} is not in the list {skeleton.name!r}"
                f"{nearest(name, skeleton.keypoints)}; rename it or give a skeleton file that has it"
            )
    return pairs


@functools.cache
def _deepfashion2_starts() -> dict[str, int]:
    starts, start = {}, 0
    for name in DEEPFASHION2_ORDER:
        starts[name] = start
        start += len(load_skeleton(name).keypoints)
    return starts


def _insect_aliases() -> dict[str, str]:
    """DeepPoseKit writes "forelegR2" where the published lists say "foreleg right first segment"."""
    aliases = {}
    for letter, side in (("l", "left"), ("r", "right")):
        for part in ("eye", "wing", "anttip", "antbase"):
            aliases[f"{part}{letter}"] = f"{part} {side}"
        for leg in ("foreleg", "midleg", "hindleg"):
            for number, piece in enumerate(("base", "first segment", "second segment", "tip"), start=1):
                aliases[f"{leg}{letter}{number}"] = f"{leg} {side} {piece}"
    return aliases


def _hand_aliases() -> dict[str, str]:
    """OneHand10K numbers the points of a finger from its root."""
    aliases = {}
    hand = load_skeleton("hand").keypoints
    for finger, start in (
        ("thumb", 1),
        ("forefinger", 5),
        ("middle finger", 9),
        ("ring finger", 13),
        ("pinky finger", 17),
    ):
        for number in range(4):
            aliases[f"{finger}{number + 1}"] = hand[start + number]
    return aliases


_ALIASES = {**_insect_aliases(), **_hand_aliases()}
