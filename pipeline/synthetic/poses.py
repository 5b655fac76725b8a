"""Named poses of people. Every random pose starts from one of them."""

from __future__ import annotations

import numpy as np

from pipeline.synthetic.geometry import Floats

ANGLES = (
    *("lean", "sway", "twist", "head_yaw", "head_pitch"),
    *("left_abduct", "left_flex", "left_elbow", "left_turn", "left_thigh", "left_spread", "left_knee"),
    *("right_abduct", "right_flex", "right_elbow", "right_turn", "right_thigh", "right_spread", "right_knee"),
)
"""Joint angles of a pose, in degrees. Flex and thigh swing forward, abduct and spread sideways; lean bends forward."""

_Arm = tuple[float, float, float, float]  # abduct, flex, elbow, turn
_Leg = tuple[float, float, float]  # thigh, spread, knee


def _pose(
    left_arm: _Arm = (12, 0, 15, 0),
    right_arm: _Arm | None = None,
    left_leg: _Leg = (0, 4, 4),
    right_leg: _Leg | None = None,
    lean: float = 0.0,
    sway: float = 0.0,
) -> Floats:
    """Return a pose in the order of `ANGLES`. The right side copies the left one unless it is given."""
    right_arm, right_leg = right_arm or left_arm, right_leg or left_leg
    return np.array([lean, sway, 0.0, 0.0, 0.0, *left_arm, *left_leg, *right_arm, *right_leg], dtype=np.float64)


POSES: dict[str, Floats] = {
    "stand": _pose(),
    "walk": _pose((5, 25, 25, 0), (5, -25, 25, 0), (-20, 3, 12), (28, 3, 15)),
    "run": _pose((10, 50, 90, 0), (10, -40, 90, 0), (-30, 3, 70), (65, 3, 60), lean=15),
    "arms_up": _pose((155, 0, 15, 0), left_leg=(0, 8, 4)),
    "reach": _pose((5, 150, 10, 0), (20, 0, 30, 0)),
    "tee": _pose((88, 0, 8, 0), left_leg=(0, 15, 4)),
    "akimbo": _pose((45, 0, 95, 80), left_leg=(0, 8, 4)),
    "forward": _pose((5, 85, 25, 0)),
    "squat": _pose((5, 80, 20, 0), left_leg=(95, 25, 115), lean=35),
    "sit": _pose((10, 35, 50, 0), left_leg=(88, 10, 88), lean=5),
    "lunge": _pose((30, 0, 15, 0), left_leg=(75, 3, 80), right_leg=(-30, 3, 35), lean=5),
    "kick": _pose((50, 0, 15, 0), (60, 0, 15, 0), (85, 3, 15), (0, 3, 8), lean=-10),
    "side_kick": _pose((60, 0, 60, 0), (70, 0, 60, 0), (0, 75, 8), (0, 5, 4), sway=-20),
    "bow": _pose((5, 80, 15, 0), left_leg=(5, 4, 6), lean=75),
    "jack": _pose((135, 0, 10, 0), left_leg=(0, 30, 4)),
    "tuck": _pose((5, 60, 70, 0), left_leg=(125, 5, 125), lean=45),
    "wave": _pose((75, 0, 100, -90), (12, 0, 20, 0)),
    "hands_on_head": _pose((120, 0, 130, -90)),
}


def draw_pose(rng: np.random.Generator, spread_deg: float = 14.0) -> Floats:
    """Return a random pose in degrees, in the order of `ANGLES`: a named pose, perhaps mirrored, with noise."""
    pose = POSES[list(POSES)[int(rng.integers(len(POSES)))]].copy()
    if rng.random() < 0.5:
        pose = np.concatenate([pose[:5], pose[12:], pose[5:12]])
        pose[1] = -pose[1]
    pose += rng.normal(0.0, spread_deg, len(ANGLES))
    for name in ("left_elbow", "right_elbow", "left_knee", "right_knee"):
        index = ANGLES.index(name)
        pose[index] = np.clip(pose[index], 0.0, 150.0)
    return pose
