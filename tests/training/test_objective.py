"""Losses on edge cases: anchors, classes not offered, no targets, nothing labelled; denoising's layout."""

import pytest
import torch
from torch import nn

from tests.training.test_matcher import targets_of
from training.denoising import DenoisingConfig, make_denoising
from training.matcher import MatchCosts, Prediction
from training.objective import denoising_losses, focal_loss, group_losses, label_loss, layer_losses


def test_focal_loss_gives_the_published_values() -> None:
    logits, goal = torch.tensor([[0.3, -1.2], [2.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    expected = torch.tensor([[0.025098, 0.010580], [1.237559, 0.043322]])
    torch.testing.assert_close(focal_loss(logits, goal), expected, atol=2e-6, rtol=0)


def test_columns_not_offered_change_neither_loss_nor_gradient() -> None:
    logits = torch.tensor([[[0.3, -torch.inf], [2.0, -torch.inf]]], requires_grad=True)
    goal = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    counted = torch.ones(1, 2, dtype=torch.bool)
    loss = label_loss(logits, goal, torch.tensor([[True, False]]), 1.0, counted)
    alone = label_loss(logits.detach()[..., :1], goal[..., :1], None, 1.0, counted)
    torch.testing.assert_close(loss.detach(), alone)
    loss.backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def prediction(queries: int, with_points: bool) -> Prediction:
    torch.manual_seed(0)
    points = torch.rand(1, queries, 2, 2) if with_points else None
    classes = torch.zeros(1, queries, dtype=torch.int64) if with_points else None
    return Prediction(torch.randn(1, queries, 2), torch.rand(1, queries, 4), points, classes)


@pytest.mark.parametrize("with_points", [False, True])
def test_an_image_without_targets_has_only_a_class_loss(with_points: bool) -> None:
    targets = targets_of([[0.5, 0.5, 0.1, 0.1]], [0])
    targets = targets._replace(valid_BN=torch.zeros(1, 1, dtype=torch.bool))
    losses = layer_losses(prediction(4, with_points), targets, None, MatchCosts(), 1.0)
    assert losses["label"] > 0
    assert all(value == 0 for name, value in losses.items() if name != "label")


def test_an_object_without_labelled_keypoints_teaches_class_and_box_only() -> None:
    targets = targets_of([[0.5, 0.5, 0.1, 0.1]], [0])
    targets = targets._replace(labelled_BNK=torch.zeros(1, 1, 2, dtype=torch.bool))
    losses = layer_losses(prediction(4, True), targets, None, MatchCosts(), 1.0)
    assert losses["point_l1"] == 0
    assert losses["oks"] == 0
    assert losses["giou"] > 0


def test_perfect_predictions_have_no_geometric_loss() -> None:
    targets = targets_of([[0.5, 0.5, 0.2, 0.2]], [0])
    exact = Prediction(
        torch.zeros(1, 1, 2), targets.boxes_BN4, targets.points_BNK2, torch.zeros(1, 1, dtype=torch.int64)
    )
    losses = layer_losses(exact, targets, None, MatchCosts(), 1.0)
    for name in ("box_l1", "giou", "point_l1", "oks"):
        assert float(losses[name]) == pytest.approx(0.0, abs=1e-4)


def scored(points: torch.Tensor, boxes: torch.Tensor, logit: float) -> Prediction:
    logits = torch.full((1, points.shape[1], 2), -9.0)
    logits[..., 0] = logit
    return Prediction(logits, boxes, points, torch.zeros(1, points.shape[1], dtype=torch.int64))


def test_a_scored_group_learns_its_own_similarity_whether_another_answers_or_not() -> None:
    targets = targets_of([[0.5, 0.5, 0.2, 0.2]], [0])
    right, wrong = targets.points_BNK2, targets.points_BNK2 + 0.4
    boxes = targets.boxes_BN4.expand(1, 3, 4)
    unsure = scored(torch.cat([right, right, wrong], 1), boxes, 0.0)
    unsure.logits_BQC.requires_grad_()
    group_losses(unsure, targets, None, MatchCosts(), 1.0)["score"].backward()
    assert unsure.logits_BQC.grad is not None
    slope_Q = unsure.logits_BQC.grad[0, :, 0]
    assert slope_Q[0] == slope_Q[1] < 0 < slope_Q[2]
    sure = scored(torch.cat([right, right], 1), boxes[:, :2], 9.0)
    assert float(group_losses(sure, targets, None, MatchCosts(), 1.0)["score"]) < 1e-3


def test_every_scored_group_on_an_object_learns_it_and_the_others_do_not() -> None:
    targets = targets_of([[0.5, 0.5, 0.2, 0.2]], [0])
    points = (targets.points_BNK2 + 0.05).repeat(1, 3, 1, 1).requires_grad_()
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.2], [0.51, 0.5, 0.2, 0.2], [0.2, 0.2, 0.2, 0.2]]])
    losses = group_losses(scored(points, boxes, 0.0), targets, None, MatchCosts(), 1.0)
    losses["point_l1"].backward()
    assert points.grad is not None
    assert [bool(group.any()) for group in points.grad[0]] == [True, True, False]
    assert float(losses["point_l1"].detach()) == pytest.approx(0.05 * 2 * 2, abs=1e-5)


def test_a_scored_group_on_an_object_without_keypoints_learns_its_overlap() -> None:
    targets = targets_of([[0.5, 0.5, 0.2, 0.2]], [0])
    targets = targets._replace(labelled_BNK=torch.zeros(1, 1, 2, dtype=torch.bool))
    group = scored(targets.points_BNK2, targets.boxes_BN4, 9.0)
    assert float(group_losses(group, targets, None, MatchCosts(), 1.0)["score"]) < 1e-3


