"""The scene generator: the same seed gives the same picture, and its keypoints and flags are the picture's."""

from dataclasses import replace

import numpy as np
import pytest

from engines.skeletons import load_skeleton
from pipeline.synthetic import CATEGORIES, SceneConfig, SceneVideo, render_scene
from pipeline.synthetic.figure import Figure, Part
from pipeline.synthetic.garments import Garment
from pipeline.synthetic.geometry import View, capsule, circle, rotation
from pipeline.synthetic.painter import Painter
from pipeline.synthetic.people import Person

PLAIN = SceneConfig(clutter=(0, 0), occluders=(0, 0), blur_px=(0, 0), smear_px=(0, 0), noise_std=(0, 0))


def test_same_seed_gives_the_same_scene() -> None:
    first, second = render_scene(11, SceneConfig()), render_scene(11, SceneConfig())
    np.testing.assert_array_equal(first.rgb_HW3, second.rgb_HW3)
    assert len(first.instances) == len(second.instances) > 0
    for one, other in zip(first.instances, second.instances, strict=True):
        assert one.category == other.category
        np.testing.assert_array_equal(one.keypoints_K2, other.keypoints_K2)
        np.testing.assert_array_equal(one.visible_K, other.visible_K)


def test_another_seed_gives_another_scene() -> None:
    assert not np.array_equal(render_scene(1, SceneConfig()).rgb_HW3, render_scene(2, SceneConfig()).rgb_HW3)


def test_a_generator_in_the_same_state_gives_the_same_scene() -> None:
    scenes = [render_scene(np.random.default_rng(5), SceneConfig()) for _ in range(2)]
    np.testing.assert_array_equal(scenes[0].rgb_HW3, scenes[1].rgb_HW3)


@pytest.mark.parametrize("category", sorted(CATEGORIES))
def test_every_category_has_the_keypoints_of_its_skeleton(category: str) -> None:
    skeleton = load_skeleton(CATEGORIES[category])
    scene = render_scene(3, replace(PLAIN, categories=(category,), instances=(3, 3)))
    assert scene.instances
    for instance in scene.instances:
        assert instance.category == category
        assert instance.keypoints_K2.shape == (len(skeleton.keypoints), 2)
        assert instance.visible_K.shape == (len(skeleton.keypoints),)
        assert np.isfinite(instance.keypoints_K2).all()


@pytest.mark.parametrize("category", sorted(CATEGORIES))
def test_seen_keypoints_lie_on_the_figure(category: str) -> None:
    """The figure is found without trusting its labels: as the difference to the same scene without figures."""
    seen_count = 0
    for seed in range(4):
        config = replace(PLAIN, categories=(category,), instances=(1, 1), scale=(0.7, 0.9), truncation=0.0)
        video = SceneVideo(seed, config, (240, 240))
        scene = video.frame(0)
        empty = video._finished(video._background_HW3.copy(), 0)
        painted = np.abs(scene.rgb_HW3.astype(int) - empty.astype(int)).max(2) > 2
        for instance in scene.instances:
            for x, y in instance.keypoints_K2[instance.visible_K == 2].astype(int):
                near = painted[max(0, y - 6) : y + 7, max(0, x - 6) : x + 7]
                assert near.any(), f"{category}, seed {seed}: nothing is painted at ({x}, {y})"
                seen_count += 1
            x0, y0, x1, y1 = instance.box_xyxy.astype(int)
            outside = painted.copy()
            outside[max(0, y0 - 2) : y1 + 2, max(0, x0 - 2) : x1 + 2] = False
            assert not outside.any(), f"{category}, seed {seed}: painted outside its box"
    assert seen_count >= 8


def _view(yaw_deg: float = 0.0) -> View:
    return View(rotation(np.radians(yaw_deg), 0.0, 0.0), 300.0, (200.0, 200.0), 6.0)


