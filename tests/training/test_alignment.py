"""Heat maps of the dense alignment: where they peak, and what is not labelled there. Words that stand too close."""

import torch

from tests.training.test_matcher import targets_of
from training.alignment import LEAST_APART, crowding, heat_maps


def test_heat_peaks_in_the_cell_of_the_point_and_in_its_own_row_only() -> None:
    targets = targets_of([[0.25, 0.55, 0.2, 0.2]], [0], slots=1)
    heat_BUS, labelled_BU, blind_BU = heat_maps(targets, torch.tensor([[[1]]]), 3, (10, 10))
    assert divmod(int(heat_BUS[0, 1].argmax()), 10) == (5, 2)
    assert not heat_BUS[0, [0, 2]].any()
    assert labelled_BU.tolist() == [[False, True, False]]
    assert not blind_BU.any()


def test_a_wider_radius_reaches_further() -> None:
    targets = targets_of([[0.5, 0.5, 0.9, 0.9]], [0], slots=1)
    targets = targets._replace(area_BN=torch.tensor([[8100.0]]))
    names = torch.tensor([[[0]]])
    narrow, wide = (heat_maps(targets, names, 1, (10, 10), radius)[0].sum() for radius in (0.06, 0.12))
    assert wide > 2 * narrow


def test_a_point_without_label_makes_its_name_blind_and_gives_no_heat() -> None:
    targets = targets_of([[0.3, 0.3, 0.2, 0.2], [0.7, 0.7, 0.2, 0.2]], [0, 0], slots=1)
    targets = targets._replace(labelled_BNK=torch.tensor([[[False], [True]]]))
    heat_BUS, labelled_BU, blind_BU = heat_maps(targets, torch.tensor([[[0], [0]]]), 1, (10, 10))
    assert heat_BUS[0, 0].reshape(10, 10)[:5, :5].max() < 0.1
    assert (labelled_BU & blind_BU).all()


def test_words_of_a_class_are_parted_where_their_names_differ() -> None:
    words_CKD = torch.tensor([[[0.0], [0.1], [2.0], [2.0], [0.0]], [[0.0], [1.0], [9.0], [9.0], [9.0]]])
    valid_CK = torch.tensor([[True, True, True, True, False], [True, True, False, False, False]])
    name_CK = torch.tensor([[0, 1, 2, 2, 0], [0, 1, 0, 0, 0]])
    short = 2 * (LEAST_APART - 0.1)  # two of six words; the third and fourth bear one name
    torch.testing.assert_close(crowding(words_CKD, valid_CK, name_CK), torch.tensor(short / 6))
    words_CKD[0, 1] = 0.6
    assert crowding(words_CKD, valid_CK, name_CK) == 0


def test_words_that_have_almost_fallen_together_are_still_parted() -> None:
    words_CKD = torch.tensor([[[0.5, 0.5], [0.5, 0.501]]], requires_grad=True)
    for _ in range(20):
        loss = crowding(words_CKD, torch.ones(1, 2, dtype=torch.bool), torch.tensor([[0, 1]]))
        (step_CKD,) = torch.autograd.grad(loss, words_CKD)
        words_CKD = (words_CKD - 0.1 * step_CKD).detach().requires_grad_()
    assert (words_CKD[0, 0] - words_CKD[0, 1]).square().mean().sqrt() > LEAST_APART - 0.1
