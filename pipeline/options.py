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
RunPrompt = Annotated[
    str | None,
    typer.Option(help="What to look for: person (default), person,dog …; a recording has its own prompts by default."),
]
DEFAULT_PROMPT = "person"
Keypoints = Annotated[str | None, typer.Option(help="Keypoint names for classes without @list: 'rim,handle'.")]
PromptImage = Annotated[list[Path] | None, typer.Option(help="Example image; may be given several times.")]
PromptAnnotation = Annotated[
    list[Path] | None, typer.Option(help="Annotation file: one for each example image, or one for all.")
]
PromptFrom = Annotated[
    str,
    typer.Option(
        help="Prompt classes with example images from: example, text or mean; or OBJECT/KEYPOINTS, such as text/mean."
    ),
]
Model = Annotated[str | None, typer.Option(help="nano (default), swin-t or swin-l.")]
Weights = Annotated[str | None, typer.Option(help="Weights file; 'random' for random weights (to try the program).")]
Backend = Annotated[str | None, typer.Option(help="auto (default), tensorrt, openvino or eager.")]
Preset = Annotated[Path | None, typer.Option(help="Preset: live, offline, official, or a TOML file.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="Any key of a preset: section.key=value; may be given several times.")
]


def pairs_of(images: Sequence[Path] | None, annotations: Sequence[Path] | None) -> list[tuple[Path, Path]]:
    """Return each example image with its annotation file: one for each image, or one for all.

    Raises:
        ConfigError: the numbers of files do not fit.
    """
    images, annotations = images or [], annotations or []
    if len(annotations) == 1:
        annotations = [annotations[0]] * len(images)
    if len(annotations) != len(images):
        raise ConfigError(
            f"{len(images)} --prompt-image with {len(annotations)} --prompt-annotation: give one annotation file for "
            "each image, or one for all"
        )
    return list(zip(images, annotations, strict=True))


def parse_prompts(
    engine: EngineConfig,
    prompt: str,
    keypoints: str | None,
    images: Sequence[Path] | None = None,
    annotations: Sequence[Path] | None = None,
    prompt_from: str = "example",
) -> tuple[PromptClass, ...]:
    """Return the classes that the options of a command ask for.

    Raises:
        ConfigError: the options do not fit together.
        PromptError: a word is unknown, or an example cannot be used.
    """
    from engines.visual_prompts import load_example
    from pipeline.prompting import prompts_of

    examples = [load_example(image, annotation) for image, annotation in pairs_of(images, annotations)]
    return prompts_of(engine, prompt, keypoints, examples, prompt_from)