def _flags(figure: Figure, cover: Part | None = None) -> np.ndarray:
    painter = Painter(np.zeros((400, 400, 3), np.uint8))
    first, _ = painter.paint(figure.parts, np.zeros(2))
    if cover is not None:
        painter.paint([cover], np.zeros(2))
    return painter.flags(figure, first)


def test_left_and_right_follow_the_person_and_not_the_picture() -> None:
    person = Person(np.random.default_rng(0))
    front = person.figure(_view(0.0), 0.0).keypoints_K2
    back = person.figure(_view(180.0), 0.0).keypoints_K2
    left_shoulder, right_shoulder = 5, 6
    assert front[left_shoulder, 0] > front[right_shoulder, 0], (
        "facing the camera, the left side is at the image's right"
    )
    assert back[left_shoulder, 0] < back[right_shoulder, 0]


def test_a_face_that_is_turned_away_is_hidden() -> None:
    hidden_front = hidden_back = 0
    for seed in range(10):
        person = Person(np.random.default_rng(seed))
        hidden_front += int(np.count_nonzero(_flags(person.figure(_view(0.0), 0.0))[:3] == 1))
        hidden_back += int(np.count_nonzero(_flags(person.figure(_view(180.0), 0.0))[:3] == 1))
    assert hidden_back > 24 > 12 > hidden_front


def test_the_far_arm_of_a_side_view_is_hidden_by_the_trunk() -> None:
    far_hidden = near_hidden = 0
    for seed in range(10):
        flags = _flags(Person(np.random.default_rng(seed)).figure(_view(90.0), 0.0))
        far_hidden += flags[5] == 1 if _nearer_side(seed) == "right" else flags[6] == 1
        near_hidden += flags[6] == 1 if _nearer_side(seed) == "right" else flags[5] == 1
    assert far_hidden >= 8
    assert near_hidden <= 3


def _nearer_side(seed: int) -> str:
    view = _view(90.0)
    joints = Person(np.random.default_rng(seed))._joints(Person(np.random.default_rng(seed))._pose_at(0.0))
    _, depth_2 = view.project(np.stack([joints["left_shoulder"], joints["right_shoulder"]]))
    return "left" if depth_2[0] > depth_2[1] else "right"


def test_what_something_covers_is_flagged_hidden_and_nothing_else() -> None:
    figure = Garment(np.random.default_rng(0), "trousers").figure(_view(), 0.0)
    before = _flags(figure)
    covered = 8
    after = _flags(figure, Part("cover", circle(figure.keypoints_K2[covered], 6.0), (0.0, 0.0, 0.0), 0.0))
    distance_K = np.linalg.norm(figure.keypoints_K2 - figure.keypoints_K2[covered], axis=1)
    assert before[covered] == 2
    assert after[covered] == 1
    np.testing.assert_array_equal(before[distance_K > 8], after[distance_K > 8])


def test_outside_the_image_is_flag_0_and_still_exact() -> None:
    limb = Part("limb", capsule(np.array([10.0, 10.0]), np.array([-30.0, 10.0]), 4.0, 4.0), (9.0, 9.0, 9.0), 0.0)
    keypoints_K2 = np.array([[10.0, 10.0], [-30.0, 10.0], [0.0, 0.0]])
    figure = Figure([limb], keypoints_K2, [("limb",), ("limb",), ()], np.ones(3, dtype=bool))
    np.testing.assert_array_equal(_flags(figure), [2, 0, 0])


def test_the_placeholder_slots_of_a_car_are_never_labelled() -> None:
    scene = render_scene(0, replace(PLAIN, categories=("car",), instances=(4, 4)))
    for instance in scene.instances:
        assert instance.visible_K[8] == instance.visible_K[13] == 0


def test_occlusion_by_other_figures_happens_and_is_flagged() -> None:
    """In a crowd, who is largely covered has keypoints that are flagged so."""
    crowded = replace(
        PLAIN, categories=("person",), instances=(14, 14), scale=(0.8, 0.9), truncation=0.0, min_visible=0.05
    )
    hidden = [instance for instance in render_scene(4, crowded).instances if instance.visible_fraction < 0.7]
    assert hidden
    assert all((instance.visible_K == 1).sum() >= 2 for instance in hidden)


