"""Assignment, overlap and similarity against hand numbers and the published anchors."""

import torch

from training.matcher import MatchCosts, Prediction, generalised_iou, match, object_keypoint_similarity
from training.targets import Targets


def targets_of(boxes: list[list[float]], labels: list[int], slots: int = 2) -> Targets:
    """One image's targets, every keypoint at its box's centre."""
    boxes_BN4 = torch.tensor([boxes])
    count = len(boxes)
    return Targets(
        valid_BN=torch.ones(1, count, dtype=torch.bool),
        label_BN=torch.tensor([labels]),
        boxes_BN4=boxes_BN4,
        points_BNK2=boxes_BN4[:, :, None, :2].expand(1, count, slots, 2).clone(),
        labelled_BNK=torch.ones(1, count, slots, dtype=torch.bool),
        area_BN=torch.full((1, count), 400.0),
        sigmas_CK=torch.full((2, slots), 0.05),
        keypoint_valid_CK=torch.ones(2, slots, dtype=torch.bool),
        size_hw=(100, 100),
        ignore_BR4=torch.zeros(1, 0, 4),
    )


def test_generalised_iou_gives_the_published_value() -> None:
    a, b = torch.tensor([0.3, 0.3, 0.4, 0.4]), torch.tensor([0.6, 0.45, 0.6, 0.3])
    torch.testing.assert_close(generalised_iou(a, b), torch.tensor(-0.116666), atol=1e-5, rtol=0)


def test_object_keypoint_similarity_gives_the_published_value() -> None:
    found = torch.tensor([[0.51, 0.5], [0.2, 0.23]])
    truth = torch.tensor([[0.5, 0.5], [0.2, 0.2]])
    sigmas = torch.tensor([0.026, 0.025])
    similarity = object_keypoint_similarity(
        found, truth, torch.ones(2, dtype=torch.bool), sigmas, torch.tensor(0.04), (1, 1)
    )
    torch.testing.assert_close(similarity, torch.tensor(0.320478), atol=1e-5, rtol=0)


def test_similarity_is_isotropic_on_a_wide_canvas() -> None:
    truth = torch.tensor([[0.5, 0.5]])
    labelled, sigma, area = torch.ones(1, dtype=torch.bool), torch.tensor([0.1]), torch.tensor(900.0)
    right = object_keypoint_similarity(truth + torch.tensor([[5 / 200, 0.0]]), truth, labelled, sigma, area, (100, 200))
    down = object_keypoint_similarity(truth + torch.tensor([[0.0, 5 / 100]]), truth, labelled, sigma, area, (100, 200))
    torch.testing.assert_close(right, down)


def test_boxes_are_matched_to_their_own_targets_whatever_their_order() -> None:
    targets = targets_of([[0.2, 0.2, 0.1, 0.1], [0.8, 0.8, 0.2, 0.2]], [0, 1])
    boxes = torch.tensor([[[0.79, 0.8, 0.2, 0.2], [0.5, 0.5, 0.1, 0.1], [0.21, 0.2, 0.1, 0.1]]])
    query_BN = match(Prediction(torch.zeros(1, 3, 2), boxes), targets, MatchCosts())
    assert query_BN.tolist() == [[2, 0]]


def test_keypoint_layers_ignore_boxes_and_refuse_another_class_list() -> None:
    targets = targets_of([[0.2, 0.2, 0.1, 0.1]], [0])
    points = torch.full((1, 2, 2, 2), 0.2)
    points[0, 1] += 0.1
    boxes = torch.tensor([[[0.9, 0.9, 0.1, 0.1], [0.2, 0.2, 0.1, 0.1]]])
    near = Prediction(torch.zeros(1, 2, 2), boxes, points, torch.tensor([[0, 0]]))
    assert match(near, targets, MatchCosts()).tolist() == [[0]]
    wrong_list = near._replace(class_BQ=torch.tensor([[1, 0]]))
    assert match(wrong_list, targets, MatchCosts()).tolist() == [[1]]


def test_classes_that_are_not_offered_do_not_break_the_assignment() -> None:
    targets = targets_of([[0.5, 0.5, 0.1, 0.1]], [0])
    logits = torch.tensor([[[0.0, -torch.inf], [2.0, -torch.inf]]])
    boxes = torch.tensor([[[0.5, 0.5, 0.1, 0.1], [0.5, 0.5, 0.1, 0.1]]])
    assert match(Prediction(logits, boxes), targets, MatchCosts()).tolist() == [[1]]
