"""What the evaluation on photographs of the real world counts, on detections that are known."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from training.data.cache import write_cache
from training.data.sample import Instance, Sample
from training.data.stream import Examples, SourceConfig
from training.predict import Found, Predictor
from training.real_world import NOTHING, evaluate_animals, evaluate_one_example, evaluate_photos, match_photo

SHAPE_K2 = np.stack([np.linspace(0.1, 0.9, 17), np.linspace(0.9, 0.1, 17)], 1).astype(np.float32)


def person(left: float, top: float, side: float) -> Instance:
    """All keypoints on a diagonal of a square box."""
    points_K2 = SHAPE_K2 * side + (left, top)
    keypoints_K3 = np.concatenate([points_K2, np.full((17, 1), 2.0)], 1).astype(np.float32)
    box = np.array([left, top, left + side, top + side], np.float32)
    return Instance("person", "person", box, keypoints_K3, side * side / 2)


def photo(*people: Instance, ignore: tuple[tuple[float, ...], ...] = ()) -> Sample:
    regions = np.array(ignore, np.float32).reshape(-1, 4)
    return Sample(np.zeros((400, 600, 3), np.uint8), people, "t", "1", regions)


def found(*people: Instance, scores: tuple[float, ...], shift: float = 0.0) -> Found:
    """Detections exactly on people, or shifted by a share of their side."""
    boxes_N4 = np.stack([one.box_xyxy for one in people])
    sides_N11 = (boxes_N4[:, 2] - boxes_N4[:, 0])[:, None, None]
    points_NK2 = np.stack([one.keypoints_K3[:, :2] for one in people]) + shift * sides_N11
    return Found(("person",) * len(people), np.array(scores, np.float32), boxes_N4, points_NK2)


LARGE, MIDDLE, SMALL = person(0, 0, 300), person(310, 0, 100), person(450, 0, 50)


def test_recall_is_told_by_size_at_the_threshold() -> None:
    answers = [found(LARGE, MIDDLE, SMALL, scores=(0.9, 0.5, 0.2))]
    results = evaluate_photos([photo(LARGE, MIDDLE, SMALL)], answers, 0.3)
    assert results["recall"] == pytest.approx(2 / 3)
    assert results["recall, 128 px and more"] == 1.0
    assert results["recall, 256 px and more"] == "1 of 1"
    assert results["recall, 64 to 128 px"] == "1 of 1"
    assert results["recall, 0 to 64 px"] == "0 of 1"
    assert results["precision"] == 1.0
    assert results["ap"] == pytest.approx(1.0)


def test_a_second_answer_to_one_person_is_wrong_and_the_better_one_counts() -> None:
    matched = match_photo(photo(MIDDLE), found(MIDDLE, MIDDLE, scores=(0.5, 0.9)), 0.3)
    assert (matched.found_P.tolist(), matched.right_N.sum(), matched.wrong_N.sum()) == ([True], 1, 1)


def test_an_answer_far_from_the_points_finds_nobody() -> None:
    matched = match_photo(photo(MIDDLE), found(MIDDLE, scores=(0.9,), shift=0.5), 0.3)
    assert (matched.found_P.tolist(), matched.right_N.sum(), matched.wrong_N.sum()) == ([False], 0, 1)


@pytest.mark.parametrize(("right_edge", "wrong"), [(505.0, 0), (475.0, 0), (474.0, 1)])
def test_an_unmatched_answer_counts_neither_way_from_more_than_half_in_a_region(right_edge: float, wrong: int) -> None:
    region = (450.0, 0.0, right_edge + 0.5, 60.0)
    results = match_photo(photo(MIDDLE, ignore=(region,)), found(SMALL, scores=(0.9,)), 0.3)
    assert results.wrong_N.sum() == wrong


def test_ap_counts_regions_as_crowds_and_starts_at_its_least_score() -> None:
    crowd = photo(LARGE, ignore=((450, 0, 500, 50),))
    with_stranger = evaluate_photos([crowd], [found(LARGE, SMALL, scores=(0.6, 0.9))], 0.3)
    assert with_stranger["ap"] == pytest.approx(1.0)
    assert with_stranger["precision"] == 1.0
    without_region = evaluate_photos([photo(LARGE)], [found(LARGE, SMALL, scores=(0.6, 0.9))], 0.3)
    assert without_region["ap"] == pytest.approx(0.5)
    assert evaluate_photos([photo(LARGE)], [found(LARGE, scores=(0.04,))], 0.3)["ap"] == 0.0


class Known(Predictor):
    """Finds what it is told, whatever it is asked for."""

    def __init__(self, results: Mapping[int, Found]) -> None:
        self.results = results

    def find(self, samples: object) -> list[Found]:
        return [self.results.get(int(sample.image_id), NOTHING) for sample in samples]  # type: ignore[attr-defined]


def test_animals_are_asked_for_by_their_own_category_alone() -> None:
    cow, sheep = (replace(MIDDLE, category=name, skeleton="animal") for name in ("cow", "sheep"))
    samples = [replace(photo(cow), image_id="0"), replace(photo(sheep), image_id="1")]
    asked = []

    def make(categories: Mapping[str, str]) -> Predictor:
        asked.append(dict(categories))
        (name,) = categories
        return Known({0: replace(found(cow, scores=(0.9,)), category_N=(name,))})

    results, answers = evaluate_animals(make, samples)
    assert asked == [{"cow": "animal"}, {"sheep": "animal"}]
    assert results == {"cow": 1.0, "sheep": 0.0}
    assert len(answers) == 2


def test_one_example_is_drawn_per_seed_and_the_worst_draw_is_told(tmp_path: Path) -> None:
    write_cache(tmp_path / "people", [photo(LARGE), photo(MIDDLE)], 2, 600)
    samples = [replace(photo(LARGE), image_id=str(number)) for number in range(2)]
    shown: list[Examples] = []

    def make(examples: Mapping[str, Examples]) -> Predictor:
        shown.append(examples["person"])
        every = {number: found(LARGE, scores=(0.9,)) for number in range(2 if len(shown) > 1 else 1)}
        return Known(every)

    results = evaluate_one_example(make, samples, SourceConfig("people", 1.0), tmp_path, 0.3)
    assert len(shown) == results["draws"] == 20
    assert all(len(example.pixels_N3SS) == 1 for example in shown)
    assert results["recall, worst draw"] == 0.5
    assert results["recall, mean"] == pytest.approx(0.975)
    assert results["pck@0.2, worst draw"] == 0.5
