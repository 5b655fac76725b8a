"""Evaluate weights: python -m training.evaluate WEIGHTS --data FOLDER --out FOLDER.

Writes results.json, prints a table, and draws the best and worst cases. Data sets are image caches
(`training.data.build`); examples for visual prompts are drawn by seed from the training caches, never from what is
evaluated.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from engines.checkpoint import Kept, kept_of, load_weights, trained_categories
from engines.clip import Clip
from engines.errors import XPoseError
from engines.skeletons import load_skeleton
from engines.xpose import XPose
from training import metrics
from training.data.cache import ImageCache
from training.data.sample import Sample
from training.data.stream import Examples, SourceConfig, Stream
from training.pictures import sheet
from training.predict import Found, Predictor, in_batches
from training.prompts import MODALITIES
from training.trainer import EXAMPLE_SIDE_PX

BATCH = 16
EXAMPLE_SEED = 77


def load_trained(name: str, weights: Path) -> tuple[XPose, Clip, dict[str, str]]:
    """A trained network, its prompt towers and the categories that its file names.

    Raises:
        ValueError: the file does not say what it was trained on.
    """
    model, clip = load_weights(name, str(weights))
    categories = trained_categories(name, str(weights))
    if categories is None:
        raise ValueError(
            f"{weights} does not name the categories it was trained on; evaluate a snapshot of this trainer"
        )
    return model, clip, categories


def find_all(predictor: Predictor, samples: Sequence[Sample]) -> list[Found]:
    """Detect in every sample."""
    return [found for batch in in_batches(samples, BATCH) for found in predictor.find(batch)]


def draw_examples(categories: Mapping[str, str], sources: Sequence[str], data: Path, count: int) -> dict[str, Examples]:
    """Examples of every category from training caches, by a fixed seed."""
    stream = Stream([SourceConfig(name, 1.0) for name in sources], data, EXAMPLE_SEED)
    slots = _slots(categories)
    rng = stream.generator(0, 0, 0)
    return {name: stream.examples(name, count, slots, EXAMPLE_SIDE_PX, rng) for name in categories}


def _slots(categories: Mapping[str, str]) -> int:
    return max(len(load_skeleton(name).keypoints) for name in categories.values())


def evaluate_people(predictor: Predictor, samples: Sequence[Sample]) -> tuple[dict[str, Any], list[Found]]:
    """PCK of the best-scoring person and of the one nearest the given box, and AP."""
    found = find_all(predictor, samples)
    best = metrics.correct_keypoints(samples, found)
    given = metrics.correct_keypoints(samples, found, given_boxes=True)
    fine = metrics.correct_keypoints(samples, found, share=0.1)
    precision = metrics.average_precision(samples, found, {"person": "person"})
    return {
        "pck@0.2": best["pck"],
        "pck@0.1": fine["pck"],
        "pck@0.2 given boxes": given["pck"],
        "ap": precision["all"],
        "by_keypoint": best["by_keypoint"],
        "by_image": best["by_image"],
    }, found


def evaluate_objects(
    predictor: Predictor, samples: Sequence[Sample], categories: Mapping[str, str], threshold: float
) -> tuple[dict[str, Any], list[Found]]:
    """AP with all categories prompted at once, recall at the threshold, PCK."""
    found = find_all(predictor, samples)
    precision = metrics.average_precision(samples, found, categories)
    points = metrics.correct_keypoints(samples, found, given_boxes=True)
    return {
        "ap": precision.pop("all"),
        "ap_by_category": precision,
        "recall": metrics.recall(samples, found, threshold),
        "pck@0.2 given boxes": points["pck"],
        "by_image": points["by_image"],
    }, found


def false_alarms(
    make: Any, samples: Sequence[Sample], categories: Mapping[str, str], threshold: float, seed: int = 5
) -> float:
    """Share of images in which one absent category, drawn by seed and prompted alone, raises a detection."""
    rng = np.random.default_rng(seed)
    by_category: dict[str, list[Sample]] = {}
    for sample in samples:
        present = {instance.category for instance in sample.instances}
        absent = [name for name in categories if name not in present]
        if absent:
            by_category.setdefault(str(rng.choice(absent)), []).append(sample)
    raised, total = 0.0, 0
    for name, chosen in by_category.items():
        found = find_all(make({name: categories[name]}), chosen)
        raised += metrics.alarms(chosen, found, threshold) * len(chosen)
        total += len(chosen)
    return raised / max(total, 1)


def evaluate_all(
    model: XPose,
    clip: Clip,
    categories: Mapping[str, str],
    data: Path,
    size_hw: tuple[int, int],
    kept: Kept,
    shots: int,
    limit: int,
    pictures: Path | None,
) -> dict[str, Any]:
    """Every metric of the model card, per data set and modality."""
    people = _load(data / "lspet_val", limit)
    scenes = _load(data / "synthetic_test", limit)
    examples = draw_examples(categories, ("lspet_train", "synthetic_train"), data, shots)
    results: dict[str, Any] = {"size_hw": size_hw, **kept._asdict(), "examples": shots}
    for modality in MODALITIES:

        def make(chosen: Mapping[str, str], modality: str = modality) -> Predictor:
            return Predictor(model, clip, chosen, modality, examples, size_hw, kept.nms_iou)

        person, found_people = evaluate_people(make({"person": categories["person"]}), people)
        objects, found_scenes = evaluate_objects(make(categories), scenes, categories, kept.score_threshold)
        alarm = false_alarms(make, scenes, categories, kept.score_threshold)
        if pictures is not None:
            for name, samples, found, scores in (
                ("lspet_val", people, found_people, person["by_image"]),
                ("synthetic_test", scenes, found_scenes, objects["by_image"]),
            ):
                _draw_extremes(pictures / f"{name}_{modality}", samples, found, scores, kept.score_threshold)
        for table in (person, objects):
            table.pop("by_image")
        results[modality] = {"lspet_val": person, "synthetic_test": {**objects, "false_alarms": alarm}}
    return results


def _load(folder: Path, limit: int) -> list[Sample]:
    cache = ImageCache(folder)
    return [cache[i] for i in range(min(len(cache), limit) if limit else len(cache))]


def _draw_extremes(
    path: Path, samples: Sequence[Sample], found: Sequence[Found], scores: Sequence[float], threshold: float
) -> None:
    """Write PATH_best.jpg and PATH_worst.jpg, twelve cases each."""
    order = [int(i) for i in np.argsort(np.nan_to_num(scores, nan=2.0), kind="stable") if np.isfinite(scores[i])]
    path.parent.mkdir(parents=True, exist_ok=True)
    for name, chosen in (("worst", order[:12]), ("best", order[-12:][::-1])):
        picture = sheet([samples[i] for i in chosen], [found[i] for i in chosen], 6, threshold)
        cv2.imwrite(f"{path}_{name}.jpg", picture[:, :, ::-1])


def print_table(results: Mapping[str, Any]) -> None:
    """Modalities as columns, metrics as rows."""
    table = Table("data set", "metric", *MODALITIES)
    for dataset in ("lspet_val", "synthetic_test"):
        for metric, value in results["text"][dataset].items():
            if isinstance(value, float):
                table.add_row(dataset, metric, *(f"{results[m][dataset][metric]:.3f}" for m in MODALITIES))
    Console().print(table)


def main(
    weights: Annotated[Path, typer.Argument(help="a snapshot, for example engines/weights/nano.safetensors")],
    data: Annotated[Path, typer.Option(help="folder of image caches")],
    out: Annotated[Path, typer.Option(help="folder for results.json and pictures")],
    model: Annotated[str, typer.Option(help="nano, swin-t or swin-l")] = "nano",
    size: Annotated[int, typer.Option(help="side of the square canvas, pixels; 0: the model's own")] = 0,
    threshold: Annotated[
        float | None, typer.Option(help="score above which a detection counts; the model's own if none is given")
    ] = None,
    shots: Annotated[int, typer.Option(help="examples per visual prompt")] = 5,
    limit: Annotated[int, typer.Option(help="images per data set; 0: all")] = 0,
) -> None:
    """Evaluate on LSP-extended val and the synthetic test set with text, visual and combined prompts."""
    try:
        network, clip, categories = load_trained(model, weights)
        size_hw = (size, size) if size else network.config.input_hw
        kept = kept_of(model, threshold)
        results = evaluate_all(network, clip, categories, data, size_hw, kept, shots, limit, out / "pictures")
    except (ValueError, FileNotFoundError, XPoseError) as error:
        raise SystemExit(str(error)) from error
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps(results, indent=2))
    print_table(results)


if __name__ == "__main__":
    typer.run(main)
