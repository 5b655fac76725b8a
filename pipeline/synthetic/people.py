"""People with the 17 COCO keypoints: a 3-D stick figure with thick limbs, clothes and a face.

Kinematics use the person's own frame (facing +z, left at +x), so left and right are correct from every side. In a side
view the near limbs hide the far ones, as in a photograph.
"""

from __future__ import annotations

import math

import numpy as np

from pipeline.synthetic.figure import Colour, Figure, Part, Pattern, draw_colour, draw_pattern, shaded
from pipeline.synthetic.geometry import Floats, View, capsule, circle, hull, rotation
from pipeline.synthetic.poses import ANGLES, draw_pose

SKIN_TONES: tuple[Colour, ...] = (
    *((255, 224, 196), (241, 194, 155), (226, 172, 128), (198, 134, 92)),
    *((166, 106, 70), (130, 82, 55), (92, 58, 42), (70, 46, 36)),
)
_HAIR: tuple[Colour, ...] = (
    *((25, 20, 18), (50, 34, 24), (92, 62, 38), (150, 105, 60)),
    *((205, 168, 105), (140, 62, 32), (150, 148, 145), (225, 220, 212)),
)
_HEAD_POINTS = {
    "head": (0.0, 0.0, 0.0),
    "crown": (0.0, -1.25, -0.1),
    "nape": (0.0, 0.5, -0.6),
    "nose": (0.0, 0.18, 1.05),
    "mouth": (0.0, 0.62, 0.85),
    "chin": (0.0, 1.05, 0.5),
    "face": (0.0, 0.2, 0.6),
    "left_eye": (0.38, -0.1, 0.85),
    "right_eye": (-0.38, -0.1, 0.85),
    "left_ear": (0.92, 0.1, 0.0),
    "right_ear": (-0.92, 0.1, 0.0),
}
"""Points of the head, in units of its radius, in the frame of the face."""


