"""Four-legged animals with the 17 AP-10K keypoints: dog, cow, horse and zebra.

Axes of an animal: it looks along +z, its left is at +x, and its paws point down (+y).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pipeline.synthetic.figure import Colour, Figure, Part, Pattern, shaded
from pipeline.synthetic.geometry import Floats, View, capsule, circle, hull, rotation


@dataclass(frozen=True)
class Species:
    """Mean proportions in figure units (body plus neck is about 1) and the colours of the coat."""

    body: float
    girth: float
    leg: float
    leg_radius: float
    neck: float
    neck_rise_deg: float
    head: float
    muzzle: float
    tail: float
    tail_lift_deg: float
    ears: str  # "up", "hanging" or "side"
    coats: tuple[Colour, ...]
    mane: bool = False
    horns: bool = False
    pattern: str = ""
    pattern_period: float = 0.1


SPECIES: dict[str, Species] = {
    "dog": Species(
        0.50, 0.125, 0.34, 0.032, 0.16, 48.0, 0.085, 0.13, 0.30, 55.0, "up",
        ((190, 140, 85), (60, 45, 36), (30, 28, 28), (225, 205, 175), (150, 110, 75), (238, 235, 228)),
    ),
    "cow": Species(
        0.64, 0.185, 0.36, 0.042, 0.20, 12.0, 0.095, 0.16, 0.34, -80.0, "side",
        ((235, 230, 222), (120, 70, 42), (35, 30, 28), (190, 150, 110)),
        horns=True, pattern="blotches", pattern_period=0.16,
    ),
    "horse": Species(
        0.54, 0.145, 0.50, 0.034, 0.32, 50.0, 0.075, 0.20, 0.36, -65.0, "up",
        ((110, 60, 34), (70, 42, 28), (40, 32, 30), (170, 120, 78), (205, 200, 195)), mane=True,
    ),
    "zebra": Species(
        0.54, 0.155, 0.42, 0.034, 0.27, 48.0, 0.078, 0.17, 0.30, -70.0, "up",
        ((238, 235, 228),), mane=True, pattern="stripes", pattern_period=0.07,
    ),
}  # fmt: skip

_LEGS = (
    ("left", "front", 1.0, 0.0),
    ("right", "front", -1.0, math.pi),
    ("left", "back", 1.0, math.pi * 0.75),
    ("right", "back", -1.0, math.pi * 1.75),
)
"""For each leg: side, end, sign of x and phase of the gait."""


class Quadruped:
    """One animal; see `pipeline.synthetic.figure.Model`."""

    yaw_range_deg = (-180.0, 180.0)
    pitch_range_deg = (-5.0, 30.0)
    max_roll_deg = 25.0

    def __init__(self, rng: np.random.Generator, species: Species) -> None:
        self._species = species
        self._size = {
            name: rng.uniform(0.85, 1.15) for name in ("body", "girth", "leg", "neck", "head", "muzzle", "tail")
        }
        self._coat = shaded(species.coats[int(rng.integers(len(species.coats)))], rng.uniform(0.8, 1.15))
        self._dark = shaded(self._coat, rng.uniform(0.35, 0.7))
        self._feet = self._coat if rng.random() < 0.6 else (self._dark if rng.random() < 0.5 else (235.0, 230.0, 225.0))
        self._pattern: Pattern | None = None
        if species.pattern and (species.pattern == "stripes" or rng.random() < 0.6):
            print_colour = (28.0, 26.0, 26.0) if sum(self._coat) > 300 else (230.0, 226.0, 220.0)
            period = species.pattern_period * rng.uniform(0.8, 1.25)
            self._pattern = Pattern(
                species.pattern, period, rng.uniform(-0.2, 0.2), print_colour, int(rng.integers(2**31))
            )
        self._stride_deg = rng.uniform(3.0, 34.0)
        self._gait_hz = rng.uniform(0.4, 1.2)
        self._gait_phase = rng.uniform(0.0, 2.0 * math.pi)
        self._leg_phase = rng.normal(0.0, 0.5, 4)
        self._lie = 1.0 if rng.random() < 0.88 else rng.uniform(0.35, 0.6)  # a crouching animal has shorter legs
        self._neck_deg = species.neck_rise_deg + rng.normal(0.0, 16.0)
        self._graze_deg = rng.uniform(0.0, 25.0)
        self._head_yaw_deg = rng.normal(0.0, 25.0)
        self._light = rng.uniform(-0.5, 0.3, 2)

    def _joints(self, time_s: float) -> dict[str, Floats]:
        species, size = self._species, self._size
        half, girth, leg = (
            species.body * size["body"] / 2,
            species.girth * size["girth"],
            species.leg * size["leg"] * self._lie,
        )
        wave = 2.0 * math.pi * self._gait_hz * time_s + self._gait_phase
        chest, rump = np.array([0.0, 0.0, half]), np.array([0.0, -0.01, -half])
        joints = {"chest": chest, "rump": rump, "root_of_tail": rump + np.array([0.0, -girth * 0.62, -girth * 0.55])}
        rise = math.radians(self._neck_deg + self._graze_deg * math.sin(0.3 * wave))
        turn = math.radians(self._head_yaw_deg * math.cos(0.2 * wave))
        ahead = np.array([math.sin(turn) * math.cos(rise), -math.sin(rise), math.cos(turn) * math.cos(rise)])
        withers = chest + np.array([0.0, -girth * 0.55, 0.0])
        poll = withers + ahead * species.neck * size["neck"]
        joints |= {"neck": withers + ahead * 0.25 * species.neck, "poll": poll, "withers": withers}
        look = rotation(turn * 1.3, 0.0, 0.0) @ rotation(0.0, max(-0.2, 0.45 * rise), 0.0).T
        head, muzzle = species.head * size["head"], species.muzzle * size["muzzle"]
        points = {
            "skull": (0.0, 0.0, head * 0.4),
            "nose": (0.0, head * 0.55, head * 0.9 + muzzle),
            "left_eye": (head * 0.62, -head * 0.1, head * 0.95),
            "right_eye": (-head * 0.62, -head * 0.1, head * 0.95),
            "left_ear": (head * 0.6, -head * 0.75, -head * 0.1),
            "right_ear": (-head * 0.6, -head * 0.75, -head * 0.1),
        }
        for name, offset in points.items():
            joints[name] = poll + look @ np.array(offset)
        for side, sign in (("left", 1.0), ("right", -1.0)):
            tip = {"up": (0.25, -0.95, -0.1), "hanging": (0.5, 0.7, 0.0), "side": (1.1, 0.1, -0.2)}[species.ears]
            joints[f"{side}_ear_tip"] = joints[f"{side}_ear"] + look @ (
                np.array([sign * tip[0], tip[1], tip[2]]) * head
            )
            joints[f"{side}_horn_tip"] = joints[f"{side}_ear"] + look @ (np.array([sign * 0.5, -0.95, 0.5]) * head)
        lift = math.radians(species.tail_lift_deg) + 0.25 * math.sin(2.3 * wave)
        tail = species.tail * size["tail"]
        joints["tail_tip"] = joints["root_of_tail"] + tail * np.array(
            [0.3 * math.sin(wave), -math.sin(lift), -math.cos(lift)]
        )
        for number, (side, end, sign, phase) in enumerate(_LEGS):
            top = (chest if end == "front" else rump) + np.array([sign * girth * 0.62, girth * 0.3, 0.0])
            swing = math.radians(self._stride_deg) * math.sin(wave + phase + self._leg_phase[number])
            bend = math.radians(
                12.0 + self._stride_deg * 0.8 * max(0.0, math.cos(wave + phase + self._leg_phase[number]))
            )
            bend = bend if end == "front" else -bend
            upper = np.array([0.0, math.cos(swing - bend * 0.5), math.sin(swing - bend * 0.5)])
            lower = np.array([0.0, math.cos(swing + bend * 0.5), math.sin(swing + bend * 0.5)])
            knee = top + upper * leg * 0.48
            joints |= {
                f"{side}_{end}_top": top,
                f"{side}_{end}_knee": knee,
                f"{side}_{end}_paw": knee + lower * leg * 0.52,
            }
        middle = np.array([0.0, leg * 0.35 - 0.05, 0.08])
        return {name: point - middle for name, point in joints.items()}

    def figure(self, view: View, time_s: float) -> Figure:
        joints = self._joints(time_s)
        pixels_N2, depth_N = view.project(np.stack(list(joints.values())))
        at = dict(zip(joints, pixels_N2, strict=True))
        depth = dict(zip(joints, depth_N.tolist(), strict=True))
        parts = [
            *self._leg_parts(view, at, depth),
            *self._body_parts(view, at, depth),
            *self._head_parts(view, at, depth),
        ]
        parts.sort(key=lambda part: part.depth)
        facing = np.ones(17, dtype=bool)
        facing[0] = depth["left_eye"] - depth["skull"] > -0.15 * self._species.head
        facing[1] = depth["right_eye"] - depth["skull"] > -0.15 * self._species.head
        return Figure(parts, np.stack([at[name] for name, _ in _KEYPOINTS]), [hosts for _, hosts in _KEYPOINTS], facing)

    def _fur(
        self,
        name: str,
        start: Floats,
        end: Floats,
        wide: float,
        narrow: float,
        colour: Colour,
        depth: float,
        view: View,
    ) -> Part:
        part = Part(name, capsule(start, end, wide, narrow), shaded(colour, 0.88), depth)
        light = self._light * wide
        part.marks.append((capsule(start + light, end + light, wide * 0.55, narrow * 0.55), shaded(colour, 1.06)))
        part.pattern = self._pattern.scaled(view.scale_px) if self._pattern is not None else None
        return part

    def _leg_parts(self, view: View, at: dict[str, Floats], depth: dict[str, float]) -> list[Part]:
        radius, parts = self._species.leg_radius * view.scale_px, []
        for side, end, _, _ in _LEGS:
            leg = f"{side}_{end}"
            top, knee, paw = at[f"{leg}_top"], at[f"{leg}_knee"], at[f"{leg}_paw"]
            shade = shaded(self._coat, 0.95)
            nearness = (depth[f"{leg}_top"] + depth[f"{leg}_knee"]) / 2
            heavy = 1.9 if end == "back" else 1.5
            parts.append(self._fur(f"{leg}_upper", top, knee, radius * heavy, radius * 1.05, shade, nearness, view))
            parts.append(
                self._fur(f"{leg}_lower", knee, paw, radius * 0.95, radius * 0.75, shade, nearness - 0.01, view)
            )
            parts[-1].marks.append((capsule(paw * 0.9 + knee * 0.1, paw, radius * 0.75, radius * 0.95), self._feet))
        return parts

    def _body_parts(self, view: View, at: dict[str, Floats], depth: dict[str, float]) -> list[Part]:
        girth = self._species.girth * self._size["girth"] * view.scale_px
        radius = self._species.leg_radius * view.scale_px
        middle = (depth["chest"] + depth["rump"]) / 2
        body = self._fur("body", at["rump"], at["chest"], girth * 0.92, girth, self._coat, middle, view)
        neck = self._fur(
            "neck",
            at["withers"] * 0.7 + at["chest"] * 0.3,
            at["poll"],
            girth * 0.62,
            girth * 0.4,
            self._coat,
            0.0,
            view,
        )
        neck.depth = (depth["withers"] + depth["poll"]) / 2 + 0.02
        if self._species.mane:
            up = np.array([0.0, -girth * 0.3])
            neck.marks.append((capsule(at["withers"] + up, at["poll"] + up, girth * 0.14, girth * 0.16), self._dark))
        tail_depth = depth["root_of_tail"] + (0.02 if depth["rump"] > depth["chest"] else -0.03)
        tail = self._fur(
            "tail",
            at["root_of_tail"],
            at["tail_tip"],
            radius * 0.7,
            radius * (1.0 if self._species.mane else 0.4),
            self._coat,
            tail_depth,
            view,
        )
        if self._species.mane:
            tail.colour, tail.marks, tail.pattern = self._dark, [], None
        return [body, neck, tail]

    def _head_parts(self, view: View, at: dict[str, Floats], depth: dict[str, float]) -> list[Part]:
        head = self._species.head * self._size["head"] * view.scale_px
        skull = self._fur(
            "skull", at["poll"], at["skull"], head * 0.85, head * 0.85, self._coat, depth["skull"] + 0.04, view
        )
        face = self._fur(
            "muzzle", at["skull"], at["nose"], head * 0.72, head * 0.45, self._coat, depth["skull"] + 0.041, view
        )
        face.marks.append(
            (
                capsule(at["nose"] * 0.75 + at["skull"] * 0.25, at["nose"], head * 0.36, head * 0.4),
                shaded(self._coat, 0.75),
            )
        )
        face.marks.append((circle(at["nose"], head * 0.22), (32.0, 26.0, 26.0)))
        for side in ("left", "right"):
            if depth[f"{side}_eye"] - depth["skull"] > -0.15 * self._species.head:
                face.marks += [
                    (circle(at[f"{side}_eye"], head * 0.19), (225.0, 220.0, 210.0)),
                    (circle(at[f"{side}_eye"], head * 0.14), (22.0, 18.0, 16.0)),
                ]
        parts = [skull, face]
        for side in ("left", "right"):
            base, tip = at[f"{side}_ear"], at[f"{side}_ear_tip"]
            near = depth[f"{side}_ear"] + 0.03
            parts.append(Part(f"{side}_ear", capsule(base, tip, head * 0.32, head * 0.12), self._dark, near))
            if self._species.horns:
                parts.append(
                    Part(
                        f"{side}_horn",
                        hull(np.stack([base, at[f"{side}_horn_tip"]]), [head * 0.14, head * 0.05]),
                        (215.0, 205.0, 180.0),
                        near,
                    )
                )
        return parts


def _leg_keypoints(side: str, end: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    leg = f"{side}_{end}"
    return (
        (f"{leg}_top", (f"{leg}_upper",)),
        (f"{leg}_knee", (f"{leg}_upper", f"{leg}_lower")),
        (f"{leg}_paw", (f"{leg}_lower",)),
    )


_KEYPOINTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("left_eye", ("muzzle", "skull")),
    ("right_eye", ("muzzle", "skull")),
    ("nose", ("muzzle",)),
    ("neck", ("neck", "body")),
    ("root_of_tail", ("tail", "body")),
    *_leg_keypoints("left", "front"),
    *_leg_keypoints("right", "front"),
    *_leg_keypoints("left", "back"),
    *_leg_keypoints("right", "back"),
)
