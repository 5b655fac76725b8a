"""The scores of a model reach the tracker on its own scale, and come back as they were."""

import numpy as np

from engines.scores import ScoreScale


def test_a_sure_detection_of_the_model_is_sure_for_the_tracker() -> None:
    scale = ScoreScale(sure=0.3, tracker_sure=0.7)
    np.testing.assert_allclose(scale.to_tracker(np.array([0.0, 0.3, 1.0], np.float32)), [0, 0.7, 1], atol=1e-6)


def test_scores_keep_their_rank_and_come_back_unchanged() -> None:
    scale = ScoreScale(sure=0.25, tracker_sure=0.7)
    scores = np.linspace(0, 1, 101)
    told = scale.to_tracker(scores.astype(np.float32))
    assert (np.diff(told) > 0).all()
    np.testing.assert_allclose(scale.to_model(told), scores, atol=1e-6)
