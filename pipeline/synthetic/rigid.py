"""Rigid figures: tables and chairs (Keypoint-5 names) and cars (CarFusion names). Each face is painted on its own."""

from __future__ import annotations

import math

import numpy as np

from pipeline.synthetic.figure import Colour, Figure, Part, draw_colour, draw_pattern, shaded
from pipeline.synthetic.geometry import Floats, View, capsule, circle

_WOOD: tuple[Colour, ...] = (
    (150, 105, 62),
    (110, 72, 42),
    (196, 152, 104),
    (84, 54, 34),
    (222, 200, 165),
    (230, 230, 228),
    (48, 46, 46),
)

# Corners of a box by the signs of (x, y, z), and its faces by corner numbers; each face is oriented outwards.
_CORNERS_8x3 = np.array(
    [[-1, -1, -1], [1, -1, -1], [1, -1, 1], [-1, -1, 1], [-1, 1, -1], [1, 1, -1], [1, 1, 1], [-1, 1, 1]], dtype=float
)
_FACES: dict[str, tuple[int, int, int, int]] = {
    "top": (0, 1, 2, 3),
    "bottom": (7, 6, 5, 4),
    "near": (3, 2, 6, 7),
    "far": (1, 0, 4, 5),
    "right": (0, 3, 7, 4),
    "left": (2, 1, 5, 6),
}
_SHADE = {"top": 1.08, "bottom": 0.5, "near": 0.92, "far": 0.8, "right": 0.7, "left": 0.84}


def box_parts(
    name: str, view: View, centre_3: Floats, half_3: Floats, colour: Colour, depth_bias: float = 0.0
) -> list[Part]:
    """Return the faces of a box that face the camera, named `name.face`. All have the depth of its centre."""
    pixels_82, _ = view.project(centre_3 + _CORNERS_8x3 * half_3)
    depth = float((view.rotation_33 @ centre_3)[2]) + depth_bias
    parts = []
    for face, corners in _FACES.items():
        outline = pixels_82[list(corners)]
        if _signed_area(outline) > 0.0:
            parts.append(Part(f"{name}.{face}", outline, shaded(colour, _SHADE[face]), depth))
    return parts


def _signed_area(outline_N2: Floats) -> float:
    x, y = outline_N2[:, 0], outline_N2[:, 1]
    return float(x[:-1] @ y[1:] - y[:-1] @ x[1:] + x[-1] * y[0] - y[-1] * x[0])


def _faces_of(name: str) -> tuple[str, ...]:
    return tuple(f"{name}.{face}" for face in _FACES)


class Table:
    """One table; see `pipeline.synthetic.figure.Model`.

    Corners are numbered as the camera sees them: 1 far left, 2 far right, 3 near right, 4 near left. Legs have the same
    numbers. The yaw stays within 40 degrees, so that this order never changes.
    """

    yaw_range_deg = (-40.0, 40.0)
    pitch_range_deg = (8.0, 38.0)
    max_roll_deg = 8.0

    def __init__(self, rng: np.random.Generator) -> None:
        self._half_3 = np.array([rng.uniform(0.34, 0.5), rng.uniform(0.01, 0.03), rng.uniform(0.2, 0.36)])
        self._height = rng.uniform(0.3, 0.5)
        self._leg = rng.uniform(0.014, 0.035)
        self._inset = rng.uniform(0.82, 0.97)
        self._top = shaded(_WOOD[int(rng.integers(len(_WOOD)))], rng.uniform(0.85, 1.15))
        self._legs = self._top if rng.random() < 0.6 else draw_colour(rng, (0.0, 0.3))
        self._cloth = draw_pattern(rng) if rng.random() < 0.15 else None

    def figure(self, view: View, time_s: float) -> Figure:
        lift, parts = -self._height / 2, []
        corner_signs = np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
        corners = np.stack(
            [np.array([x * self._half_3[0], lift - self._half_3[1], z * self._half_3[2]]) for x, z in corner_signs]
        )
        feet = np.stack([np.array([c[0] * self._inset, lift + self._height, c[2] * self._inset]) for c in corners])
        for number, foot in enumerate(feet, start=1):
            half_3 = np.array([self._leg, self._height / 2, self._leg])
            parts += box_parts(f"leg{number}", view, foot - np.array([0.0, self._height / 2, 0.0]), half_3, self._legs)
        parts.sort(key=lambda part: part.depth)
        slab = box_parts("slab", view, np.array([0.0, lift, 0.0]), self._half_3, self._top)
        for part in slab:
            if part.name == "slab.top":
                part.pattern = self._cloth.scaled(view.scale_px) if self._cloth is not None else None
                part.marks.append((part.outline_N2 * 0.9 + part.outline_N2.mean(0) * 0.1, shaded(self._top, 1.14)))
        keypoints_82, _ = view.project(np.concatenate([corners, feet]))
        hosts = [_faces_of("slab")] * 4 + [_faces_of(f"leg{number}") for number in (1, 2, 3, 4)]
        return Figure([*parts, *slab], keypoints_82, hosts, np.ones(8, dtype=bool))


