"""Losses that align prompts with each other and with the image tokens (XPOSE.md 10.7, which leaves their form open).

* `contrast`: symmetric InfoNCE between the projected text and example vectors of the same class or keypoint name.
* `crowding`: keeps the word vectors of the keypoints of one class apart.
* `name_examples`: trains the image tower to classify marked examples by name.
* `DenseAlignment`: compares every image token with every prompt, as heat maps of keypoints and of object centres. The
  sparse losses reach the backbone only through a few sampled points per query. This loss reaches it from every cell,
  which makes training from scratch feasible. Cells inside an object also predict the displacement to each keypoint.
  Its few parameters are used only in training and are not part of the shipped network.

Legend: B images, N targets or examples, K keypoint slots, C classes, U distinct keypoint names, D channels, S cells of
a level.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from engines.clip import Clip
from engines.xpose import XPose
from engines.xpose.encoder import Encoded
from training.data.stream import Examples
from training.prompts import StepPrompts
from training.targets import Targets

TEMPERATURE = 0.07
HEAT_RADIUS = 0.06  # standard deviation of a keypoint's heat, as a fraction of the square root of the object's area
LEAST_HEAT_CELLS = 0.75  # and at least this many cells
CENTRE_RADIUS = 0.12  # the same for the centre of an object
LEAST_APART = 0.5  # RMS distance over the channels; after `spread_words`, words are 1.4 apart
NEVER = -1e4  # logit of a cell that is ignored
CORE = 0.5  # cells in this central part of a box predict displacements


def contrast(prompts: StepPrompts) -> Tensor:
    """InfoNCE between the modalities, for objects and keypoints. Equal names are positives of each other.

    Source: arXiv:1807.03748, temperature 0.07 as in XPOSE.md 10.7.
    """
    shared = prompts.by_modality
    if len(shared.text_BCD) == 1:
        return torch.zeros(())
    classes = torch.arange(shared.text_BCD.shape[1])
    seen_CK = prompts.keypoint_valid_CK & prompts.marked_CK
    names = prompts.names_CK[seen_CK]
    objects = _info_nce(shared.text_BCD[0], shared.text_BCD[1], classes)
    return objects + _info_nce(shared.keypoints_BCKD[0][seen_CK], shared.keypoints_BCKD[1][seen_CK], names)


def _info_nce(a_ND: Tensor, b_ND: Tensor, name_N: Tensor) -> Tensor:
    same_NN = (name_N[:, None] == name_N[None]).float()
    goal_NN = same_NN / same_NN.sum(1, keepdim=True)
    logits_NN = (
        functional.normalize(a_ND.float(), dim=-1) @ functional.normalize(b_ND.float(), dim=-1).t() / TEMPERATURE
    )
    return (functional.cross_entropy(logits_NN, goal_NN) + functional.cross_entropy(logits_NN.t(), goal_NN)) / 2


def crowding(words_CKD: Tensor, valid_CK: Tensor, name_CK: Tensor) -> Tensor:
    """Penalty for keypoint words that are nearer than `LEAST_APART` to another of their class, averaged over keypoints.

    Some keypoints look alike in images, such as the four wheels of a car. The other losses pull the words of such
    keypoints together, and words that have become equal can never be separated again.
    """
    words_CKD = words_CKD.float()  # before the subtraction: the difference of near words vanishes in bf16
    squared_CKK = (words_CKD[:, :, None] - words_CKD[:, None]).square().mean(-1)
    other_CKK = valid_CK[:, None] & (name_CK[:, :, None] != name_CK[:, None])
    nearest_CK = squared_CKK.masked_fill(~other_CKK, LEAST_APART**2).amin(-1).clamp(min=1e-8).sqrt()
    return functional.relu(LEAST_APART - nearest_CK[valid_CK]).mean()


def name_examples(
    model: XPose, clip: Clip, words: StepPrompts, categories: Sequence[str], examples: Examples
) -> Tensor:
    """Loss between examples and the words of their class and keypoints.

    It is the cross entropy over all names at `TEMPERATURE` plus the mean squared distance divided by the variance of
    the words. The cross entropy separates the names quickly. The distance makes an uncertain vector the mean of its
    candidates, so that the mean of several examples is more certain than one of them.
    """
    shared = words.by_modality
    slots = words.names_CK.shape[1]
    seen_NK = examples.visible_NK[:, :slots]
    objects_N512, points_NK512 = clip.encode_visual_prompt(
        examples.pixels_N3SS, examples.points_NK2[:, :slots], seen_NK, model.pos_proj, model.padding.weight
    )
    class_N = torch.tensor([words.offer.names.index(name) for name in categories])
    text_UD = shared.keypoints_BCKD[0].flatten(0, 1)[_one_slot_per_name(words)]
    points = _tell(model.projection_kpt(points_NK512[seen_NK]), text_UD, words.names_CK[class_N][seen_NK])
    return _tell(model.projection(objects_N512), shared.text_BCD[0], class_N) + 2 * points


def _tell(vector_ND: Tensor, word_UD: Tensor, name_N: Tensor) -> Tensor:
    vector_ND, word_UD = vector_ND.float(), word_UD.float().detach()
    logits_NU = functional.normalize(vector_ND, dim=-1) @ functional.normalize(word_UD, dim=-1).t() / TEMPERATURE
    distance = functional.mse_loss(vector_ND, word_UD[name_N]) / word_UD.var()
    return functional.cross_entropy(logits_NU, name_N) + distance


class DenseAlignment(nn.Module):
    """Heat maps of keypoint names and of classes on the finest levels of the encoder's memory."""

    def __init__(self, dim: int, levels: int = 2) -> None:
        super().__init__()
        self.levels = levels
        self.query = nn.Linear(dim, dim)
        self.bias = nn.Parameter(torch.tensor(-4.0))  # most cells contain no keypoint
        self.object = nn.Linear(dim, dim)
        self.displacement = nn.Linear(dim, 2 * dim)

    def forward(self, encoded: Encoded, prompts: StepPrompts, modality_B: Tensor, targets: Targets) -> Tensor:
        """Spatial cross entropy of the names in the image, plus focal entropy of all offered names.

        The same losses apply to the classes of the objects, because keypoint names do not distinguish classes: a dog
        has an eye too.
        """
        row_U = _one_slot_per_name(prompts)
        contents = prompts.by_modality.keypoints_BCKD.flatten(1, 2)[:, row_U]
        query_BUD = self.query(contents)[modality_B] / math.sqrt(contents.shape[-1])
        offered_BU = _offered_names(prompts)
        names = _name_of_targets(targets, prompts)
        total, start = torch.zeros(()), 0
        for level, (height, width) in enumerate(encoded.geometry.sizes[: self.levels]):
            tokens_BSD = encoded.memory_BND[:, start : start + height * width]
            start += height * width
            logits_BUS = (query_BUD @ tokens_BSD.transpose(1, 2)).float()
            heat_BUS, labelled_BU, blind_BU = heat_maps(targets, names, len(prompts.names), (height, width))
            used_BU = offered_BU & (labelled_BU | ~blind_BU)
            counted_BS = counted_cells(targets, (height, width))
            loss = _spatial_entropy(logits_BUS, heat_BUS, used_BU & labelled_BU, counted_BS)
            loss = loss + _focal_entropy(logits_BUS + self.bias, heat_BUS, used_BU, counted_BS)
            offered_BC = prompts.offer.object_valid_BC
            loss = loss + self._centres(tokens_BSD, encoded, targets, offered_BC, (height, width), counted_BS)
            total = total + loss / 2**level
        return total + self._displacements(encoded, prompts, modality_B, targets)

    def _centres(
        self,
        tokens_BSD: Tensor,
        encoded: Encoded,
        targets: Targets,
        offered_BC: Tensor,
        size: tuple[int, int],
        counted_BS: Tensor,
    ) -> Tensor:
        classes = offered_BC.shape[1]
        logits_BCS = (encoded.text_BCD @ self.object(tokens_BSD).transpose(1, 2)).float()
        logits_BCS = logits_BCS / math.sqrt(tokens_BSD.shape[-1])
        label_BN1 = targets.label_BN.masked_fill(~targets.valid_BN, classes)[..., None]
        centres = targets._replace(
            points_BNK2=targets.boxes_BN4[:, :, None, :2], labelled_BNK=targets.valid_BN[..., None]
        )
        heat_BCS, held_BC, _ = heat_maps(centres, label_BN1, classes, size, CENTRE_RADIUS)
        if not held_BC.any():
            return torch.zeros(())
        share = offered_BC.sum() / held_BC.sum()
        absent = _focal_entropy(logits_BCS + self.bias, heat_BCS, offered_BC, counted_BS) * share
        return _spatial_entropy(logits_BCS, heat_BCS, held_BC, counted_BS) + absent

    def _displacements(self, encoded: Encoded, prompts: StepPrompts, modality_B: Tensor, targets: Targets) -> Tensor:
        """L1 error of the keypoint positions predicted by cells inside an object, in units of the object's size."""
        cells_S2 = encoded.geometry.reference_BNL2[0, :, 0]
        boxes_BN14 = targets.boxes_BN4[:, :, None]
        inside_BNS = ((cells_S2 - boxes_BN14[..., :2]).abs() < boxes_BN14[..., 2:] * CORE / 2).all(-1)
        first = encoded.geometry.sizes[0][0] * encoded.geometry.sizes[0][1]
        inside_BNS = inside_BNS & targets.valid_BN[..., None] & (torch.arange(len(cells_S2)) >= first)
        image_M, target_M, cell_M = torch.nonzero(inside_BNS, as_tuple=True)
        if not len(image_M):
            return torch.zeros(())
        label_M = targets.label_BN[image_M, target_M]
        axes_RCKE = self.displacement(prompts.by_modality.keypoints_BCKD) / math.sqrt(self.query.in_features)
        axes_MK2D = axes_RCKE[modality_B[image_M], label_M].unflatten(-1, (2, -1))
        said_MK2 = (axes_MK2D @ encoded.memory_BND[image_M, cell_M][:, None, :, None])[..., 0].float()
        sides_M12 = targets.boxes_BN4[image_M, target_M, 2:].amax(-1)[:, None, None]
        true_MK2 = (targets.points_BNK2[image_M, target_M] - cells_S2[cell_M][:, None]) / sides_M12
        weight_MK1 = targets.labelled_BNK[image_M, target_M][..., None]
        distance: Tensor = ((said_MK2 - true_MK2).abs() * weight_MK1).sum()
        return distance / weight_MK1.sum().clamp(min=1)


