"""Prompts: the user's words and example images become the tensors that the network is prompted with.

    "person,dog"                      classes with a published keypoint list
    "horse@animal_in_AP10K"           any words, with the keypoints of a list or of a .toml file
    "mug" with keypoints "rim,handle" free words for both

Shapes: C classes, K keypoints; every vector has 512 numbers.
"""

import hashlib
import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from engines.clip import Clip, tokenize
from engines.errors import CapacityError, PromptError, quoted, shortened
from engines.folders import cache_root
from engines.prompt_tensors import PromptTensors
from engines.skeletons import Skeleton, fold, known_skeletons, load_skeleton, nearest, skeletons_by_instance
from engines.visual_prompts import Example, crop_example

_log = logging.getLogger(__name__)

Modality = Literal["text", "example", "mean"]

_MOST_KEPT_TEXTS = 2000
"""Text vectors that are kept in memory, 2 KiB each."""


@dataclass(frozen=True)
class PromptClass:
    """One class to look for, with its keypoints.

    The keypoints of `examples` are in the order of `skeleton.keypoints`. `object_from` and `keypoints_from` say whether
    the class, and its keypoints, are prompted from text, from the examples, or from the mean of both vectors.
    """

    name: str
    skeleton: Skeleton
    examples: tuple[Example, ...] = ()
    object_from: Modality = "text"
    keypoints_from: Modality = "text"

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise PromptError("a class needs a name, got an empty one")
        for modality in (self.object_from, self.keypoints_from):
            if modality not in get_args(Modality):
                raise PromptError(f"prompts come from {', '.join(get_args(Modality))}, got {modality!r}")
        if not self.examples and (self.object_from, self.keypoints_from) != ("text", "text"):
            raise PromptError(
                f"{quoted(self.name)} has no example image to be prompted from; give one, or prompt from text"
            )


def object_text(name: str) -> str:
    """Return the sentence that CLIP reads for a class. The published model was trained with this form."""
    return "a photo of " + name.lower().replace("_", " ").replace("-", " ")


def keypoint_text(name: str) -> str:
    """Return the sentence that CLIP reads for a keypoint. Hyphens stay, as in the published training."""
    return "a photo of " + name.lower().replace("_", " ")


def parse_prompt(
    prompt: str,
    keypoints: str | None = None,
    *,
    max_classes: int,
    max_keypoints: int,
    examples: Sequence[Example] = (),
    object_from: Modality = "example",
    keypoints_from: Modality = "example",
    load_list: Callable[[str], Skeleton] = load_skeleton,
) -> tuple[PromptClass, ...]:
    """Turn the user's words into classes.

    Args:
        prompt: class names, separated by commas; `name@list` or `name@file.toml` chooses the keypoints of one class.
        keypoints: keypoint names, separated by commas, for all classes that name no list of their own.
        max_classes, max_keypoints: the engine's capacity.
        examples: marked images; each belongs to the class of its name. A class without examples is prompted from text.
        object_from, keypoints_from: where the prompts of a class with examples come from.
        load_list: returns the keypoint list that follows an @.
    Raises:
        PromptError: an item is empty, occurs twice, or is unknown and has no keypoints.
        CapacityError: there are too many classes or keypoints.
    """
    items = [" ".join(item.split()) for item in prompt.split(",")]
    if "" in items:
        raise PromptError(f"the prompt {quoted(prompt)} has an empty item; write class names between single commas")
    free = _free_skeleton(keypoints) if keypoints is not None else None
    classes: dict[str, PromptClass] = {}
    for item in items:
        name, at, listed = (part.strip() for part in item.partition("@"))
        if not name or (at and not listed):
            raise PromptError(f"{quoted(item)} is not `name@list`: both sides of the @ are needed")
        if fold(name) in classes:
            raise PromptError(f"the class {quoted(name)} occurs twice; each may be asked for once")
        own = [example for example in examples if fold(example.name) == fold(name)]
        skeleton = load_list(listed) if at else free or _skeleton_of(name, own)
        ordered = tuple(example.in_order_of(skeleton) for example in own)
        modalities = (object_from, keypoints_from) if own else ("text", "text")
        classes[fold(name)] = PromptClass(name, skeleton, ordered, *modalities)
    for example in examples:
        if fold(example.name) not in classes:
            asked = shortened(", ".join(map(shortened, items)), 200)
            raise PromptError(f"the example of {quoted(example.name)} belongs to none of the classes {asked}")
    require_capacity(tuple(classes.values()), max_classes, max_keypoints)
    return tuple(classes.values())