@pytest.mark.parametrize("count", [0, 1, 25])
def test_any_number_of_figures(count: int) -> None:
    scene = render_scene(0, replace(PLAIN, instances=(count, count), scale=(0.1, 0.2), min_visible=0.0))
    assert count - 2 <= len(scene.instances) <= count, "at most two of them are wholly behind others"
    assert len(scene.instances) >= min(count, 1)
    assert len({instance.id for instance in scene.instances}) == len(scene.instances)


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 300), (300, 1), (17, 31), (1080, 1920)])
def test_any_size(size_hw: tuple[int, int]) -> None:
    scene = render_scene(2, SceneConfig(size_hw=size_hw, smear_px=(2.5, 2.5), instances=(5, 5)))
    assert scene.rgb_HW3.shape == (*size_hw, 3)
    assert scene.rgb_HW3.dtype == np.uint8
    for instance in scene.instances:
        x0, y0, x1, y1 = instance.box_xyxy
        assert 0 <= x0 < x1 <= size_hw[1]
        assert 0 <= y0 < y1 <= size_hw[0]


def test_video_frames_do_not_depend_on_the_order_they_are_asked_in() -> None:
    video = SceneVideo(7, SceneConfig(), (120, 160))
    forward = [video.frame(index) for index in (0, 9, 40)]
    again = SceneVideo(7, SceneConfig(), (120, 160))
    backward = [again.frame(index) for index in (40, 9, 0)][::-1]
    for one, other in zip(forward, backward, strict=True):
        np.testing.assert_array_equal(one.rgb_HW3, other.rgb_HW3)


def test_video_moves_without_jumps_and_keeps_identities() -> None:
    video = SceneVideo(3, SceneConfig(instances=(5, 5), min_visible=0.0), (320, 320), rate=30.0)
    previous = {instance.id: instance for instance in video.frame(0).instances}
    moved_px = 0.0
    for index in range(1, 90):
        current = {instance.id: instance for instance in video.frame(index).instances}
        for number in previous.keys() & current.keys():
            step_K = np.linalg.norm(current[number].keypoints_K2 - previous[number].keypoints_K2, axis=1)
            assert step_K.max() < 16.0, "a keypoint jumped by 5 % of the image in a thirtieth of a second"
            assert current[number].category == previous[number].category
            moved_px = max(moved_px, float(step_K.max()))
        previous = current
    assert moved_px > 0.5


def test_twice_the_rate_shows_the_same_motion_in_twice_the_frames() -> None:
    slow, fast = (SceneVideo(3, PLAIN, (200, 200), rate=rate).frame for rate in (15.0, 30.0))
    np.testing.assert_array_equal(slow(10).rgb_HW3, fast(20).rgb_HW3)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"categories": ("unicorn",)}, "unicorn"),
        ({"size_hw": (0, 5)}, "at least 1 pixel"),
        ({"instances": (3, 1)}, "instances"),
        ({"categories": ()}, "no categories"),
    ],
)
def test_a_wrong_config_is_refused_with_its_reason(change: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        replace(SceneConfig(), **change)  # type: ignore[arg-type]


def test_the_generator_still_draws_the_scenes_of_the_test_set() -> None:
    """The synthetic test set is a seed and settings: whoever changes what a seed draws changes every figure."""
    drawn = {seed: render_scene(seed, SceneConfig()).instances for seed in (2_000_000, 2_000_001)}
    assert [[one.category for one in found] for found in drawn.values()] == [
        ["chair", "table", "cow"],
        ["skirt", "horse"],
    ]
    sums = [float(one.keypoints_K2.sum()) for found in drawn.values() for one in found]
    np.testing.assert_allclose(sums, [2872.3, 1974.2, 6050.5, 2030.4, 8131.2], atol=0.1)
    assert [int(one.visible_K.sum()) for found in drawn.values() for one in found] == [6, 14, 29, 16, 22]