def _one_slot_per_name(prompts: StepPrompts) -> Tensor:
    """Return, for each name, the row of one slot with that name in the flattened [C * K] table."""
    flat = prompts.names_CK.masked_fill(~prompts.keypoint_valid_CK, len(prompts.names)).flatten()
    row_U = torch.empty(len(prompts.names) + 1, dtype=torch.int64)
    row_U[flat] = torch.arange(len(flat))
    return row_U[:-1]


def _offered_names(prompts: StepPrompts) -> Tensor:
    """Return which names belong to the classes offered to each image: bool [B, U]."""
    has_CU = torch.zeros(len(prompts.names_CK), len(prompts.names), dtype=torch.bool)
    has_CU.scatter_(1, prompts.names_CK, prompts.keypoint_valid_CK)
    for c, valid_K in enumerate(prompts.keypoint_valid_CK):  # spare slots point at name 0, so real slots are set last
        has_CU[c] = False
        has_CU[c, prompts.names_CK[c, valid_K]] = True
    return (prompts.offer.object_valid_BC[:, :, None] & has_CU).any(1)


def _name_of_targets(targets: Targets, prompts: StepPrompts) -> Tensor:
    """Return the name of each slot of each target, [B, N, K] int64; U for spare slots and padded targets."""
    real_BNK = targets.keypoint_valid_CK[targets.label_BN] & targets.valid_BN[..., None]
    return prompts.names_CK[targets.label_BN].masked_fill(~real_BNK, len(prompts.names))


