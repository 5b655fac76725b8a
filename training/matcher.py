"""Assignment of predictions to targets: one optimal assignment per image (XPOSE.md 10.2).

Legend: B images, Q predictions, N targets, C classes, K keypoints.
"""

from typing import NamedTuple

import msgspec
import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from training.targets import Targets, box_to_corners

OKS_FLOOR = 1e-6
WRONG_LIST_COST = 100.0
"""Cost of a group with the keypoint list of another class. It has no keypoints to compare, so it is matched last."""


class Prediction(NamedTuple):
    """The prediction of one layer. Keypoints, and the class of their list, are None for a layer without them."""

    logits_BQC: Tensor
    boxes_BQ4: Tensor
    points_BQK2: Tensor | None = None
    class_BQ: Tensor | None = None


class MatchCosts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Weights of the cost. Groups with keypoints use no box terms. Source: ED-Pose's released configuration."""

    label: float = 2.0
    box_l1: float = 5.0
    giou: float = 2.0
    point_l1: float = 10.0
    oks: float = 4.0


def focal_cost(logits_BQC: Tensor) -> Tensor:
    """Return the class cost of each query: its focal loss as a positive minus its focal loss as a negative."""
    probability = logits_BQC.sigmoid()
    positive = 0.25 * (1 - probability) ** 2 * -(probability + 1e-8).log()
    negative = 0.75 * probability**2 * -(1 - probability + 1e-8).log()
    return positive - negative


def generalised_iou(a: Tensor, b: Tensor) -> Tensor:
    """Return the GIoU of (cx, cy, w, h) boxes, with broadcasting. Both denominators get 1e-6 more, as released.

    Source: arXiv:1902.09630.
    """
    a, b = box_to_corners(a), box_to_corners(b)
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    inner = (high - low).clamp(min=0).prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - inner
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    return inner / (union + 1e-6) - (hull - union) / (hull + 1e-6)


def object_keypoint_similarity(
    points_K2: Tensor, target_K2: Tensor, labelled_K: Tensor, sigmas_K: Tensor, area: Tensor, size_hw: tuple[int, int]
) -> Tensor:
    """Return the OKS in canvas pixels over the labelled points, with a lower clamp. Leading axes broadcast.

    Source: COCO's keypoint evaluation; XPOSE.md 10.3 for the clamp and the epsilon.
    """
    scale_2 = points_K2.new_tensor([size_hw[1], size_hw[0]])
    squared_K = ((points_K2 - target_K2) * scale_2).square().sum(-1)
    similarity_K = torch.exp(-squared_K / (2 * area[..., None] * (2 * sigmas_K).square()))
    weight_K = labelled_K.to(similarity_K.dtype)
    return ((similarity_K * weight_K).sum(-1) / (weight_K.sum(-1) + 1e-6)).clamp(min=OKS_FLOOR)


def pairwise_similarity(points_BQK2: Tensor, targets: Targets) -> Tensor:
    """Return the OKS [B, Q, N] of every prediction and target. Columns of padded targets are undefined."""
    return object_keypoint_similarity(
        points_BQK2.float()[:, :, None],
        targets.points_BNK2[:, None],
        targets.labelled_BNK[:, None],
        targets.sigmas_CK[targets.label_BN][:, None],
        targets.area_BN[:, None],
        targets.size_hw,
    )


@torch.no_grad()
def match(prediction: Prediction, targets: Targets, costs: MatchCosts) -> Tensor:
    """Assign a query to every target.

    Returns:
        query_BN: int64, the query of each target; -1 for padding, and where there are too few queries.
    """
    cost_BQN = match_cost(prediction, targets, costs).cpu().numpy()
    cost_BQN = np.nan_to_num(cost_BQN, nan=1e6, posinf=1e6, neginf=-1e6)
    query_BN = np.full(targets.valid_BN.shape, -1, np.int64)
    for b, valid_N in enumerate(targets.valid_BN.cpu().numpy()):
        columns = np.flatnonzero(valid_N)
        rows, chosen = linear_sum_assignment(cost_BQN[b][:, columns])
        query_BN[b, columns[chosen]] = rows
    return torch.from_numpy(query_BN).to(targets.label_BN.device)


def match_cost(prediction: Prediction, targets: Targets, costs: MatchCosts) -> Tensor:
    """Return the cost [B, Q, N] of every pair. Columns of padded targets are undefined."""
    logits_BQC = prediction.logits_BQC.float()
    label_B1N = targets.label_BN[:, None].expand(-1, logits_BQC.shape[1], -1)
    cost_BQN = costs.label * focal_cost(logits_BQC).gather(2, label_B1N)
    if prediction.points_BQK2 is None or prediction.class_BQ is None:
        boxes_BQ14, target_B1N4 = prediction.boxes_BQ4.float()[:, :, None], targets.boxes_BN4[:, None]
        cost_BQN += costs.box_l1 * (boxes_BQ14 - target_B1N4).abs().sum(-1)
        return cost_BQN - costs.giou * generalised_iou(boxes_BQ14, target_B1N4)
    points_BQ1K2, target_B1NK2 = prediction.points_BQK2.float()[:, :, None], targets.points_BNK2[:, None]
    distance_BQNK = (points_BQ1K2 - target_B1NK2).abs().sum(-1)
    cost_BQN += costs.point_l1 * (distance_BQNK * targets.labelled_BNK[:, None]).sum(-1)
    cost_BQN += costs.oks * (1 - pairwise_similarity(prediction.points_BQK2, targets))
    return cost_BQN + WRONG_LIST_COST * (prediction.class_BQ[:, :, None] != targets.label_BN[:, None])
