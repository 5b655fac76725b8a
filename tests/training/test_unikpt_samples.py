"""Each reader on the real samples: names land in their slots, and the overlay shows the points where they were."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from engines.skeletons import fold, load_skeleton
from tests.support import need_shared
from training.unikpt.catalogue import DATA_SETS, LSPET, read_data_set
from training.unikpt.coco_layout import CocoRules, load_json, read_coco_layout
from training.unikpt.images import ImageFinder, read_image
from training.unikpt.index import build_index, table
from training.unikpt.overlay import draw_record, write_overlays
from training.unikpt.schema import Record, Report

# slug, folder, instances, categories, labelled keypoints of the first instance; the counts were taken from the files
SAMPLES = [
    ("coco", "coco", 3, {"person"}, 17),
    ("300w", "300w", 1, {"face"}, 68),
    ("onehand10k", "onehand10k", 2, {"hand"}, 7),
    ("humanart", "humanart", 2, {"person"}, 13),
    ("ap10k", "ap10k", 1, {"antelope"}, 16),
    ("macaque", "macaque", 1, {"macaque"}, 15),
    ("animalkingdom", "animalkingdom", 1, {"elephant"}, 6),
    ("fly", "fly", 1, {"vinegar fly"}, 32),
    ("locust", "locust", 1, {"desert locust"}, 35),
    ("mp100", "mp100_deepfashion2", 1, {"long sleeve dress"}, 28),
    ("mp100", "mp100_aflw", 1, {"face"}, 19),
]
BY_SLUG = {data_set.slug: data_set for data_set in DATA_SETS}


def _read(slug: str, folder: str) -> tuple[list[Record], Report]:
    report = Report()
    return list(read_data_set(BY_SLUG[slug], need_shared(f"data/unikpt_samples/{folder}"), report)), report


@pytest.mark.parametrize(("slug", "folder", "instances", "categories", "labelled"), SAMPLES)
def test_reader_understands_its_sample(
    slug: str, folder: str, instances: int, categories: set[str], labelled: int
) -> None:
    records, report = _read(slug, folder)
    found = [instance for record in records for instance in record.instances]
    assert len(found) == instances, report.problems
    assert {instance.category for instance in found} == categories
    assert int((found[0].keypoints_K3[:, 2] > 0).sum()) == labelled
    for record in records:
        assert read_image(record).shape == (record.height, record.width, 3)
        for instance in record.instances:
            assert len(instance.keypoints_K3) == len(load_skeleton(instance.skeleton).keypoints)
            labelled_K2 = instance.keypoints_K3[instance.keypoints_K3[:, 2] > 0, :2]
            assert (labelled_K2 >= 0).all()
            assert (labelled_K2 <= [record.width, record.height]).all()


@pytest.mark.parametrize(("slug", "folder", "instances", "categories", "labelled"), SAMPLES)
def test_overlay_paints_every_labelled_keypoint(
    slug: str, folder: str, instances: int, categories: set[str], labelled: int, tmp_path: Path
) -> None:
    records, _ = _read(slug, folder)
    for path in write_overlays(records, tmp_path, per_data_set=4):
        assert cv2.imread(str(path)) is not None
    record = records[0]
    canvas, plain = draw_record(record), read_image(record)
    zoom = canvas.shape[1] / plain.shape[1]
    enlarged = cv2.resize(plain, canvas.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    changed = np.abs(canvas.astype(int) - enlarged.astype(int)).max(2) > 0
    for x, y, flag in record.instances[0].keypoints_K3:
        row, column = (
            min(round(float(value) * zoom), side - 1) for value, side in ((y, canvas.shape[0]), (x, canvas.shape[1]))
        )
        assert flag == 0 or changed[row, column]


def test_names_and_not_positions_decide_the_slot() -> None:
    """The fly's left front leg tip is the file's 22nd column; it must arrive under its published name."""
    records, _ = _read("fly", "fly")
    native = load_json(need_shared("data/unikpt_samples/fly/test_fly_open.json"))
    names = native["categories"][0]["keypoints"]
    column = names.index("forelegL4")
    slot = load_skeleton("fly").keypoints.index("foreleg left tip")
    source = native["annotations"][0]["keypoints"][3 * column : 3 * column + 2]
    np.testing.assert_allclose(records[0].instances[0].keypoints_K3[slot, :2], source, atol=1e-3)


def test_where_a_source_never_writes_2_its_labelled_points_count_as_seen() -> None:
    face = _read("300w", "300w")[0][0].instances[0]
    person = [instance for record in _read("coco", "coco")[0] for instance in record.instances]
    assert set(face.keypoints_K3[:, 2]) == {2.0}
    assert 1.0 in {float(flag) for instance in person for flag in instance.keypoints_K3[:, 2]}


def test_lspet_joins_the_twelve_shared_joints_to_the_person() -> None:
    folder = need_shared("data/lspet")
    records = list(read_coco_layout(folder / "annotations_val.json", ImageFinder(folder), LSPET, Report()))
    assert len(records) == 500
    assert {record.split for record in records} == {"val"}
    names = load_skeleton("person").keypoints
    labelled_K = np.sum([record.instances[0].keypoints_K3[:, 2] > 0 for record in records], axis=0)
    assert [name for name, count in zip(names, labelled_K, strict=True) if count == 0] == list(names[:5])
    native = load_json(folder / "annotations_val.json")
    wrist = native["categories"][0]["keypoints"].index("left wrist")
    source = native["annotations"][0]["keypoints"][3 * wrist : 3 * wrist + 2]
    np.testing.assert_allclose(records[0].instances[0].keypoints_K3[names.index("left wrist"), :2], source, atol=1e-3)
    assert read_image(records[0]).shape == (records[0].height, records[0].width, 3)


def test_a_users_own_animal_reads_with_a_skeleton_file(tmp_path: Path) -> None:
    folder = need_shared("data/labelled_animals/dlc_openfield")
    skeleton = tmp_path / "mouse.toml"
    skeleton.write_text('name = "mouse"\nkeypoints = ["tail base", "snout", "left ear", "right_ear"]\n')
    report = Report()
    rules = CocoRules("own", str(skeleton))
    records = list(read_coco_layout(folder / "annotations.json", ImageFinder(folder), rules, report))
    assert len(records) == 116
    np.testing.assert_allclose(records[0].instances[0].keypoints_K3[0], [87.11, 152.7, 2.0], atol=1e-3)
    assert records[0].instances[0].category == "mouse"


def test_table_counts_what_is_there_and_names_what_is_missing() -> None:
    index = build_index(need_shared("data/unikpt_samples"), Report())
    assert {data_set.slug for data_set in index.missing} == {"apt36k", "animalweb", "keypoint5"}
    text = table(index)
    row = next(line for line in text.splitlines() if line.startswith("AP-10K"))
    assert row.split()[1:] == ["17", "1", "1", "1", "17", "54", "10,015", "13,028", "10,015", "13,028"]
    total = text.splitlines()[-1]
    assert total.split()[-4:] == ["338", "1,237", "226,547", "418,487"]


def test_equal_names_are_one_keypoint_in_the_total() -> None:
    index = build_index(need_shared("data/unikpt_samples"), Report(), only=frozenset({"coco", "macaque", "humanart"}))
    names = {fold(name) for tally in index.tallies.values() for name in tally.keypoints}
    assert len(names) == 17
