"""Evaluate weights: python -m training.evaluate WEIGHTS --data FOLDER --out FOLDER.

Writes results.json, prints tables, and draws the best and worst cases. Data sets are image caches
(`training.data.build`), from their first image or from a given one: `lspet_train:8600` starts at image 8600, the first
that the recipes' `limit` excludes. Photographs of the real world (`training.real_world`) come first: several people, no
people, animals, and single people with one example. Then come single people and drawn scenes, prompted with words, with
examples and with both. Examples are drawn by seed from the training caches. Photographs of single people are scored a
second time next to mirrored copies of themselves.
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

from engines.checkpoint import load_weights, trained_categories
from engines.clip import Clip
from engines.errors import XPoseError
from engines.preprocess import parse_size
from engines.scores import Kept, kept_of
from engines.xpose import XPose
from training import metrics, real_world
from training.data.augment import beside_mirror_images
from training.data.cache import ImageCache
from training.data.sample import Sample
from training.data.stream import Examples, SourceConfig, Stream
from training.draws import EXAMPLE_SIDE_PX
from training.pictures import sheet
from training.predict import Found, Predictor
from training.prompts import MODALITIES
from training.real_world import find_all

ONE_EXAMPLE_PHOTOS = 100
EXAMPLE_SEED = 77
ROW_SEED = 6
THRESHOLDS = (0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5)


def load_trained(name: str, weights: Path) -> tuple[XPose, Clip, dict[str, str]]:
    """Load a trained network, its prompt towers and the categories that its file names.

    Raises:
        ValueError: the file does not name the categories.
    """
    model, clip = load_weights(name, str(weights))
    categories = trained_categories(name, str(weights))
    if categories is None:
        raise ValueError(
            f"{weights} does not name the categories it was trained on; evaluate a snapshot of this trainer"
        )
    return model, clip, categories


def draw_examples(
    categories: Mapping[str, str], sources: Sequence[SourceConfig], data: Path, count: int
) -> dict[str, Examples]:
    """Return examples of every category from the training caches, drawn with a fixed seed."""
    stream = Stream(sources, data, EXAMPLE_SEED)
    rng = stream.generator(0, 0, 0)
    return {name: stream.examples(name, count, EXAMPLE_SIDE_PX, rng) for name in categories}


def evaluate_people(predictor: Predictor, samples: Sequence[Sample]) -> tuple[dict[str, Any], list[Found]]:
    """Return PCK of the best-scoring person, PCK of the one nearest the given box, and AP."""
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


def people_in_rows(samples: Sequence[Sample]) -> list[Sample]:
    """Return each sample next to mirrored copies of itself, two or three in all, drawn with a fixed seed."""
    rng = np.random.default_rng(ROW_SEED)
    return [beside_mirror_images(sample, rng) for sample in samples]


def evaluate_objects(
    predictor: Predictor, samples: Sequence[Sample], categories: Mapping[str, str]
) -> tuple[dict[str, Any], list[Found]]:
    """Return AP with all categories prompted at once, and PCK."""
    found = find_all(predictor, samples)
    precision = metrics.average_precision(samples, found, categories)
    points = metrics.correct_keypoints(samples, found, given_boxes=True)
    return {
        "ap": precision.pop("all"),
        "ap_by_category": precision,
        "pck@0.2 given boxes": points["pck"],
        "by_image": points["by_image"],
    }, found


def find_absent(make: Any, samples: Sequence[Sample], categories: Mapping[str, str], seed: int = 5) -> list[Found]:
    """Return the detections of one absent category per image, drawn by seed and prompted alone."""
    rng = np.random.default_rng(seed)
    by_category: dict[str, list[Sample]] = {}
    for sample in samples:
        present = {instance.category for instance in sample.instances}
        absent = [name for name in categories if name not in present]
        if absent:
            by_category.setdefault(str(rng.choice(absent)), []).append(sample)
    return [
        result for name, chosen in by_category.items() for result in find_all(make({name: categories[name]}), chosen)
    ]


def evaluate_all(
    model: XPose,
    clip: Clip,
    categories: Mapping[str, str],
    data: Path,
    people_from: str,
    scenes_from: str,
    size_hw: tuple[int, int],
    kept: Kept,
    shots: int,
    limit: int,
    pictures: Path,
) -> dict[str, Any]:
    """Return every metric of single people and of scenes, for each modality and category."""
    people, scenes = load_part(data, people_from, limit), load_part(data, scenes_from, limit)
    held = {instance.category for sample in (*people, *scenes) for instance in sample.instances}
    categories = {name: skeleton for name, skeleton in categories.items() if name in held}
    rows = people_in_rows(people)
    examples = draw_examples(categories, left_to_show(people_from, scenes_from), data, shots)
    sources = {"people": people_from, "people in rows": people_from, "scenes": scenes_from}
    results: dict[str, Any] = {"size_hw": size_hw, **kept._asdict(), "examples": shots, **sources}
    for modality in MODALITIES:

        def make(chosen: Mapping[str, str], modality: str = modality) -> Predictor:
            return Predictor(model, clip, chosen, modality, examples, size_hw, kept.nms_iou)

        predictor = make({"person": categories["person"]})
        person, found_people = evaluate_people(predictor, people)
        found_rows = find_all(predictor, rows)
        in_rows = {"pck@0.2 given boxes": metrics.correct_keypoints(rows, found_rows, given_boxes=True)["pck"]}
        objects, found_scenes = evaluate_objects(make(categories), scenes, categories)
        absent = find_absent(make, scenes, categories)
        for name, samples, found, scores in (
            ("people", people, found_people, person.pop("by_image")),
            ("scenes", scenes, found_scenes, objects.pop("by_image")),
        ):
            _draw_extremes(pictures / f"{name}_{modality}", samples, found, scores, kept.score_threshold)
        best_scores = {
            "recall of people": metrics.best_scores(people, found_people),
            "recall of people in rows": metrics.best_scores(rows, found_rows),
            "recall of scenes": metrics.best_scores(scenes, found_scenes),
            "false alarms": metrics.alarm_scores(absent),
        }
        above = {
            threshold: {name: metrics.share_above(scores, threshold) for name, scores in best_scores.items()}
            for threshold in sorted({*THRESHOLDS, kept.score_threshold})
        }
        results[modality] = {"people": person, "people in rows": in_rows, "scenes": objects, "above": above}
    return results


def evaluate_real(
    model: XPose,
    clip: Clip,
    data: Path,
    photos: str,
    empty: str,
    animals: str,
    single: str,
    size_hw: tuple[int, int],
    kept: Kept,
    limit: int,
    pictures: Path,
) -> dict[str, Any]:
    """Evaluate photographs of people, without people and of animals with words, and single people with one example."""

    def make(chosen: Mapping[str, str], examples: Mapping[str, Examples] | None = None) -> Predictor:
        return Predictor(model, clip, chosen, "visual" if examples else "text", examples, size_hw, kept.nms_iou)

    threshold, person = kept.score_threshold, {"person": "person"}
    people, nobody, herd = (load_part(data, name, limit) for name in (photos, empty, animals))
    found = find_all(make(person), people)
    results = real_world.evaluate_photos(people, found, threshold)
    _draw_extremes(pictures / "photos", people, found, results.pop("by_image"), threshold)
    alarms = find_all(make(person), nobody)
    scores = metrics.alarm_scores(alarms)
    _draw_extremes(pictures / "nobody", nobody, alarms, (-scores).tolist(), threshold)
    by_category, found_animals = real_world.evaluate_animals(make, herd)
    right = metrics.correct_keypoints(herd, found_animals)["by_image"]
    _draw_extremes(pictures / "animals", herd, found_animals, right, threshold)
    one = real_world.evaluate_one_example(
        lambda examples: make(person, examples),
        load_part(data, single, limit or ONE_EXAMPLE_PHOTOS)[:ONE_EXAMPLE_PHOTOS],
        left_to_show(single, "")[0],
        data,
        threshold,
    )
    return {
        "people": {"cache": photos, **results},
        "nobody": {"cache": empty, "alarms": metrics.share_above(scores, threshold)},
        "animals, pck@0.2": {"cache": animals, **by_category},
        "one example": {"cache": single, **one},
    }


def left_to_show(people_from: str, scenes_from: str) -> list[SourceConfig]:
    """Return the training caches without the parts that are evaluated."""
    evaluated = dict(_split(part) for part in (people_from, scenes_from) if part)
    return [SourceConfig(name, 1.0, limit=evaluated.get(name, 0)) for name in ("lspet_train", "synthetic_train")]


def _split(source: str) -> tuple[str, int]:
    """Return the name and the first image of "CACHE" or "CACHE:FIRST"."""
    name, _, first = source.partition(":")
    if first and not first.isdecimal():
        raise ValueError(f"{source!r}: give the name of a cache, or name:first with the number of its first image")
    return name, int(first or 0)


def load_part(data: Path, source: str, limit: int) -> list[Sample]:
    """Return the images of "CACHE" or "CACHE:FIRST", at most `limit` unless it is 0."""
    name, first = _split(source)
    cache = ImageCache(data / name)
    chosen = range(len(cache))[first:]
    if not chosen:
        raise ValueError(f"{source!r}: the cache holds {len(cache)} images, none from this one on")
    return [cache[i] for i in (chosen[:limit] if limit else chosen)]


def _draw_extremes(
    path: Path, samples: Sequence[Sample], found: Sequence[Found], scores: Sequence[float], threshold: float
) -> None:
    """Write PATH_best.jpg and PATH_worst.jpg, twelve cases each."""
    order = [int(i) for i in np.argsort(np.nan_to_num(scores, nan=2.0), kind="stable") if np.isfinite(scores[i])]
    path.parent.mkdir(parents=True, exist_ok=True)
    for name, chosen in (("worst", order[:12]), ("best", order[-12:][::-1])):
        picture = sheet([samples[i] for i in chosen], [found[i] for i in chosen], 6, threshold)
        cv2.imwrite(f"{path}_{name}.jpg", picture[:, :, ::-1])


def print_real(results: Mapping[str, Mapping[str, Any]], threshold: float) -> None:
    """Print the results on photographs of the real world at the default threshold."""
    table = Table("photographs", "metric", f"score above {threshold}")
    for part, values in results.items():
        for metric, value in values.items():
            if metric != "cache":
                shown = f"{value:.3f}" if isinstance(value, float) else str(value)
                table.add_row(f"{part}, {values['cache']}", metric, shown)
    Console().print(table)


def print_tables(results: Mapping[str, Any]) -> None:
    """Print metrics (rows) by modality (columns), then the effect of thresholds; the default one is marked."""
    table = Table("images", "metric", *MODALITIES)
    for part in ("people", "people in rows", "scenes"):
        for metric, value in results["text"][part].items():
            if isinstance(value, float):
                cells = (f"{results[modality][part][metric]:.3f}" for modality in MODALITIES)
                table.add_row(f"{part}, {results[part]}", metric, *cells)
    thresholds = Table("score above", "metric", *MODALITIES)
    for threshold, metrics_kept in results["text"]["above"].items():
        mark = " (default)" if threshold == results["score_threshold"] else ""
        for metric in metrics_kept:
            cells = (f"{results[modality]['above'][threshold][metric]:.3f}" for modality in MODALITIES)
            thresholds.add_row(f"{threshold}{mark}", metric, *cells)
    Console().print(table, thresholds)


def main(
    weights: Annotated[Path, typer.Argument(help="a snapshot, for example engines/weights/nano.safetensors")],
    data: Annotated[Path, typer.Option(help="folder of image caches")],
    out: Annotated[Path, typer.Option(help="folder for results.json and pictures")],
    model: Annotated[str, typer.Option(help="nano, swin-t or swin-l")] = "nano",
    size: Annotated[str, typer.Option(help="HEIGHTxWIDTH of the canvas, pixels; the model's own if not given")] = "",
    threshold: Annotated[
        float | None, typer.Option(help="score above which a detection counts; the model's own if none is given")
    ] = None,
    shots: Annotated[int, typer.Option(help="examples per visual prompt")] = 5,
    limit: Annotated[int, typer.Option(help="images per data set; 0: all")] = 0,
    people: Annotated[str, typer.Option(help="cache of single people, CACHE or CACHE:FIRST")] = "lspet_val",
    scenes: Annotated[
        str, typer.Option(help="cache of drawn scenes with objects of all categories")
    ] = "synthetic_test",
    photos: Annotated[str, typer.Option(help="cache of photos of several people, with ignore regions")] = "coco_dev",
    empty: Annotated[str, typer.Option(help="cache of photos without people")] = "no_people_dev",
    animals: Annotated[str, typer.Option(help="cache of photos of animals")] = "livestock_dev",
    only_photos: Annotated[bool, typer.Option(help="skip the tables of single people and drawn scenes")] = False,
) -> None:
    """Evaluate on photographs of the real world, then on single people and on drawn scenes by words and examples."""
    try:
        network, clip, categories = load_trained(model, weights)
        size_hw = parse_size(size) if size else network.config.input_hw
        kept = kept_of(model, threshold)
        pictures = out / "pictures"
        real = evaluate_real(network, clip, data, photos, empty, animals, people, size_hw, kept, limit, pictures)
        results = {}
        if not only_photos:
            results = evaluate_all(
                network, clip, categories, data, people, scenes, size_hw, kept, shots, limit, pictures
            )
    except (ValueError, FileNotFoundError, XPoseError) as error:
        raise SystemExit(str(error)) from error
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps({"photographs": real, **results}, indent=2))
    print_real(real, kept.score_threshold)
    if results:
        print_tables(results)


if __name__ == "__main__":
    typer.run(main)