class Chair:
    """One chair; see `pipeline.synthetic.figure.Model`.

    Right and left are those of a person who sits on it. "top" corners are at the backrest, "bottom" corners in front.
    """

    yaw_range_deg = (-180.0, 180.0)
    pitch_range_deg = (5.0, 35.0)
    max_roll_deg = 10.0

    def __init__(self, rng: np.random.Generator) -> None:
        self._width, self._deep = rng.uniform(0.17, 0.24), rng.uniform(0.17, 0.23)
        self._seat = rng.uniform(0.015, 0.045)
        self._height = rng.uniform(0.36, 0.46)
        self._back = rng.uniform(0.38, 0.56)
        self._leg = rng.uniform(0.014, 0.03)
        self._slats = bool(rng.random() < 0.4)
        self._frame = shaded(_WOOD[int(rng.integers(len(_WOOD)))], rng.uniform(0.85, 1.15))
        self._cushion = self._frame if rng.random() < 0.5 else draw_colour(rng)

    def figure(self, view: View, time_s: float) -> Figure:
        floor = 0.5
        seat_y = floor - self._height
        ends = {"righttop": (-1.0, -1.0), "lefttop": (1.0, -1.0), "leftbottom": (1.0, 1.0), "rightbottom": (-1.0, 1.0)}
        feet = {end: np.array([x * self._width, floor, z * self._deep]) for end, (x, z) in ends.items()}
        legs: list[Part] = []
        for end, foot in feet.items():
            half_3 = np.array([self._leg, self._height / 2, self._leg])
            legs += box_parts(
                f"leg_{end}", view, foot * [0.93, 1, 0.93] - np.array([0.0, self._height / 2, 0.0]), half_3, self._frame
            )
        legs.sort(key=lambda part: part.depth)
        seat_half_3 = np.array([self._width, self._seat, self._deep])
        seat = box_parts("seat", view, np.array([0.0, seat_y, 0.0]), seat_half_3, self._cushion)
        back_half_3 = np.array([self._width, self._back / 2, 0.018])
        back_centre_3 = np.array([0.0, seat_y - self._back / 2, -self._deep])
        back = box_parts("back", view, back_centre_3, back_half_3, self._frame)
        for part in back:
            if part.name in ("back.near", "back.far"):
                part.marks += self._back_marks(part)
        upper = sorted(seat + back, key=lambda part: part.depth)
        points = [feet[end] * [0.93, 1, 0.93] for end in ("righttop", "lefttop", "leftbottom", "rightbottom")]
        points += [np.array([x * self._width, seat_y - self._seat, z * self._deep]) for x, z in ends.values()]
        points += [np.array([x * self._width, seat_y - self._back, -self._deep]) for x in (-1.0, 1.0)]
        keypoints_K2, _ = view.project(np.stack(points))
        joint = _faces_of("seat")
        hosts = (
            [_faces_of(f"leg_{end}") for end in ends]
            + [joint + _faces_of("back")] * 2
            + [joint] * 2
            + [_faces_of("back")] * 2
        )
        return Figure([*legs, *upper], keypoints_K2, hosts, np.ones(10, dtype=bool))

    def _back_marks(self, part: Part) -> list[tuple[Floats, Colour]]:
        top_left, top_right, low_right, low_left = part.outline_N2
        if not self._slats:
            return [(part.outline_N2 * 0.8 + part.outline_N2.mean(0) * 0.2, self._cushion)]
        marks = []
        for across in (0.25, 0.5, 0.75):
            top, low = top_left + (top_right - top_left) * across, low_left + (low_right - low_left) * across
            width = float(np.linalg.norm(top_right - top_left)) * 0.04
            marks.append((capsule(top * 0.9 + low * 0.1, low, width, width), shaded(self._frame, 0.5)))
        return marks