def test_scored_groups_without_targets_learn_to_be_background() -> None:
    targets = targets_of([[0.5, 0.5, 0.1, 0.1]], [0])
    targets = targets._replace(valid_BN=torch.zeros(1, 1, dtype=torch.bool))
    losses = group_losses(prediction(4, True), targets, None, MatchCosts(), 1.0)
    assert losses["score"] > 0
    assert all(value == 0 for name, value in losses.items() if name != "score")


def noisy(queries: int = 8) -> tuple[object, ...]:
    targets = targets_of([[0.3, 0.3, 0.2, 0.2], [0.7, 0.6, 0.3, 0.2]], [0, 1])
    config = DenoisingConfig(queries=queries, label_noise=0.0)
    book = nn.Embedding(11, 6)
    generator = torch.Generator().manual_seed(3)
    return targets, book, make_denoising(book, targets, torch.tensor([4, 7]), config, generator)


def test_denoising_positives_stay_nearer_than_negatives_and_carry_their_label() -> None:
    targets, book, denoising = noisy()
    assert denoising is not None
    assert denoising.target_BR.tolist() == [[0, 1, 0, 1]]
    torch.testing.assert_close(denoising.content_BPD[0, 2], book.weight[7])
    goal = targets.boxes_BN4[0, denoising.target_BR[0]]
    moved_RS = (denoising.reference_BP4[0].unflatten(0, (-1, 2)) - goal[:, None]).abs().sum(-1)
    assert moved_RS[:, 0].max() < moved_RS[:, 1].max()


def test_every_image_with_a_target_fills_all_its_pairs_with_its_own() -> None:
    targets = targets_of([[0.3, 0.3, 0.2, 0.2], [0.7, 0.6, 0.3, 0.2]], [0, 1])
    counts = ([True, True], [True, False], [False, False])
    batch = targets._replace(
        valid_BN=torch.tensor(counts),
        label_BN=targets.label_BN.expand(3, -1),
        boxes_BN4=targets.boxes_BN4.expand(3, -1, -1),
    )
    book, generator = nn.Embedding(11, 6), torch.Generator().manual_seed(3)
    denoising = make_denoising(book, batch, torch.tensor([4, 7]), DenoisingConfig(queries=6), generator)
    assert denoising is not None
    assert denoising.target_BR[:2].tolist() == [[0, 1, 0], [0, 0, 0]]
    assert denoising.valid_B.tolist() == [True, True, False]


def test_matching_queries_never_see_denoising_queries() -> None:
    _, _, denoising = noisy()
    mask = denoising.attention_mask(matching=3)
    assert not mask[8:, :8].any()
    assert mask[:8, 8:].all()
    assert mask[:2, :2].all()
    assert not mask[:2, 2:8].any()


def test_denoising_is_off_without_queries_or_targets() -> None:
    targets, book, _ = noisy()
    generator = torch.Generator().manual_seed(0)
    assert make_denoising(book, targets, torch.tensor([4, 7]), DenoisingConfig(queries=0), generator) is None
    empty = targets._replace(valid_BN=torch.zeros(1, 2, dtype=torch.bool))
    assert make_denoising(book, empty, torch.tensor([4, 7]), DenoisingConfig(), generator) is None


def test_denoising_negatives_are_background() -> None:
    targets, _, denoising = noisy()
    logits = torch.full((1, 8, 2), -8.0)
    for pair, target in enumerate(denoising.target_BR[0]):
        logits[0, 2 * pair, targets.label_BN[0, target]] = 8.0
    boxes = targets.boxes_BN4[:, denoising.target_BR[0].repeat_interleave(2)]
    right = Prediction(logits, boxes)
    losses = denoising_losses(right, denoising, targets, None, 1.0)
    assert float(losses["label"]) < 1e-4
    assert float(losses["box_l1"]) == pytest.approx(0.0, abs=1e-5)
    wrong = denoising_losses(right._replace(logits_BQC=logits.abs()), denoising, targets, None, 1.0)
    assert float(wrong["label"]) > 1.0


def test_denoising_groups_are_compared_with_their_own_targets_keypoints() -> None:
    targets, _, denoising = noisy()
    logits = torch.full((1, 4, 2), -8.0)
    logits[0, torch.arange(4), targets.label_BN[0, denoising.target_BR[0]]] = 8.0
    boxes, points = targets.boxes_BN4[:, denoising.target_BR[0]], targets.points_BNK2[:, denoising.target_BR[0]]
    losses = denoising_losses(Prediction(logits, boxes, points), denoising, targets, None, 1.0)
    assert all(float(value) == pytest.approx(0.0, abs=1e-4) for value in losses.values())
    moved = denoising_losses(Prediction(logits, boxes, points + 0.1), denoising, targets, None, 1.0)
    assert float(moved["point_l1"]) == pytest.approx(0.1 * 2 * 2 * 4, abs=1e-4)
    assert float(moved["oks"]) > 1.0


def test_scored_denoising_groups_learn_their_similarity() -> None:
    targets, _, denoising = noisy()
    logits = torch.full((1, 4, 2), -9.0)
    boxes, points = targets.boxes_BN4[:, denoising.target_BR[0]], targets.points_BNK2[:, denoising.target_BR[0]]
    far = Prediction(logits, boxes, points + 0.4)
    assert float(denoising_losses(far, denoising, targets, None, 1.0, scored_groups=True)["score"]) < 1e-3
    assert float(denoising_losses(far, denoising, targets, None, 1.0)["label"]) > 1.0
