"""The effect of each part of the alignment: python -m training.ablation --data FOLDER --out FOLDER.

Trains one small network per variant on scenes of four categories, with the same seed and number of steps. Evaluates
each on the test set, prompted with words and with examples.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from engines.scores import kept_of
from training import metrics
from training.data.cache import ImageCache
from training.data.stream import SourceConfig
from training.evaluate import draw_examples
from training.objective import LossWeights
from training.predict import Predictor
from training.real_world import find_all
from training.recipe import Recipe, load_recipe
from training.state import Trainee
from training.trainer import Trainer

VARIANTS = {
    "all": (),
    "without the contrast of prompts": ("alignment",),
    "without the dense alignment": ("dense",),
    "words not kept apart": ("crowding",),
    "none": ("alignment", "dense", "crowding"),
}
"""For each variant, the weights of the recipe that are set to 0."""

RECIPE = Path(__file__).parent / "recipes" / "ablation.toml"


def variant(recipe: Recipe, left_out: Sequence[str]) -> Recipe:
    """Return the recipe with some of its losses switched off."""
    weights: LossWeights = msgspec.structs.replace(recipe.weights, **dict.fromkeys(left_out, 0.0))
    return msgspec.structs.replace(recipe, weights=weights)


def score(
    trainee: Trainee, data: Path, categories: dict[str, str], size_hw: tuple[int, int], nms_iou: float, limit: int
) -> dict[str, float]:
    """Return AP, and PCK of the detection nearest each object, for words and for one example per category."""
    cache = ImageCache(data / "ablation_test")
    samples = [cache[i] for i in range(min(limit, len(cache)))]
    examples = draw_examples(categories, [SourceConfig("ablation_train", 1.0)], data, 1)
    results = {}
    for modality in ("text", "visual"):
        predictor = Predictor(trainee.model, trainee.clip_model, categories, modality, examples, size_hw, nms_iou)
        found = find_all(predictor, samples)
        results[f"AP {modality}"] = metrics.average_precision(samples, found, categories)["all"]
        results[f"PCK {modality}"] = metrics.correct_keypoints(samples, found, given_boxes=True)["pck"]
    return results


def main(
    data: Annotated[Path, typer.Option(help="folder with the caches ablation_train and ablation_test")],
    out: Annotated[Path, typer.Option(help="folder for the runs and ablation.json")],
    recipe: Annotated[Path, typer.Option(help="recipe that the variants are derived from")] = RECIPE,
    limit: Annotated[int, typer.Option(help="test images")] = 200,
) -> None:
    """Train the variants one after another and print their scores. Finished runs are not trained again."""
    base = load_recipe(recipe)
    size_hw, nms_iou = base.phases[-1].size_hw, kept_of(base.model).nms_iou
    results: dict[str, dict[str, float]] = {}
    for name, left_out in VARIANTS.items():
        trainer = Trainer(variant(base, left_out), data, out / name.replace(" ", "_"))
        trainer.run()
        results[name] = score(trainer.averaged(), data, trainer.stream.vocabulary, size_hw, nms_iou, limit)
        (out / "ablation.json").write_text(json.dumps({"steps": base.steps, **results}, indent=2))
    table = Table("variant", *next(iter(results.values())))
    for name, row in results.items():
        table.add_row(name, *(f"{value:.3f}" for value in row.values()))
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
