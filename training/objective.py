"""The losses (XPOSE.md 10.3, 10.4, 10.7) and their sum.

Legend: B images, Q predictions, N targets, P denoising queries, R pairs of them, C classes, K keypoints, D channels.
"""

from collections.abc import Mapping

import msgspec
import torch
from torch import Tensor
from torch.nn import functional

from training.denoising import Denoising
from training.forward import TrainOutput
from training.matcher import (
    MatchCosts,
    Prediction,
    generalised_iou,
    match,
    object_keypoint_similarity,
    pairwise_similarity,
)
from training.targets import Targets, ignored_boxes

LEAST_OVERLAP = 0.5
"""A group also learns a target if its box has at least this GIoU with the box of the target."""


class LossWeights(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Weights of the sum. Sources: ED-Pose's configuration; denoising coefficients 1.0 as in X-Pose's.

    Args:
        score: weight of the class loss of scored groups; it replaces `label`.
        crowding: weight of `training.alignment.crowding`, for a text tower that is trained from scratch.
        scored_groups: the score of a group learns the quality of its prediction, and every group on an object learns
            that object (`group_losses`). Otherwise one group per object learns it, with a score of 1.
    """

    label: float = 2.0
    score: float = 2.0
    box_l1: float = 5.0
    giou: float = 2.0
    point_l1: float = 10.0
    oks: float = 4.0
    denoising: float = 1.0
    alignment: float = 0.1
    crowding: float = 0.0
    dense: float = 0.0
    scored_groups: bool = False
    costs: MatchCosts = MatchCosts()


def focal_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Sigmoid focal loss per element, alpha 0.25, gamma 2. Source: arXiv:1708.02002."""
    entropy = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    probability = logits.sigmoid()
    error = (target - probability).abs()
    return (0.25 * target + 0.75 * (1 - target)) * error.square() * entropy


def label_loss(
    logits_BQC: Tensor, goal_BQC: Tensor, object_valid_BC: Tensor | None, count: float, counted_BQ: Tensor
) -> Tensor:
    """Return the focal loss summed over counted queries and offered classes and divided by the number of targets.

    Classes that are not offered have logits of -inf and a cross entropy of NaN. They are masked, not multiplied by
    zero.
    """
    logits_BQC = logits_BQC.float()
    offered_BQC = counted_BQ[..., None].expand_as(logits_BQC)
    if object_valid_BC is not None:
        offered_BQC = offered_BQC & object_valid_BC[:, None]
    return focal_loss(logits_BQC[offered_BQC], goal_BQC[offered_BQC]).sum() / count


def one_hot_labels(query_BN: Tensor, targets: Targets, queries: int, classes: int) -> Tensor:
    """Return [B, Q, C] with 1 at the target class of each matched query."""
    one_hot = torch.zeros(*query_BN.shape[:1], queries, classes, device=query_BN.device)
    image_M, target_M = torch.nonzero(query_BN >= 0, as_tuple=True)
    one_hot[image_M, query_BN[image_M, target_M], targets.label_BN[image_M, target_M]] = 1.0
    return one_hot


def layer_losses(
    prediction: Prediction, targets: Targets, object_valid_BC: Tensor | None, costs: MatchCosts, count: float
) -> dict[str, Tensor]:
    """Match one layer and return its losses. Without targets, only the class loss is not zero.

    A query without a target whose box is in an ignore region does not count as background.
    """
    query_BN = match(prediction, targets, costs)
    queries, classes = prediction.logits_BQC.shape[1:]
    one_hot_BQC = one_hot_labels(query_BN, targets, queries, classes)
    counted_BQ = one_hot_BQC.any(-1) | ~ignored_boxes(prediction.boxes_BQ4, targets)
    losses = {"label": label_loss(prediction.logits_BQC, one_hot_BQC, object_valid_BC, count, counted_BQ)}
    image_M, target_M = torch.nonzero(query_BN >= 0, as_tuple=True)
    query_M = query_BN[image_M, target_M]
    losses |= _box_losses(prediction.boxes_BQ4[image_M, query_M], targets.boxes_BN4[image_M, target_M], count)
    if prediction.points_BQK2 is not None and prediction.class_BQ is not None:
        own_M = prediction.class_BQ[image_M, query_M] == targets.label_BN[image_M, target_M]
        image_M, target_M, query_M = image_M[own_M], target_M[own_M], query_M[own_M]
        losses |= _point_losses(prediction.points_BQK2[image_M, query_M], targets, image_M, target_M, count)
    return losses


def group_losses(
    prediction: Prediction, targets: Targets, object_valid_BC: Tensor | None, costs: MatchCosts, count: float
) -> dict[str, Tensor]:
    """Return the losses of a keypoint layer whose scores learn the quality of each group.

    A group attends only to itself, so it cannot know whether another group predicts the same object better. With a
    target score of 1 for one of several equal groups and 0 for the others, all of them learn the same medium score.
    Here the target score is the group's own OKS with the best target of its class (arXiv:2006.04388). Besides the
    matched group, every group whose box overlaps a target of its class by `LEAST_OVERLAP` learns the target's box and
    keypoints (one-to-many, arXiv:2207.13080). Non-maximum suppression removes duplicates later. A group in an ignore
    region that learns no target does not count as background.
    """
    assert prediction.class_BQ is not None
    own_BQN = (prediction.class_BQ[:, :, None] == targets.label_BN[:, None]) & targets.valid_BN[:, None]
    quality_BQN, overlap_BQN = _qualities(prediction, targets)
    goal_BQC = torch.zeros_like(prediction.logits_BQC, dtype=torch.float32)
    goal_BQC.scatter_(2, prediction.class_BQ[..., None], (own_BQN * quality_BQN).amax(2, keepdim=True))
    overlap_BQN = own_BQN * overlap_BQN
    taught_BQN = (overlap_BQN == overlap_BQN.amax(2, keepdim=True)) & (overlap_BQN > LEAST_OVERLAP)
    query_BN = match(prediction, targets, costs)
    image_M, target_M = torch.nonzero(query_BN >= 0, as_tuple=True)
    taught_BQN[image_M, query_BN[image_M, target_M], target_M] = True
    counted_BQ = taught_BQN.any(-1) | ~ignored_boxes(prediction.boxes_BQ4, targets)
    losses = {"score": label_loss(prediction.logits_BQC, goal_BQC, object_valid_BC, count, counted_BQ)}
    image_M, query_M, target_M = torch.nonzero(taught_BQN & own_BQN, as_tuple=True)
    pairs = max(1.0, float(len(image_M)))
    losses |= _box_losses(prediction.boxes_BQ4[image_M, query_M], targets.boxes_BN4[image_M, target_M], pairs)
    assert prediction.points_BQK2 is not None
    return losses | _point_losses(prediction.points_BQK2[image_M, query_M], targets, image_M, target_M, pairs)


@torch.no_grad()
def _qualities(prediction: Prediction, targets: Targets) -> tuple[Tensor, Tensor]:
    """Return the quality (0..1) of every group for every target, and the GIoU of their boxes; both [B, Q, N].

    The quality is the OKS, or the overlap for a target without labelled keypoints.
    """
    assert prediction.points_BQK2 is not None
    similarity_BQN = pairwise_similarity(prediction.points_BQK2, targets)
    overlap_BQN = generalised_iou(prediction.boxes_BQ4.float()[:, :, None], targets.boxes_BN4[:, None])
    labelled_B1N = targets.labelled_BNK.any(-1)[:, None]
    return torch.where(labelled_B1N, similarity_BQN, overlap_BQN.clamp(min=0)), overlap_BQN


def _box_losses(boxes_M4: Tensor, target_M4: Tensor, count: float) -> dict[str, Tensor]:
    boxes_M4 = boxes_M4.float()
    return {
        "box_l1": (boxes_M4 - target_M4).abs().sum() / count,
        "giou": (1 - generalised_iou(boxes_M4, target_M4)).sum() / count,
    }


def _point_losses(
    points_MK2: Tensor, targets: Targets, image_M: Tensor, target_M: Tensor, count: float
) -> dict[str, Tensor]:
    points_MK2, goal_MK2 = points_MK2.float(), targets.points_BNK2[image_M, target_M]
    labelled_MK = targets.labelled_BNK[image_M, target_M]
    sigmas_MK = targets.sigmas_CK[targets.label_BN[image_M, target_M]]
    area_M = targets.area_BN[image_M, target_M]
    similarity_M = object_keypoint_similarity(points_MK2, goal_MK2, labelled_MK, sigmas_MK, area_M, targets.size_hw)
    return {
        "point_l1": ((points_MK2 - goal_MK2).abs() * labelled_MK[..., None]).sum() / count,
        "oks": ((1 - similarity_M) * labelled_MK.any(-1)).sum() / count,
    }


def denoising_losses(
    prediction: Prediction,
    denoising: Denoising,
    targets: Targets,
    object_valid_BC: Tensor | None,
    count: float,
    scored_groups: bool = False,
) -> dict[str, Tensor]:
    """Return the losses of denoising: positives learn their own target, negatives of the box layers learn background.

    Negatives whose noisy box is in an ignore region are skipped.
    """
    logits_BPC = prediction.logits_BQC
    label_BR = targets.label_BN.gather(1, denoising.target_BR)
    every = logits_BPC.shape[1] // denoising.pairs  # 2 where positives and negatives alternate
    goal_BPC = torch.zeros_like(logits_BPC, dtype=torch.float32)
    goal_BPC[:, ::every] = functional.one_hot(label_BR, logits_BPC.shape[2]).float()
    scored = scored_groups and prediction.points_BQK2 is not None
    if scored:
        quality_BRN, _ = _qualities(prediction, targets)
        goal_BPC *= quality_BRN.gather(2, denoising.target_BR[..., None])
    counted_BP = denoising.valid_B[:, None] & ~ignored_boxes(prediction.boxes_BQ4, targets)
    counted_BP[:, ::every] = denoising.valid_B[:, None]
    valid_BPC = counted_BP[..., None].expand_as(logits_BPC)
    if object_valid_BC is not None:
        valid_BPC = valid_BPC & object_valid_BC[:, None]
    losses = {
        "score" if scored else "label": focal_loss(logits_BPC[valid_BPC].float(), goal_BPC[valid_BPC]).sum() / count
    }
    image_M, pair_M = torch.nonzero(denoising.valid_B[:, None].expand_as(label_BR), as_tuple=True)
    target_M = denoising.target_BR[image_M, pair_M]
    losses |= _box_losses(prediction.boxes_BQ4[image_M, every * pair_M], targets.boxes_BN4[image_M, target_M], count)
    if prediction.points_BQK2 is not None:
        losses |= _point_losses(prediction.points_BQK2[image_M, pair_M], targets, image_M, target_M, count)
    return losses


def objective(
    output: TrainOutput,
    targets: Targets,
    denoising: Denoising | None,
    weights: LossWeights,
    count: float,
) -> tuple[Tensor, dict[str, float]]:
    """Sum the losses of all layers.

    Args:
        count: mean number of targets per process, at least 1 (n in XPOSE.md 10.3).
    Returns:
        The total, and the values for the log: the losses of the last layer by name, and sums of the others.
    """
    valid_BC = output.encoded.object_valid_BC
    total, log = torch.zeros(()), dict[str, float]()
    parts = [("encoder", output.encoder), *((f"layer{i}", layer) for i, layer in enumerate(output.layers))]
    for name, prediction in parts:
        score = group_losses if weights.scored_groups and prediction.points_BQK2 is not None else layer_losses
        losses = score(prediction, targets, valid_BC, weights.costs, count)
        weighted = sum((getattr(weights, key) * value for key, value in losses.items()), torch.zeros(()))
        total = total + weighted
        log[name] = float(weighted.detach())
    log |= {f"last/{key}": float(value.detach()) for key, value in losses.items()}
    if denoising is not None:
        noisy_total = torch.zeros(())
        noisy_count = max(1.0, float(denoising.valid_B.sum()) * denoising.pairs)
        for prediction in output.denoising:
            losses = denoising_losses(prediction, denoising, targets, valid_BC, noisy_count, weights.scored_groups)
            noisy_total = noisy_total + sum(getattr(weights, key) * value for key, value in losses.items())
        total = total + weights.denoising * noisy_total
        log["denoising"] = float(noisy_total.detach())
    log["total"] = float(total.detach())
    return total, log


def weighted_sum(losses: Mapping[str, Tensor], weights: LossWeights) -> tuple[Tensor, dict[str, float]]:
    """Return the sum of the losses outside of layers ("alignment", "crowding", "dense"), and values for the log."""
    total, log = torch.zeros(()), dict[str, float]()
    for name, value in losses.items():
        total = total + getattr(weights, name) * value
        log[name] = float(value.detach())
    return total, {**log, "total": float(total.detach())}