class Car:
    """One car; see `pipeline.synthetic.figure.Model`. It drives along +z. Right and left are those of the driver."""

    yaw_range_deg = (-180.0, 180.0)
    pitch_range_deg = (2.0, 30.0)
    max_roll_deg = 8.0

    def __init__(self, rng: np.random.Generator) -> None:
        self._width, self._half = rng.uniform(0.18, 0.22), rng.uniform(0.44, 0.5)
        self._body, self._cabin = rng.uniform(0.085, 0.12), rng.uniform(0.12, 0.19)
        self._wheel = rng.uniform(0.07, 0.095)
        self._windscreen, self._hood = rng.uniform(0.05, 0.16), rng.uniform(0.12, 0.2)
        self._tail, self._rear = rng.uniform(0.02, 0.12), rng.uniform(0.02, 0.12)
        self._paint = draw_colour(rng)
        self._glass = shaded((70.0, 85.0, 98.0), rng.uniform(0.5, 1.6))

    def _points(self) -> dict[str, Floats]:
        """Return named 3-D points. The sill is at y = 0; the wheels reach below it."""
        points: dict[str, Floats] = {}
        front, back = self._half, -self._half
        roof_front, roof_back = front - self._hood - self._windscreen, back + self._tail + self._rear
        low, belt, roof = 0.06, 0.06 - 2 * self._body, 0.06 - 2 * self._body - self._cabin
        for side, sign in (("right", -1.0), ("left", 1.0)):
            x, narrow = sign * self._width, sign * self._width * 0.84
            points |= {
                f"front_low_{side}": np.array([x, low, front]),
                f"front_belt_{side}": np.array([x, belt + 0.03, front]),
                f"back_low_{side}": np.array([x, low, back]),
                f"back_belt_{side}": np.array([x, belt, back]),
                f"hood_{side}": np.array([x, belt, front - self._hood]),
                f"boot_{side}": np.array([x, belt, back + self._tail]),
                f"roof_front_{side}": np.array([narrow, roof, roof_front]),
                f"roof_back_{side}": np.array([narrow, roof, roof_back]),
                f"wheel_front_{side}": np.array([x * 1.02, low + 0.01, front - 0.17]),
                f"wheel_back_{side}": np.array([x * 1.02, low + 0.01, back + 0.17]),
            }
        return points

    def figure(self, view: View, time_s: float) -> Figure:
        points = self._points()
        pixels_N2, _ = view.project(np.stack(list(points.values())))
        at = dict(zip(points, pixels_N2, strict=True))
        parts = self._panels(points, at)
        wheels = {
            f"wheel_{end}_{side}": self._wheel_part(f"wheel_{end}_{side}", points, view)
            for end in ("front", "back")
            for side in ("right", "left")
        }
        shown = {part.name for part in parts}
        near_side = {side: f"body_{side}" in shown for side in ("right", "left")}
        far = [part for name, part in wheels.items() if not near_side[name.rsplit("_", 1)[1]]]
        near = [part for name, part in wheels.items() if near_side[name.rsplit("_", 1)[1]]]
        nowhere = np.zeros(2)
        keypoints = [
            at["wheel_front_right"],
            at["wheel_front_left"],
            at["wheel_back_right"],
            at["wheel_back_left"],
            *[
                at[f"{end}_belt_{side}"] * 0.6 + at[f"{end}_low_{side}"] * 0.4
                for end in ("front", "back")
                for side in ("right", "left")
            ],
            nowhere,
            at["roof_front_right"],
            at["roof_front_left"],
            at["roof_back_right"],
            at["roof_back_left"],
            nowhere,
        ]
        hosts: list[tuple[str, ...]] = [
            ("wheel_front_right",),
            ("wheel_front_left",),
            ("wheel_back_right",),
            ("wheel_back_left",),
        ]
        hosts += [(f"body_{end}", f"body_{side}") for end in ("front", "back") for side in ("right", "left")] + [()]
        hosts += [
            ("roof", f"glass_{end}", f"glass_{side}") for end in ("front", "back") for side in ("right", "left")
        ] + [()]
        facing = np.ones(14, dtype=bool)
        facing[:4] = [near_side["right"], near_side["left"], near_side["right"], near_side["left"]]
        return Figure([*far, *parts, *near], np.stack(keypoints), hosts, facing)

    def _panels(self, points: dict[str, Floats], at: dict[str, Floats]) -> list[Part]:
        """Return the panels of body and cabin that face the camera. The cabin is painted first."""
        sides = ("front_low", "front_belt", "hood", "boot", "back_belt", "back_low")
        panels: list[tuple[str, tuple[str, ...], Colour, float]] = [
            ("glass_front", ("hood_right", "roof_front_right", "roof_front_left", "hood_left"), self._glass, 1.0),
            ("glass_back", ("boot_left", "roof_back_left", "roof_back_right", "boot_right"), self._glass, 0.85),
            ("glass_left", ("hood_left", "roof_front_left", "roof_back_left", "boot_left"), self._glass, 0.75),
            ("glass_right", ("boot_right", "roof_back_right", "roof_front_right", "hood_right"), self._glass, 0.75),
            ("roof", ("roof_front_right", "roof_back_right", "roof_back_left", "roof_front_left"), self._paint, 1.15),
            ("hood", ("front_belt_right", "hood_right", "hood_left", "front_belt_left"), self._paint, 1.1),
            ("boot", ("boot_right", "back_belt_right", "back_belt_left", "boot_left"), self._paint, 1.02),
            (
                "body_front",
                ("front_low_right", "front_belt_right", "front_belt_left", "front_low_left"),
                self._paint,
                0.9,
            ),
            ("body_back", ("back_low_left", "back_belt_left", "back_belt_right", "back_low_right"), self._paint, 0.82),
            ("body_left", tuple(f"{name}_left" for name in sides), self._paint, 0.95),
            ("body_right", tuple(f"{name}_right" for name in sides), self._paint, 0.72),
        ]
        middle_3 = np.stack(list(points.values())).mean(0)
        parts = []
        for name, corners, colour, gain in panels:
            outline = np.stack([at[corner] for corner in corners])
            edges = np.stack([points[corner] for corner in corners])
            outwards = float(np.cross(edges[1] - edges[0], edges[2] - edges[1]) @ (edges.mean(0) - middle_3))
            if _signed_area(outline) * outwards > 0.0:
                parts.append(Part(name, outline, shaded(colour, gain), 0.0))
        for part in parts:
            if part.name in ("body_front", "body_back"):
                self._lamps(part)
            if part.name in ("glass_left", "glass_right"):
                low, high = part.outline_N2[[0, 3]].mean(0), part.outline_N2[[1, 2]].mean(0)
                width = float(np.linalg.norm(high - low)) * 0.06
                part.marks.append((capsule(low, high, width, width), shaded(self._paint, 0.8)))
        return parts

    def _lamps(self, part: Part) -> None:
        low_a, high_a, high_b, low_b = part.outline_N2
        radius = float(np.linalg.norm(high_a - low_a)) * 0.17
        colour: Colour = (250.0, 245.0, 215.0) if part.name == "body_front" else (190.0, 25.0, 25.0)
        for first, second in ((0.14, 0.86), (0.86, 0.14)):
            upper, lower = high_a * second + high_b * first, low_a * second + low_b * first
            part.marks.append((circle(upper * 0.65 + lower * 0.35, radius), colour))
        grille = part.outline_N2 * 0.4 + part.outline_N2.mean(0) * 0.6
        part.marks.append((grille, shaded(self._paint, 0.35) if part.name == "body_front" else (225.0, 225.0, 220.0)))

    def _wheel_part(self, name: str, points: dict[str, Floats], view: View) -> Part:
        turns = np.linspace(0.0, 2.0 * math.pi, 16, endpoint=False)
        ring = np.stack([np.zeros(16), np.sin(turns), np.cos(turns)], axis=1)
        tyre, _ = view.project(points[name] + ring * self._wheel)
        rim, _ = view.project(points[name] + ring * self._wheel * 0.55)
        return Part(name, tyre, (28.0, 28.0, 30.0), 0.0, [(rim, (165.0, 165.0, 170.0))])
