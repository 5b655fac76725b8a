"""Hands with the 21 OneHand10K keypoints: left or right, palm or back, with any of the fingers curled."""

from __future__ import annotations

import math

import numpy as np

from pipeline.synthetic.figure import Colour, Figure, Part, draw_colour, shaded
from pipeline.synthetic.geometry import Floats, View, capsule, hull
from pipeline.synthetic.people import SKIN_TONES

# For each finger of a right hand seen from its back (thumb at -x): root (x, y), spread in degrees, segment lengths.
_FINGERS: tuple[tuple[str, tuple[float, float], float, tuple[float, float, float]], ...] = (
    ("thumb", (-0.13, 0.22), -48.0, (0.16, 0.13, 0.11)),
    ("forefinger", (-0.13, -0.05), -9.0, (0.20, 0.12, 0.09)),
    ("middle", (-0.03, -0.08), -1.0, (0.22, 0.14, 0.10)),
    ("ring", (0.07, -0.05), 6.0, (0.20, 0.13, 0.09)),
    ("pinky", (0.16, 0.01), 15.0, (0.15, 0.10, 0.08)),
)
_FINGER_RADIUS = 0.042
_WRIST_Y = 0.36


class Hand:
    """One hand; see `pipeline.synthetic.figure.Model`. Fingers point up at zero angles."""

    yaw_range_deg = (-180.0, 180.0)
    pitch_range_deg = (-35.0, 35.0)
    max_roll_deg = 120.0

    def __init__(self, rng: np.random.Generator) -> None:
        self._side = 1.0 if rng.random() < 0.5 else -1.0
        self._skin: Colour = shaded(SKIN_TONES[int(rng.integers(len(SKIN_TONES)))], rng.uniform(0.85, 1.1))
        self._thick = rng.uniform(0.85, 1.2)
        self._length = rng.uniform(0.9, 1.12)
        self._sleeve = draw_colour(rng) if rng.random() < 0.5 else self._skin
        closed = rng.random() < 0.25
        open_hand = rng.random() < 0.35
        low, high = (60.0, 90.0) if closed else ((0.0, 15.0) if open_hand else (0.0, 80.0))
        self._curl_deg = rng.uniform(low, high, 5)
        self._spread = rng.uniform(0.5, 1.7)
        self._motion_deg = rng.uniform(0.0, 25.0, 5)
        self._motion_hz = rng.uniform(0.2, 0.7, 5)
        self._motion_phase = rng.uniform(0.0, 2.0 * math.pi, 5)
        self._light = rng.uniform(-0.4, 0.4, 2)

    def _points(self, time_s: float) -> Floats:
        """Return [23, 3]: wrist, four points for each finger, then the two ends of the forearm."""
        sway = self._motion_deg * np.sin(2.0 * math.pi * self._motion_hz * time_s + self._motion_phase)
        curl_5 = np.radians(np.clip(self._curl_deg + sway, 0.0, 95.0))
        points = [np.array([0.0, _WRIST_Y, 0.0])]
        for number, (name, root, spread_deg, lengths) in enumerate(_FINGERS):
            spread = math.radians(spread_deg * self._spread)
            position = np.array([root[0], root[1], 0.0])
            points.append(position)
            bend = curl_5[number] * (0.45 if name == "thumb" else 1.0)
            turn = bend * 0.5
            for length in lengths:
                up = math.cos(turn) * length * self._length
                position = position + np.array(
                    [math.sin(spread) * up, -math.cos(spread) * up, -math.sin(turn) * length]
                )
                points.append(position)
                turn += bend * 0.8
        points += [np.array([0.0, _WRIST_Y + 0.05, 0.0]), np.array([0.0, _WRIST_Y + 0.28, 0.02])]
        joined = np.stack(points)
        joined[:, 0] *= self._side
        centred: Floats = joined - np.array([0.0, 0.05, 0.0])
        return centred

    def figure(self, view: View, time_s: float) -> Figure:
        pixels_N2, depth_N = view.project(self._points(time_s))
        radius = _FINGER_RADIUS * self._thick * view.scale_px
        palm_points = pixels_N2[[0, 1, 5, 9, 13, 17]]
        palm = Part(
            "palm",
            hull(palm_points, [radius * 1.9, *[radius * 1.15] * 5]),
            shaded(self._skin, 0.92),
            float(depth_N[[0, 5, 17]].mean()),
        )
        palm.marks.append(
            (
                hull(palm_points[1:] * 0.7 + palm_points.mean(0) * 0.3 + self._light * radius, [radius * 0.6] * 5),
                shaded(self._skin, 1.03),
            )
        )
        arm = Part(
            "forearm",
            capsule(pixels_N2[21], pixels_N2[22], radius * 2.0, radius * 2.3),
            self._sleeve,
            palm.depth - 0.05,
        )
        parts = [palm, arm]
        hosts: list[tuple[str, ...]] = [("palm", "forearm")]
        for number, (name, *_) in enumerate(_FINGERS):
            for joint in range(3):
                start = 1 + number * 4 + joint
                parts.append(self._segment(f"{name}_{joint}", pixels_N2, start, radius * (1.1 - 0.12 * joint), depth_N))
            hosts += [(f"{name}_0", "palm"), (f"{name}_0", f"{name}_1"), (f"{name}_1", f"{name}_2"), (f"{name}_2",)]
        parts.sort(key=lambda part: part.depth)
        return Figure(parts, pixels_N2[:21], hosts, np.ones(21, dtype=bool))

    def _segment(self, name: str, pixels_N2: Floats, start: int, radius: float, depth_N: Floats) -> Part:
        first, second = pixels_N2[start], pixels_N2[start + 1]
        depth = float(depth_N[start] + depth_N[start + 1]) / 2 + 0.02 * (
            1 if depth_N[start + 1] >= depth_N[start] else -1
        )
        part = Part(name, capsule(first, second, radius * 1.12, radius * 0.98), shaded(self._skin, 0.74), depth)
        part.marks.append((capsule(first, second, radius * 0.92, radius * 0.8), shaded(self._skin, 0.98)))
        light = self._light * radius
        part.marks.append(
            (capsule(first + light, second + light, radius * 0.35, radius * 0.3), shaded(self._skin, 1.08))
        )
        return part
