"""Options that several commands share, and the prompts that they name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from engines.config import EngineConfig
    from engines.prompts import PromptClass

Prompt = Annotated[str, typer.Option(help="What to look for: person,dog or horse@animal_in_AP10K.")]
Keypoints = Annotated[str | None, typer.Option(help="Free keypoint names for the prompt: 'rim,handle'.")]
PromptImage = Annotated[list[Path] | None, typer.Option(help="Example image; may be given several times.")]
PromptAnnotation = Annotated[
    list[Path] | None, typer.Option(help="Annotation file: one for each example image, or one for all.")
]
PromptFrom = Annotated[
    str,
    typer.Option(help="Prompt a class with examples from example, text or mean; OBJECT/KEYPOINTS such as text/mean."),
]
Model = Annotated[str | None, typer.Option(help="nano (default), swin-t or swin-l.")]
Weights = Annotated[str | None, typer.Option(help="Weights file; random to run without any.")]
Backend = Annotated[str | None, typer.Option(help="auto (default), tensorrt, openvino or eager.")]
Preset = Annotated[Path | None, typer.Option(help="Preset: live, offline, official, or a TOML file.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="Any key of a preset: section.key=value; may be given several times.")
]


def parse_prompts(
    engine: EngineConfig,
    prompt: str,
    keypoints: str | None,
    images: Sequence[Path] | None = None,
    annotations: Sequence[Path] | None = None,
    prompt_from: str = "example",
) -> tuple[PromptClass, ...]:
    """Return the classes that the options of a command line name.

    Raises:
        ConfigError: options that make no sense together.
        PromptError: unknown words, or an example that cannot be used.
    """
    from engines.prompts import parse_prompt
    from engines.visual_prompts import load_example

    object_from, _, keypoints_from = prompt_from.partition("/")
    for modality in (object_from, keypoints_from or object_from):
        if modality not in ("example", "text", "mean"):
            raise ConfigError(
                f"--prompt-from {prompt_from}: give example, text or mean, or two of them as in text/example"
            )
    images, annotations = images or [], annotations or []
    if len(annotations) == 1:
        annotations = [annotations[0]] * len(images)
    if len(annotations) != len(images):
        raise ConfigError(
            f"{len(images)} --prompt-image with {len(annotations)} --prompt-annotation: give one annotation file for "
            "each image, or one for all"
        )
    examples = [load_example(image, annotation) for image, annotation in zip(images, annotations, strict=True)]
    return parse_prompt(
        prompt,
        keypoints,
        max_classes=engine.max_classes,
        max_keypoints=engine.max_keypoints,
        examples=examples,
        object_from=object_from,  # type: ignore[arg-type]
        keypoints_from=keypoints_from or object_from,  # type: ignore[arg-type]
    )