def require_capacity(classes: Sequence[PromptClass], max_classes: int, max_keypoints: int) -> None:
    """Refuse prompts that exceed an engine's capacity.

    Raises:
        CapacityError: there is no class, there are too many, or one has too many keypoints.
    """
    longest = max((len(prompt_class.skeleton.keypoints) for prompt_class in classes), default=0)
    if not 1 <= len(classes) <= max_classes:
        sentence = f"{len(classes)} classes are asked for, this engine takes 1 to {max_classes} (max_classes)"
        raise CapacityError(sentence, len(classes), longest)
    for prompt_class in classes:
        count = len(prompt_class.skeleton.keypoints)
        if count > max_keypoints:
            sentence = (
                f"{quoted(prompt_class.name)} has {count} keypoints, this engine takes {max_keypoints} (max_keypoints)"
            )
            raise CapacityError(sentence, len(classes), longest)


def require_trained(classes: Sequence[PromptClass], trained: Mapping[str, str]) -> None:
    """Refuse text prompts that a model with a closed vocabulary was not trained on.

    Args:
        trained: the model's class names, each with the keypoint list that it was trained with.
    Raises:
        PromptError: the model does not know a class or a keypoint that is prompted from text.
    """
    names = {fold(name) for name in trained}
    points = {fold(point) for listed in trained.values() for point in load_skeleton(listed).keypoints}
    for prompt_class in classes:
        if prompt_class.object_from != "example" and fold(prompt_class.name) not in names:
            raise PromptError(
                f"this model was not trained on {quoted(prompt_class.name)}; its classes are {', '.join(trained)}. "
                "For others take --model swin-t with the official weights"
            )
        unknown = [point for point in prompt_class.skeleton.keypoints if fold(point) not in points]
        if prompt_class.keypoints_from != "example" and unknown:
            raise PromptError(
                f"this model was not trained on the keypoint {quoted(unknown[0])} of {quoted(prompt_class.name)}; it "
                f"knows those of the lists {', '.join(dict.fromkeys(trained.values()))}. For others take --model swin-t"
            )


def _free_skeleton(keypoints: str) -> Skeleton:
    names = tuple(" ".join(name.split()) for name in keypoints.split(","))
    try:
        return Skeleton("keypoints", names)
    except PromptError as error:
        raise PromptError(f"--keypoints {quoted(keypoints)}: {error}") from error


def _skeleton_of(name: str, examples: Sequence[Example]) -> Skeleton:
    by_instance = skeletons_by_instance()
    skeleton = by_instance.get(fold(name))
    if skeleton is not None:
        return skeleton
    if examples:
        return examples[0].skeleton
    raise PromptError(
        f"no keypoint list is known for {quoted(name)}{nearest(name, list(by_instance))}. Choose one with "
        f"`{shortened(name)}@LIST` (lists: {', '.join(known_skeletons())}; or a .toml file), or name the points with "
        "--keypoints"
    )