class Person:
    """One individual; see `pipeline.synthetic.figure.Model`."""

    yaw_range_deg = (-180.0, 180.0)
    pitch_range_deg = (-12.0, 30.0)
    max_roll_deg = 180.0

    def __init__(self, rng: np.random.Generator) -> None:
        self._draw_body(rng)
        self._draw_clothes(rng)
        self._poses = (draw_pose(rng), draw_pose(rng))
        self._blend_hz = rng.uniform(0.15, 0.5)
        self._blend_phase = rng.uniform(0.0, 2.0 * math.pi)
        self._wobble_deg = rng.uniform(0.0, 6.0, len(ANGLES))
        self._wobble_phase = rng.uniform(0.0, 2.0 * math.pi, len(ANGLES))
        self._wobble_hz = rng.uniform(0.2, 0.8, len(ANGLES))

    def _draw_body(self, rng: np.random.Generator) -> None:
        build = rng.uniform(0.78, 1.4)  # slim to heavy
        self._shoulder = rng.uniform(0.09, 0.125)
        self._hip = self._shoulder * rng.uniform(0.5, 0.75)
        self._torso = rng.uniform(0.27, 0.32)
        self._upper_arm, self._forearm = rng.uniform(0.15, 0.18), rng.uniform(0.13, 0.16)
        self._thigh, self._shin = rng.uniform(0.21, 0.26), rng.uniform(0.21, 0.25)
        self._head = rng.uniform(0.058, 0.078)
        self._arm_radius = 0.026 * build * rng.uniform(0.85, 1.2)
        self._leg_radius = 0.042 * build * rng.uniform(0.85, 1.2)
        self._trunk_radius = 0.052 * build

    def _draw_clothes(self, rng: np.random.Generator) -> None:
        self._skin = shaded(SKIN_TONES[int(rng.integers(len(SKIN_TONES)))], rng.uniform(0.85, 1.08))
        self._hair = shaded(_HAIR[int(rng.integers(len(_HAIR)))], rng.uniform(0.8, 1.2))
        self._hair_length = float(rng.choice([0.0, 0.0, 0.06, 0.16]))
        self._shirt = draw_colour(rng)
        self._bottoms = draw_colour(rng, (0.0, 0.6))
        self._shoes = self._skin if rng.random() < 0.15 else draw_colour(rng, (0.0, 0.5))
        self._sleeve = float(rng.choice([0.0, 0.6, 1.0, 2.0, 2.0]))  # in limb segments: 2 reaches the wrist
        self._leg_cover = float(rng.choice([0.5, 1.0, 2.0, 2.0, 2.0]))
        if rng.random() < 0.1:
            self._bottoms = self._shirt
        self._shirtless = bool(rng.random() < 0.07)
        if self._shirtless:
            self._shirt, self._sleeve = self._skin, 0.0
        self._print: Pattern | None = draw_pattern(rng) if rng.random() < 0.35 and not self._shirtless else None
        self._logo = draw_colour(rng) if rng.random() < 0.2 else None
        self._cap = draw_colour(rng) if rng.random() < 0.15 else None
        self._light = rng.uniform(-0.5, 0.5, 2)

    def _pose_at(self, time_s: float) -> dict[str, float]:
        blend = 0.5 - 0.5 * math.cos(2.0 * math.pi * self._blend_hz * time_s + self._blend_phase)
        wobble = self._wobble_deg * np.sin(2.0 * math.pi * self._wobble_hz * time_s + self._wobble_phase)
        pose = np.radians((1.0 - blend) * self._poses[0] + blend * self._poses[1] + wobble)
        return dict(zip(ANGLES, pose.tolist(), strict=True))

    def _joints(self, pose: dict[str, float]) -> dict[str, Floats]:
        """Return the 3-D joints in figure units. The origin is at half the height of the body."""
        turn = rotation(pose["twist"] * 0.5, pose["lean"], pose["sway"])
        pelvis = np.zeros(3)
        neck = pelvis + turn @ np.array([0.0, -self._torso, 0.0])
        joints = {"pelvis": pelvis, "neck": neck}
        for side, sign in (("left", 1.0), ("right", -1.0)):
            shoulder = neck + turn @ np.array([sign * self._shoulder, 0.012, 0.0])
            upper, fore = _swing(
                pose[f"{side}_abduct"] * sign,
                pose[f"{side}_flex"],
                pose[f"{side}_elbow"],
                pose[f"{side}_turn"] * sign,
                1.0,
            )
            elbow = shoulder + turn @ upper * self._upper_arm
            joints[f"{side}_shoulder"], joints[f"{side}_elbow"] = shoulder, elbow
            joints[f"{side}_wrist"] = elbow + turn @ fore * self._forearm
            joints[f"{side}_hand"] = elbow + turn @ fore * (self._forearm + 0.045)
            hip = pelvis + np.array([sign * self._hip, 0.0, 0.0])
            thigh, shin = _swing(pose[f"{side}_spread"] * sign, pose[f"{side}_thigh"], pose[f"{side}_knee"], 0.0, -1.0)
            knee = hip + thigh * self._thigh
            ankle = knee + shin * self._shin
            ahead = np.cross(np.array([1.0, 0.0, 0.0]), shin)
            toe = ankle + (ahead / max(float(np.linalg.norm(ahead)), 1e-6) + 0.35 * shin) * 0.075
            joints |= {f"{side}_hip": hip, f"{side}_knee": knee, f"{side}_ankle": ankle, f"{side}_toe": toe}
        look = turn @ rotation(pose["head_yaw"], pose["head_pitch"], 0.0)
        head = neck + look @ np.array([0.0, -self._head * 1.75, 0.012])
        radius = self._head
        for name, offset in _HEAD_POINTS.items():
            joints[name] = head + look @ np.array(offset) * radius
        lift = np.array([0.0, -0.08, 0.0])
        return {name: point - lift - np.array([0.0, 0.05, 0.0]) for name, point in joints.items()}

    def figure(self, view: View, time_s: float) -> Figure:
        joints = self._joints(self._pose_at(time_s))
        names = list(joints)
        pixels_N2, depth_N = view.project(np.stack([joints[name] for name in names]))
        at = dict(zip(names, pixels_N2, strict=True))
        depth = dict(zip(names, depth_N.tolist(), strict=True))
        parts = self._limbs(view, at, depth)
        parts.append(self._trunk(view, at, depth))
        parts += self._head_parts(view, at, depth)
        parts.sort(key=lambda part: part.depth)
        keypoints_K2 = np.stack([at[name] for name, _ in _KEYPOINTS])
        face_ahead = depth["face"] - depth["head"]
        facing = np.ones(17, dtype=bool)
        for index, name in enumerate(("nose", "left_eye", "right_eye")):
            facing[index] = depth[name] - depth["head"] > (0.0 if name == "nose" else 0.12 * self._head)
        for index, name in ((3, "left_ear"), (4, "right_ear")):
            facing[index] = depth[name] - depth["head"] > -0.28 * self._head and face_ahead > -0.5 * self._head
        return Figure(parts, keypoints_K2, [hosts for _, hosts in _KEYPOINTS], facing)

    def _limbs(self, view: View, at: dict[str, Floats], depth: dict[str, float]) -> list[Part]:
        scale, parts = view.scale_px, []
        arm, leg = self._arm_radius * scale, self._leg_radius * scale
        segments = (  # name, ends, radii, cloth, covered fraction, how much nearer than its ends it is painted
            ("upper_arm", "shoulder", "elbow", arm * 1.25, arm, self._shirt, self._sleeve, 0.012),
            ("forearm", "elbow", "wrist", arm, arm * 0.75, self._shirt, self._sleeve - 1.0, 0.02),
            ("thigh", "hip", "knee", leg * 1.3, leg * 0.9, self._bottoms, self._leg_cover, -0.004),
            ("shin", "knee", "ankle", leg * 0.9, leg * 0.6, self._bottoms, self._leg_cover - 1.0, 0.0),
        )
        extremities = {
            "forearm": ("wrist", "hand", arm * 0.8, arm * 0.75, self._skin),
            "shin": ("ankle", "toe", leg * 0.62, leg * 0.5, self._shoes),
        }
        for side in ("left", "right"):
            for name, start, end, wide, narrow, cloth, cover, nearer in segments:
                first, last = f"{side}_{start}", f"{side}_{end}"
                part = self._limb(view, f"{side}_{name}", at[first], at[last], wide, narrow, cloth, cover)
                part.depth = (depth[first] + depth[last]) / 2 + nearer
                if name in extremities:
                    root, tip, wide, narrow, colour = extremities[name]
                    part.marks.append((capsule(at[f"{side}_{root}"], at[f"{side}_{tip}"], wide, narrow), colour))
                parts.append(part)
        return parts

    def _limb(
        self, view: View, name: str, start: Floats, end: Floats, wide: float, narrow: float, cloth: Colour, cover: float
    ) -> Part:
        """Return a limb segment. `cloth` covers the fraction `cover` (0..1) from its start; the rest is skin."""
        base = cloth if cover >= 1.0 else self._skin
        part = Part(name, capsule(start, end, wide, narrow), shaded(base, 0.9), 0.0)
        light = self._light * wide
        part.marks.append((capsule(start + light, end + light, wide * 0.5, narrow * 0.5), shaded(base, 1.08)))
        if 0.0 < cover < 1.0:
            part.marks.append((capsule(start, start + (end - start) * cover, wide * 1.08, (wide + narrow) / 2), cloth))
        if cover > 0.0 and self._print is not None and cloth is self._shirt:
            part.pattern = self._print.scaled(view.scale_px)
        return part

    def _trunk(self, view: View, at: dict[str, Floats], depth: dict[str, float]) -> Part:
        scale = view.scale_px
        radius = self._trunk_radius * scale
        corners = np.stack([at[name] for name in ("left_shoulder", "right_shoulder", "left_hip", "right_hip", "neck")])
        inset = corners.copy()
        inset[:2] = corners[:2] * 0.82 + corners[4] * 0.18
        outline = hull(inset, [radius * 0.85, radius * 0.85, radius * 1.0, radius * 1.0, radius * 0.7])
        trunk = Part("trunk", outline, self._shirt, (depth["neck"] + depth["pelvis"]) / 2)
        hips = np.stack([at["left_hip"], at["right_hip"]])
        up = (at["neck"] - at["pelvis"]) * 0.16
        trunk.marks.append(
            (hull(np.concatenate([hips, hips + up]), [radius] * 2 + [radius * 0.9] * 2), shaded(self._bottoms, 0.95))
        )
        centre = (at["neck"] * 0.55 + at["pelvis"] * 0.45) + self._light * radius
        trunk.marks.append((circle(centre, radius * 0.9), shaded(self._shirt, 1.06)))
        if self._logo is not None and depth["face"] > depth["head"]:
            trunk.marks.append((circle(at["neck"] * 0.65 + at["pelvis"] * 0.35, radius * 0.45), self._logo))
        trunk.pattern = self._print
        return trunk

    def _head_parts(self, view: View, at: dict[str, Floats], depth: dict[str, float]) -> list[Part]:
        radius = self._head * view.scale_px
        front = depth["face"] > depth["head"]
        neck = Part(
            "neck",
            capsule(at["neck"], at["head"], radius * 0.62, radius * 0.55),
            shaded(self._skin, 0.82),
            depth["neck"] + 0.015,
        )
        outline = hull(
            np.stack([at["head"] + (at["crown"] - at["head"]) * 0.25, at["chin"] * 0.8 + at["head"] * 0.2]),
            [radius * 0.98, radius * 0.55],
        )
        head = Part("head", outline, self._hair if not front else self._skin, depth["head"] + 0.03)
        tilt = (depth["face"] - depth["head"]) / (0.63 * self._head)  # 1 facing the camera, -1 turned away
        self._paint_hair(head, at, radius, tilt)
        self._paint_face(head, at, depth, radius)
        parts = [neck, head]
        if self._hair_length > 0.0:
            down = (at["pelvis"] - at["neck"]) * (self._hair_length / self._torso)
            tail = Part(
                "hair", capsule(at["nape"], at["nape"] + down, radius * 0.9, radius * 0.6), shaded(self._hair, 0.9), 0.0
            )
            tail.depth = depth["nape"] + (-0.05 if front else 0.04)
            parts.append(tail)
        return parts

    def _paint_hair(self, head: Part, at: dict[str, Floats], radius: float, tilt: float) -> None:
        crown = at["head"] + (at["crown"] - at["head"]) * 0.45
        back = at["nape"] - at["head"]
        if tilt > 0.0:
            head.marks.append((hull(np.stack([crown, crown + back * 0.5]), [radius * 0.86, radius * 0.7]), self._hair))
            middle = at["face"] * 0.8 + at["head"] * 0.2
            head.marks.append(
                (hull(np.stack([middle, at["chin"] * 0.7 + middle * 0.3]), [radius * 0.7, radius * 0.5]), self._skin)
            )
        else:
            head.marks.append(
                (
                    circle(at["head"] + (at["face"] - at["head"]) * 0.8, radius * 0.62 * (1.0 + min(0.0, tilt))),
                    self._skin,
                )
            )
        if self._cap is not None:
            head.marks.append(
                (hull(np.stack([crown, at["head"] * 0.3 + crown * 0.7]), [radius * 0.9, radius * 0.88]), self._cap)
            )

    def _paint_face(self, head: Part, at: dict[str, Floats], depth: dict[str, float], radius: float) -> None:
        for side in ("left", "right"):
            if depth[f"{side}_ear"] - depth["head"] > -0.3 * self._head and self._hair_length < 0.1:
                head.marks.append((circle(at[f"{side}_ear"], radius * 0.22), shaded(self._skin, 0.85)))
            if depth[f"{side}_eye"] - depth["head"] > 0.12 * self._head:
                eye = at[f"{side}_eye"]
                brow = (at["crown"] - at["head"]) * 0.2
                head.marks.append((circle(eye, radius * 0.17), (240.0, 238.0, 235.0)))
                head.marks.append((circle(eye, radius * 0.1), (30.0, 22.0, 20.0)))
                head.marks.append(
                    (
                        capsule(
                            eye + brow - (at["nose"] - eye) * 0.25,
                            eye + brow + (at["nose"] - eye) * 0.15,
                            radius * 0.05,
                            radius * 0.05,
                        ),
                        self._hair,
                    )
                )
        if depth["nose"] > depth["head"]:
            bridge = (at["left_eye"] + at["right_eye"]) / 2
            head.marks.append((capsule(bridge, at["nose"], radius * 0.06, radius * 0.13), shaded(self._skin, 0.84)))
            across = (at["left_eye"] - at["right_eye"]) * 0.35
            head.marks.append(
                (capsule(at["mouth"] - across, at["mouth"] + across, radius * 0.08, radius * 0.08), (150.0, 62.0, 60.0))
            )