def heat_maps(
    targets: Targets, name_BNK: Tensor, names: int, size: tuple[int, int], radius: float = HEAT_RADIUS
) -> tuple[Tensor, Tensor, Tensor]:
    """Return Gaussians at the labelled keypoints, one map per name.

    Returns:
        heat_BUS in 0..1; labelled_BU: a target has a label for the name; blind_BU: a target has the name without a
            label.
    """
    height, width = size
    image_height, image_width = targets.size_hw
    scale_2 = torch.tensor([image_width, image_height])
    deviation_BN = (radius * targets.area_BN.sqrt()).clamp(min=LEAST_HEAT_CELLS * image_height / height)
    points_BNK2 = targets.points_BNK2 * scale_2 / deviation_BN[..., None, None]
    column_W = (torch.arange(width) + 0.5) * (image_width / width)
    row_H = (torch.arange(height) + 0.5) * (image_height / height)
    across = (column_W / deviation_BN[..., None])[:, :, None] - points_BNK2[..., :1]
    down = (row_H / deviation_BN[..., None])[:, :, None] - points_BNK2[..., 1:]
    heat = torch.exp(-down.square() / 2)[..., None] * torch.exp(-across.square() / 2)[..., None, :]
    heat = (heat * targets.labelled_BNK[..., None, None]).flatten(3).flatten(1, 2)
    index = name_BNK.flatten(1)
    heat_BUS = torch.zeros(len(heat), names + 1, height * width)
    heat_BUS.scatter_reduce_(1, index[..., None].expand_as(heat), heat, "amax")
    labelled = torch.zeros(len(heat), names + 1).scatter_reduce_(
        1, index, targets.labelled_BNK.flatten(1).float(), "amax"
    )
    blind = torch.zeros(len(heat), names + 1).scatter_reduce_(
        1, index, (~targets.labelled_BNK).flatten(1).float(), "amax"
    )
    return heat_BUS[:, :names], labelled[:, :names] > 0, blind[:, :names] > 0


