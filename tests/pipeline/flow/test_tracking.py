"""The network's scores reach the tracker on its own scale, and come back as they were."""

import numpy as np
import pytest

from pipeline.errors import ConfigError
from pipeline.flow.stages import LineConfig
from pipeline.flow.tracking import ScoreScale


def test_a_sure_detection_of_the_network_is_sure_for_the_tracker() -> None:
    scale = ScoreScale(sure=0.3, tracker_sure=0.7)
    np.testing.assert_allclose(scale.to_tracker(np.array([0.0, 0.3, 1.0], np.float32)), [0, 0.7, 1], atol=1e-6)


def test_scores_keep_their_rank_and_come_back_unchanged() -> None:
    scale = ScoreScale(sure=0.25, tracker_sure=0.7)
    scores = np.linspace(0, 1, 101)
    told = scale.to_tracker(scores.astype(np.float32))
    assert (np.diff(told) > 0).all()
    np.testing.assert_allclose(scale.to_network(told), scores, atol=1e-6)


@pytest.mark.parametrize("score", [0.0, 1.0, -0.2, float("nan")])
def test_impossible_sure_score_is_refused(score: float) -> None:
    with pytest.raises(ConfigError, match="sure_score"):
        LineConfig(sure_score=score)


@pytest.mark.parametrize("score", [-0.1, 1.1, float("nan")])
def test_impossible_doubtful_score_is_refused(score: float) -> None:
    with pytest.raises(ConfigError, match="doubtful_score"):
        LineConfig(doubtful_score=score)