def _swing(sideways: float, forward: float, bend: float, turn: float, bend_sign: float) -> tuple[Floats, Floats]:
    """Return the unit directions of the two segments of a limb. At zero angles the limb hangs straight down."""
    upper = np.array(
        [math.sin(sideways), math.cos(sideways) * math.cos(forward), math.cos(sideways) * math.sin(forward)]
    )
    ahead = np.array([0.0, -math.sin(forward), math.cos(forward)])
    ahead = math.cos(turn) * ahead + math.sin(turn) * np.cross(upper, ahead)
    lower = math.cos(bend) * upper + bend_sign * math.sin(bend) * ahead
    return upper, lower / np.linalg.norm(lower)


_KEYPOINTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("nose", ("head",)),
    ("left_eye", ("head",)), ("right_eye", ("head",)),
    ("left_ear", ("head",)), ("right_ear", ("head",)),
    ("left_shoulder", ("left_upper_arm",)), ("right_shoulder", ("right_upper_arm",)),
    ("left_elbow", ("left_upper_arm", "left_forearm")), ("right_elbow", ("right_upper_arm", "right_forearm")),
    ("left_wrist", ("left_forearm",)), ("right_wrist", ("right_forearm",)),
    ("left_hip", ("left_thigh", "trunk")), ("right_hip", ("right_thigh", "trunk")),
    ("left_knee", ("left_thigh", "left_shin")), ("right_knee", ("right_thigh", "right_shin")),
    ("left_ankle", ("left_shin",)), ("right_ankle", ("right_shin",)),
)  # fmt: skip