class TextCache:
    """Text vectors in memory and on disk, one file per weights and sentence. Known prompts need no text tower.

    The folder is `$XDG_CACHE_HOME/xpose-stream/text` (default ~/.cache). Each file ends with a checksum; a damaged file
    is computed again. If the folder cannot be written, the vectors are computed at each start, with one warning.
    """

    def __init__(self, clip: Clip, folder: Path | None = None) -> None:
        self._clip = clip
        self._folder = (folder or cache_root() / "text") / _hash_of_text_tower(clip)
        self._writable = True
        self._kept: dict[str, Tensor] = {}

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Return vectors [N, 512], float32, of N sentences."""
        if len(self._kept) > _MOST_KEPT_TEXTS:
            self._kept.clear()
        found = {text: self._kept[text] if text in self._kept else self._read(text) for text in dict.fromkeys(texts)}
        missing = [text for text, vector in found.items() if vector is None]
        if missing:
            with torch.no_grad():
                vectors_N512 = self._clip.encode_text(tokenize(missing)).float().cpu()
            for text, vector_512 in zip(missing, vectors_N512, strict=True):
                found[text] = vector_512
                self._write(text, vector_512)
        known = {text: vector for text, vector in found.items() if vector is not None}
        self._kept.update(known)
        return torch.stack([known[text] for text in texts])

    def _path(self, text: str) -> Path:
        return self._folder / hashlib.sha256(text.encode()).hexdigest()[:32]

    def _read(self, text: str) -> Tensor | None:
        try:
            content = self._path(text).read_bytes()
        except OSError:
            return None
        vector, checksum = content[:-32], content[-32:]
        if len(vector) != 4 * self._clip.config.embed_dim or hashlib.sha256(vector).digest() != checksum:
            return None
        return torch.from_numpy(np.frombuffer(vector, dtype="<f4").astype(np.float32))

    def _write(self, text: str, vector_512: Tensor) -> None:
        if not self._writable:
            return
        vector = vector_512.numpy().astype("<f4").tobytes()
        path = self._path(text)
        partial = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(vector + hashlib.sha256(vector).digest())
            partial.replace(path)  # readers see the old file or the whole new one
        except OSError as error:
            self._writable = False
            _log.warning("text vectors are not cached: cannot write to %s (%s)", path.parent, error.strerror)


def _hash_of_text_tower(clip: Clip) -> str:
    digest = hashlib.sha256()
    for key, value in clip.state_dict().items():
        if not key.startswith("visual."):
            digest.update(key.encode())
            digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


class PromptEncoder:
    """Turns classes into prompt tensors with one model's CLIP, on the CPU in float32."""

    def __init__(self, clip: Clip, pos_proj: nn.Linear, padding: Tensor, cache_folder: Path | None = None) -> None:
        """Take CLIP's towers, and the network's `pos_proj` and `padding.weight`."""
        self._clip = clip
        self._pos_proj = pos_proj
        self._padding = padding
        self._texts = TextCache(clip, cache_folder)

    def encode(self, classes: Sequence[PromptClass], max_classes: int, max_keypoints: int) -> PromptTensors:
        """Return the tensors of `classes`, padded to a capacity.

        Raises:
            PromptError: as of `require_capacity`.
        """
        require_capacity(classes, max_classes, max_keypoints)
        dim = self._clip.config.embed_dim
        tensors = PromptTensors(
            torch.zeros(max_classes, dim),
            torch.zeros(max_classes, dtype=torch.bool),
            # Filled by NumPy: PyTorch would wake OpenMP's threads for it, which takes milliseconds.
            torch.from_numpy(np.zeros((max_classes, max_keypoints, dim), np.float32)),
            torch.zeros(max_classes, max_keypoints, dtype=torch.bool),
        )
        for row, prompt_class in enumerate(classes):
            object_512, keypoints_K512 = self._encode_class(prompt_class)
            tensors.objects_C512[row] = object_512
            tensors.object_valid_C[row] = True
            tensors.keypoints_CK512[row, : len(keypoints_K512)] = keypoints_K512
            tensors.keypoint_valid_CK[row, : len(keypoints_K512)] = True
        return tensors

    def _encode_class(self, prompt_class: PromptClass) -> tuple[Tensor, Tensor]:
        names = prompt_class.skeleton.keypoints
        text_K512 = self._texts.encode([object_text(prompt_class.name), *map(keypoint_text, names)])
        if not prompt_class.examples:
            return text_K512[0], text_K512[1:]
        object_512, keypoints_K512 = self._encode_examples(prompt_class.examples)
        return (
            _blend(prompt_class.object_from, text_K512[0], object_512),
            _blend(prompt_class.keypoints_from, text_K512[1:], keypoints_K512),
        )

    def _encode_examples(self, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
        crops = [
            crop_example(example.rgb_HW3, example.box_xyxy, example.keypoints_K3, self._clip.config.image_px)
            for example in examples
        ]
        pixels, points, visible = (torch.from_numpy(np.stack(part)) for part in zip(*crops, strict=True))
        with torch.no_grad():
            objects_N512, keypoints_NK512 = self._clip.encode_visual_prompt(
                pixels, points, visible, self._pos_proj, self._padding
            )
        return objects_N512.mean(dim=0), average_keypoints(keypoints_NK512, visible)


def average_keypoints(keypoints_NK512: Tensor, visible_NK: Tensor) -> Tensor:
    """Average each keypoint over the N examples that show it, or over all where none does."""
    counts_NK = torch.where(visible_NK.any(dim=0), visible_NK, True).to(keypoints_NK512.dtype)
    return (keypoints_NK512 * counts_NK.unsqueeze(-1)).sum(dim=0) / counts_NK.sum(dim=0).unsqueeze(-1)


def _blend(modality: Modality, text: Tensor, example: Tensor) -> Tensor:
    """Choose one vector, or average both. The network's projection comes later and takes either kind."""
    if modality == "mean":
        return (text + example) / 2
    return text if modality == "text" else example