def counted_cells(targets: Targets, size: tuple[int, int]) -> Tensor:
    """Return the cells that count, bool [B, S]: all except those in an ignore region and outside labelled objects."""
    height, width = size
    y_H, x_W = (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width
    cell_S2 = torch.stack([x_W.expand(height, -1), y_H[:, None].expand(-1, width)], -1).flatten(0, 1)

    def inside(boxes_BX4: Tensor) -> Tensor:
        away_BXS2 = (cell_S2 - boxes_BX4[:, :, None, :2]).abs()
        return (away_BXS2 < boxes_BX4[:, :, None, 2:] / 2).all(-1)

    labelled_BS = (inside(targets.boxes_BN4) & targets.valid_BN[..., None]).any(1)
    return labelled_BS | ~inside(targets.ignore_BR4).any(1)


def _spatial_entropy(logits_BUS: Tensor, heat_BUS: Tensor, used_BU: Tensor, counted_BS: Tensor) -> Tensor:
    """Divergence of the softmax over counted cells from the normalised heat; 0 without labels."""
    if not used_BU.any():
        return torch.zeros(())
    counted = counted_BS[:, None].expand_as(heat_BUS)[used_BU]
    goal = heat_BUS[used_BU] * counted
    goal = goal / goal.sum(-1, keepdim=True).clamp(min=1e-6)
    logits = logits_BUS[used_BU].masked_fill(~counted, NEVER)
    return functional.kl_div(logits.log_softmax(-1), goal, reduction="sum") / len(goal)


def _focal_entropy(logits_BUS: Tensor, heat_BUS: Tensor, used_BU: Tensor, counted_BS: Tensor) -> Tensor:
    """Quality focal loss (arXiv:2006.04388), summed over counted cells and averaged over names."""
    if not used_BU.any():
        return torch.zeros(())
    logits, heat = logits_BUS[used_BU], heat_BUS[used_BU]
    entropy = functional.binary_cross_entropy_with_logits(logits, heat, reduction="none")
    error = (logits.sigmoid() - heat).square() * entropy * counted_BS[:, None].expand_as(heat_BUS)[used_BU]
    return error.sum() / len(logits)
