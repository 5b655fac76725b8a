"""Turns the prompts of a user into classes. If they exceed the engine, the error says how to get a larger one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from engines.config import EngineConfig
    from engines.errors import CapacityError
    from engines.prompts import PromptClass
    from engines.skeletons import Skeleton
    from engines.visual_prompts import Example


def prompts_of(
    engine: EngineConfig,
    prompt: str,
    keypoints: str | None = None,
    examples: Sequence[Example] = (),
    prompt_from: str = "example",
    load_list: Callable[[str], Skeleton] | None = None,
) -> tuple[PromptClass, ...]:
    """Turn words and examples into classes.

    Args:
        engine: its settings limit the numbers of classes and keypoints.
        prompt: class names, separated by commas; `name@list` chooses the keypoints of one class.
        keypoints: keypoint names, separated by commas, for all classes that are given without `@list`.
        examples: annotated images; each belongs to the class that its annotation names.
        prompt_from: example, text or mean; or two of them, for the object and for its keypoints, as in text/example.
        load_list: returns the keypoint list of a name; by default a published list or a .toml file.
    Raises:
        ConfigError: `prompt_from` has another value.
        PromptError: the words or examples cannot be used, or exceed the capacity.
    """
    from engines.errors import CapacityError, shortened
    from engines.prompts import parse_prompt
    from engines.skeletons import load_skeleton

    object_from, _, keypoints_from = prompt_from.partition("/")
    for modality in (object_from, keypoints_from or object_from):
        if modality not in ("example", "text", "mean"):
            raise ConfigError(
                f"--prompt-from {shortened(prompt_from)}: give example, text or mean, or two of them as in text/example"
            )
    try:
        return parse_prompt(
            prompt,
            keypoints,
            max_classes=engine.max_classes,
            max_keypoints=engine.max_keypoints,
            examples=examples,
            object_from=object_from,  # type: ignore[arg-type]
            keypoints_from=keypoints_from or object_from,  # type: ignore[arg-type]
            load_list=load_list or load_skeleton,
        )
    except CapacityError as error:
        raise CapacityError(f"{error}; {_how_to_enlarge(engine, error)}", error.classes, error.keypoints) from error


def _how_to_enlarge(engine: EngineConfig, needed: CapacityError) -> str:
    """Say how to get an engine that has room for the prompts."""
    from engines.capacity import MAX_KEYPOINTS

    larger = replace(
        engine,
        max_classes=max(engine.max_classes, needed.classes),
        max_keypoints=max(engine.max_keypoints, needed.keypoints),
    )
    keys = [key for key in ("max_classes", "max_keypoints") if getattr(larger, key) != getattr(engine, key)]
    settings = " ".join(f"--set engine.{key}={getattr(larger, key)}" for key in keys)
    if engine.backend == "eager":
        return f"start again with {settings}"
    size = None if larger.size is None else f"{larger.size[0]}x{larger.size[1]}"
    options = {
        "--model": larger.model,
        "--weights": larger.weights,
        "--backend": "" if larger.backend == "auto" else larger.backend,
        "--size": size,
        "--batch": larger.batch if larger.batch > 1 else "",
        "--precision": "" if larger.precision == "auto" else larger.precision,
        "--classes": larger.max_classes,
        "--keypoints": larger.max_keypoints if larger.max_keypoints != MAX_KEYPOINTS else "",
    }
    command = " ".join(f"{option} {value}" for option, value in options.items() if value)
    return f"build a larger one with `python run_pipeline.py build-engine {command}` and start it with {settings}"
