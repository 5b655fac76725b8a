"""Where a track is while it is not measured.

A keypoint that coasts follows its object's box: it keeps its place in the box while the box moves and changes size. Its
own motion, relative to the box, dies out within a fraction of a second: a hand that moved fast in the last frame stops
near its body. The velocity of a box that is not measured dies out, too, but more slowly.

Legend: M tracks, K keypoints, P = 2 + K points (box centre, box size, keypoints).
"""

from __future__ import annotations

import math

import numpy as np

from trackers.config import CoastingConfig
from trackers.types import Floats

_CENTRE, _SIZE, _FIRST_KEYPOINT = 0, 1, 2
_FASTEST_GROWTH = 2.0  # of a box, in sizes/s: a tiny box (one keypoint in sight) says nothing about its object's growth
_GROWTH_LIMIT = (0.5, 2.0)  # a box may shrink or grow by at most these factors over one prediction


def coast(
    position_MP2: Floats, velocity_MP2: Floats, certainty_MK: Floats, time_s: float, config: CoastingConfig
) -> tuple[Floats, Floats]:
    """Predict points that are not measured: boxes at constant velocity, keypoints with them.

    Args:
        position_MP2: px.
        velocity_MP2: px/s.
        certainty_MK: share (0..1) of a keypoint's own motion that is believed; see `certainty`.
        time_s: how far ahead.
    Returns:
        position_MP2 and velocity_MP2 after that time.
    """
    own_decay = math.exp(-time_s / config.own_motion_s)
    own_time_s = config.own_motion_s * (1.0 - own_decay)
    position, velocity = np.empty_like(position_MP2), velocity_MP2.copy()
    position[:, _CENTRE] = position_MP2[:, _CENTRE] + time_s * velocity_MP2[:, _CENTRE]
    ratio_M2 = np.clip(1.0 + time_s * _growth(position_MP2, velocity_MP2), *_GROWTH_LIMIT)
    position[:, _SIZE] = position_MP2[:, _SIZE] * ratio_M2
    own_MK2 = certainty_MK[..., None] * own_motion(position_MP2, velocity_MP2)
    place_MK2 = (position_MP2[:, _FIRST_KEYPOINT:] - position_MP2[:, None, _CENTRE]) * ratio_M2[:, None]
    position[:, _FIRST_KEYPOINT:] = position[:, None, _CENTRE] + place_MK2 + own_time_s * own_MK2
    spread_MK2 = place_MK2 * _growth(position, velocity)[:, None]
    velocity[:, _FIRST_KEYPOINT:] = velocity[:, None, _CENTRE] + spread_MK2 + own_decay * own_MK2
    return position, velocity


def settle(
    position_MP2: Floats, velocity_MP2: Floats, unseen_s_M: Floats, config: CoastingConfig
) -> tuple[Floats, Floats]:
    """Bring boxes to rest that moved at constant velocity since they were measured, and their keypoints with them.

    Association keeps the constant velocity: it finds people again that walked on behind something. A prediction that
    somebody acts on is better when the velocity dies out.

    Args:
        position_MP2, velocity_MP2: from `coast`.
        unseen_s_M: time since the box was measured.
    """
    decay_M1 = np.exp(-unseen_s_M / config.box_motion_s)[:, None]
    excess_s_M1 = unseen_s_M[:, None] - config.box_motion_s * (1.0 - decay_M1)
    position, velocity = np.empty_like(position_MP2), velocity_MP2.copy()
    position[:, _CENTRE] = position_MP2[:, _CENTRE] - excess_s_M1 * velocity_MP2[:, _CENTRE]
    ratio_M2 = np.clip(1.0 - excess_s_M1 * _growth(position_MP2, velocity_MP2), *_GROWTH_LIMIT)
    position[:, _SIZE] = position_MP2[:, _SIZE] * ratio_M2
    place_MK2 = (position_MP2[:, _FIRST_KEYPOINT:] - position_MP2[:, None, _CENTRE]) * ratio_M2[:, None]
    position[:, _FIRST_KEYPOINT:] = position[:, None, _CENTRE] + place_MK2
    velocity[:, :_FIRST_KEYPOINT] *= decay_M1[..., None]
    lost_M12 = (1.0 - decay_M1[..., None]) * velocity_MP2[:, None, _CENTRE]
    velocity[:, _FIRST_KEYPOINT:] -= lost_M12
    return position, velocity


def own_motion(position_MP2: Floats, velocity_MP2: Floats) -> Floats:
    """Velocities of keypoints relative to their box, px/s."""
    place_MK2 = position_MP2[:, _FIRST_KEYPOINT:] - position_MP2[:, None, _CENTRE]
    carried_MK2 = velocity_MP2[:, None, _CENTRE] + place_MK2 * _growth(position_MP2, velocity_MP2)[:, None]
    return np.asarray(velocity_MP2[:, _FIRST_KEYPOINT:] - carried_MK2)


def _growth(position_MP2: Floats, velocity_MP2: Floats) -> Floats:
    """Growth of the boxes, in sizes/s."""
    rate_M2 = velocity_MP2[:, _SIZE] / position_MP2[:, _SIZE]
    return np.clip(rate_M2, -_FASTEST_GROWTH, _FASTEST_GROWTH)


def certainty(position_MP2: Floats, velocity_MP2: Floats, variance_MK: Floats, config: CoastingConfig) -> Floats:
    """The share of a measured keypoint's own motion that is believed: little where it may be noise.

    Positive-part James-Stein shrinkage by the variance of the velocity, `variance_MK` in px²/s².
    """
    own_MK2 = own_motion(position_MP2, velocity_MP2)
    squared_MK = np.einsum("mka,mka->mk", own_MK2, own_MK2)
    return np.asarray(np.maximum(1.0 - 2.0 * config.doubt * variance_MK / np.maximum(squared_MK, 1e-12), 0.0))
