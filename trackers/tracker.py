"""Detections in, tracks with identity, motion and smoothed keypoints out.

Legend: T tracks, N detections, M matches, K keypoints, D = 4 + 2 K filter coordinates (cx, cy, w, h, x0, y0, x1, …).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from trackers.association import assign
from trackers.config import TrackerConfig
from trackers.geometry import buffered_iou, keypoint_extent, oks_pairs
from trackers.kalman import COVARIANCE, POSITION, VARIANCE, VELOCITY, VELOCITY_VARIANCE, ConstantVelocityFilters
from trackers.smoothing import KeypointSmoother
from trackers.table import TrackTable
from trackers.types import Booleans, Detections, Floats, Integers, Tracks, TrackState

_LARGEST_PX = 1e7  # farther coordinates count as invalid: their squares must stay harmless
_LARGEST_STEP_S = 60.0  # a longer pause tells nothing more about motion
_LARGEST_HORIZON_S = 1.0  # predictions go no farther ahead than this
_SMALLEST_PX = 1e-3


class Tracker:
    """Multi-object tracker for one camera.

    Args:
        config: settings; the defaults are the tuned ones.
        sigmas: class index -> OKS sigma of each of its keypoints, shape [K]; other classes learn theirs.
        frame_interval_s: assumed between two updates whose clock stood still or ran backwards, until measured.
    """

    def __init__(
        self,
        config: TrackerConfig | None = None,
        sigmas: Mapping[int, NDArray[np.floating]] | None = None,
        frame_interval_s: float = 1 / 30,
    ) -> None:
        self.config = config or TrackerConfig()
        self._sigmas = {index: np.asarray(value, np.float64) for index, value in (sigmas or {}).items()}
        self._interval_s = frame_interval_s
        self._next_id = 1
        self._start_empty()

    def _start_empty(self) -> None:
        self._table = TrackTable.empty()
        self._filters = ConstantVelocityFilters(4)
        self._noise_TK: Floats = np.empty((0, 0))
        self._rejected_TK: Integers = np.empty((0, 0), np.int64)
        self._raw_TK2: Floats = np.empty((0, 0, 2))
        self._accepted_TK: Booleans = np.empty((0, 0), np.bool_)
        self._smoother = KeypointSmoother(self.config.smoothing)
        self._time_s: float | None = None  # the caller's clock at the last update
        self._now_s = 0.0  # our own clock: the sum of the steps, never backwards
        self._first_update = True

    # ------------------------------------------------------------------ public

    def reset(self) -> None:
        """End all tracks (a cut, a new file). Identities are never used again."""
        self._start_empty()

    def set_classes(self, keep: Mapping[int, int], sigmas: Mapping[int, NDArray[np.floating]]) -> None:
        """Follow a prompt change: tracks of class `old` go on as `keep[old]`, all others end.

        Keypoints start afresh, since the same index may now mean another joint.
        """
        self._sigmas = {index: np.asarray(value, np.float64) for index, value in sigmas.items()}
        table = self._table
        kept = np.isin(table.classes_T, list(keep))
        self._keep(kept)
        table.classes_T = np.array([keep[int(old)] for old in table.classes_T], np.int64)
        self._filters.state_5TD[:, :, 4:] = np.nan
        self._raw_TK2[:] = np.nan
        self._accepted_TK[:] = False
        self._rejected_TK[:] = 0
        self._smoother.restart()

    def update(self, detections: Detections, time_s: float) -> Tracks:
        """Take one frame's detections at `time_s` (s, any origin) and return the published tracks.

        Bad values are handled as trackers/README.md states; only disagreeing shapes raise.
        """
        step_s = self._step(time_s)
        source_N, boxes_N4, scores_N, classes_N, keypoints_NK2 = self._clean(detections)
        self._predict(step_s)
        table = self._table
        table.detection_T = np.full(len(table), -1, np.int64)
        self._accepted_TK[:] = False
        rows_M, columns_M = self._associate(boxes_N4, scores_N, classes_N, keypoints_NK2)
        if len(rows_M):
            self._correct(rows_M, boxes_N4[columns_M], keypoints_NK2[columns_M])
            table.detection_T[rows_M] = source_N[columns_M]
            table.scores_T[rows_M] = scores_N[columns_M]
            table.hits_T[rows_M] += 1
            table.seen_s_T[rows_M] = self._now_s
            table.boxes_T4[rows_M] = boxes_N4[columns_M]
        table.confirmed_T |= table.hits_T >= self.config.lifecycle.confirm_hits
        self._forget()
        founding_N = scores_N >= self.config.association.new_score
        founding_N[columns_M] = False
        if founding_N.any():
            self._found(
                source_N[founding_N], boxes_N4[founding_N], scores_N[founding_N], classes_N[founding_N],
                keypoints_NK2[founding_N],
            )  # fmt: skip
        self._first_update = False
        return self._publish(0.0)

    def predict_to(self, time_s: float) -> Tracks:
        """The tracks of the last update, their boxes (when coasting) and predictions moved to `time_s`.

        Changes nothing; the horizon is cut at 1 s, and a time before the last update means the last update.
        """
        if self._time_s is None or not np.isfinite(time_s):
            return self._publish(0.0)
        return self._publish(min(max(time_s - self._time_s, 0.0), _LARGEST_HORIZON_S))

    # ------------------------------------------------------------------ time and input

    def _step(self, time_s: float) -> float:
        if self._time_s is None or not np.isfinite(time_s):
            step_s = 0.0 if self._time_s is None and np.isfinite(time_s) else self._interval_s
        else:
            step_s = time_s - self._time_s
            if step_s < 0.0:  # a PTS reset: the scene goes on, only the clock jumped
                step_s = self._interval_s
            elif 0.0 < step_s < 1.0:
                self._interval_s += 0.1 * (step_s - self._interval_s)
        if np.isfinite(time_s):
            self._time_s = float(time_s)
        self._now_s += step_s
        return min(step_s, _LARGEST_STEP_S)

    def _clean(self, detections: Detections) -> tuple[Integers, Floats, Floats, Integers, Floats]:
        boxes_N4: Floats = np.array(detections.boxes_N4, np.float64)
        classes_N: Integers = np.asarray(detections.classes_N, np.int64)
        scores_N: Floats = np.asarray(detections.scores_N, np.float64)
        count = len(boxes_N4)
        keypoints = detections.keypoints_NK2
        width = self._raw_TK2.shape[1]
        if keypoints is not None and keypoints.shape[1]:
            if keypoints.shape[1] > width:
                self._widen(keypoints.shape[1])
                width = keypoints.shape[1]
            keypoints_NK2: Floats = np.full((count, width, 2), np.nan)
            keypoints_NK2[:, : keypoints.shape[1]] = keypoints
            invalid = ~(np.abs(keypoints_NK2) < _LARGEST_PX).all(axis=2)
            keypoints_NK2[invalid] = np.nan
            lacking = ~(np.abs(boxes_N4) < _LARGEST_PX).all(axis=1)
            if lacking.any():
                boxes_N4[lacking] = _padded(keypoint_extent(keypoints_NK2[lacking]))
        else:
            keypoints_NK2 = np.full((count, width, 2), np.nan)
        size_N2 = boxes_N4[:, 2:] - boxes_N4[:, :2]
        good_N = (
            (np.abs(boxes_N4) < _LARGEST_PX).all(axis=1)
            & (size_N2 > _SMALLEST_PX).all(axis=1)
            & (scores_N >= self.config.association.low_score)
        )
        limit = self.config.association.max_detections
        if good_N.all() and count <= limit:
            return np.arange(count), boxes_N4, np.minimum(scores_N, 1.0), classes_N, keypoints_NK2
        chosen = good_N.nonzero()[0]
        if len(chosen) > limit:
            chosen = np.sort(chosen[np.argsort(-scores_N[chosen], kind="stable")[:limit]])
        return (
            chosen, boxes_N4[chosen], np.minimum(scores_N[chosen], 1.0), classes_N[chosen],
            keypoints_NK2[chosen],
        )  # fmt: skip

    # ------------------------------------------------------------------ motion

    def _sizes(self) -> Floats:
        wh = self._filters.state_5TD[POSITION, :, 2:4]
        return np.asarray(np.sqrt(wh[:, :1] * wh[:, 1:]))

    def _predict(self, step_s: float) -> None:
        if step_s == 0.0 or not len(self._table):
            return
        motion = self.config.motion
        size_T1 = self._sizes()
        walk_TD = np.full(self._filters.state_5TD.shape[1:], motion.keypoint_walk**2)
        walk_TD[:, :4] = motion.box_walk**2
        acceleration_TD = np.full_like(walk_TD, motion.keypoint_acceleration**2)
        acceleration_TD[:, :4] = motion.box_acceleration**2
        area_T1 = size_T1 * size_T1
        self._filters.predict(step_s, walk_TD * area_T1, acceleration_TD * area_T1)
        wh = self._filters.state_5TD[POSITION, :, 2:4]
        np.maximum(wh, _SMALLEST_PX, out=wh)

    def _correct(self, rows_M: Integers, boxes_M4: Floats, keypoints_MK2: Floats) -> None:
        motion = self.config.motion
        count, keypoints = keypoints_MK2.shape[:2]
        area_M1 = np.square(self._sizes()[rows_M])
        measured_MD = np.empty((count, 4 + 2 * keypoints))
        measured_MD[:, :2] = (boxes_M4[:, :2] + boxes_M4[:, 2:]) * 0.5
        measured_MD[:, 2:4] = boxes_M4[:, 2:] - boxes_M4[:, :2]
        noise_MD = np.empty_like(measured_MD)
        noise_MD[:, :4] = motion.box_measurement**2 * area_M1
        if keypoints == 0:
            self._filters.update(rows_M, measured_MD, noise_MD)
            return
        measured_MD[:, 4:] = keypoints_MK2.reshape(count, -1)
        noise_MK = self._noise_TK[rows_M] * area_M1
        noise_MD[:, 4:] = np.repeat(noise_MK, 2, axis=1)
        accepted_MK, restart_MK = self._gate(rows_M, keypoints_MK2, noise_MK, area_M1)
        valid_MD = np.ones(measured_MD.shape, np.bool_)
        valid_MD[:, 4:] = np.repeat(accepted_MK, 2, axis=1)
        self._filters.update(rows_M, measured_MD, noise_MD, valid_MD)
        self._restart_keypoints(rows_M, keypoints_MK2, noise_MK, area_M1, restart_MK)
        accepted_MK |= restart_MK
        self._accepted_TK[rows_M] = accepted_MK
        self._raw_TK2[rows_M] = keypoints_MK2
        self._smoother.update(rows_M, np.where(accepted_MK[..., None], keypoints_MK2, np.nan), self._now_s)

    def _gate(
        self, rows_M: Integers, keypoints_MK2: Floats, noise_MK: Floats, area_M1: Floats
    ) -> tuple[Booleans, Booleans]:
        """Which keypoints pass their gate, and which start (again) where they are measured; learns the noise."""
        motion = self.config.motion
        shape = keypoints_MK2.shape
        state = self._filters.state_5TD[:, rows_M, 4:].reshape(5, *shape)
        squared = np.square(keypoints_MK2 - state[POSITION]).sum(axis=2)
        variance = state[VARIANCE, :, :, 0] + noise_MK
        measured_MK = ~np.isnan(keypoints_MK2[:, :, 0])
        known_MK = ~np.isnan(state[POSITION, :, :, 0])
        inside_MK = squared <= motion.gate_sigma**2 * variance
        accepted_MK = measured_MK & known_MK & inside_MK
        outside_MK = measured_MK & known_MK & ~inside_MK
        rejected_MK = np.where(outside_MK, self._rejected_TK[rows_M] + 1, 0)
        restart_MK = measured_MK & (~known_MK | (rejected_MK > motion.gate_patience))
        rejected_MK[restart_MK] = 0
        self._rejected_TK[rows_M] = rejected_MK
        residual_MK = np.maximum(squared * 0.5 - state[VARIANCE, :, :, 0], 0.0) / area_M1
        learned_MK = motion.noise_memory * self._noise_TK[rows_M] + (1.0 - motion.noise_memory) * residual_MK
        floor, ceiling = (motion.keypoint_measurement * 0.1) ** 2, (motion.keypoint_measurement * 10.0) ** 2
        learned_MK = np.clip(learned_MK, floor, ceiling)
        self._noise_TK[rows_M] = np.where(accepted_MK, learned_MK, self._noise_TK[rows_M])
        return accepted_MK, restart_MK

    def _restart_keypoints(
        self, rows_M: Integers, keypoints_MK2: Floats, noise_MK: Floats, area_M1: Floats, restart_MK: Booleans
    ) -> None:
        if not restart_MK.any():
            return
        match, keypoint = restart_MK.nonzero()
        rows = rows_M[match]
        state = self._filters.state_5TD
        for axis in range(2):
            column = 4 + 2 * keypoint + axis
            state[POSITION, rows, column] = keypoints_MK2[match, keypoint, axis]
            state[VELOCITY, rows, column] = state[VELOCITY, rows, axis]  # as fast as its box
            state[VARIANCE, rows, column] = noise_MK[match, keypoint]
            state[COVARIANCE, rows, column] = 0.0
            state[VELOCITY_VARIANCE, rows, column] = self.config.motion.keypoint_speed**2 * area_M1[match, 0]

    # ------------------------------------------------------------------ association

    def _associate(
        self, boxes_N4: Floats, scores_N: Floats, classes_N: Integers, keypoints_NK2: Floats
    ) -> tuple[Integers, Integers]:
        none = np.empty(0, np.int64)
        table, settings = self._table, self.config.association
        if not len(table) or not len(boxes_N4):
            return none, none
        similarity_TN = self._similarity(boxes_N4, classes_N, keypoints_NK2)
        high_N = scores_N >= settings.high_score
        fused_TN = similarity_TN * scores_N
        interval_s = self._now_s - table.seen_s_T
        recent_T = interval_s <= interval_s.min() + 1e-9
        rounds = (
            (fused_TN, table.confirmed_T, high_N, settings.first_similarity),
            (similarity_TN, table.confirmed_T & recent_T, ~high_N, settings.second_similarity),
            (fused_TN, ~table.confirmed_T, high_N, settings.tentative_similarity),
        )
        free_T, free_N = np.ones(len(table), np.bool_), np.ones(len(boxes_N4), np.bool_)
        all_rows, all_columns = [], []
        for similarity, tracks_T, detections_N, threshold in rounds:
            row_choice = (tracks_T & free_T).nonzero()[0]
            column_choice = (detections_N & free_N).nonzero()[0]
            if not len(row_choice) or not len(column_choice):
                continue
            rows, columns = assign(similarity[np.ix_(row_choice, column_choice)], threshold)
            rows, columns = row_choice[rows], column_choice[columns]
            free_T[rows] = False
            free_N[columns] = False
            all_rows.append(rows)
            all_columns.append(columns)
        if not all_rows:
            return none, none
        return np.concatenate(all_rows), np.concatenate(all_columns)

    def _similarity(self, boxes_N4: Floats, classes_N: Integers, keypoints_NK2: Floats) -> Floats:
        settings = self.config.association
        similarity_TN = buffered_iou(self._predicted_boxes(), boxes_N4, settings.buffer)
        if keypoints_NK2.shape[1] and settings.pose_weight:
            rows_P, columns_P = similarity_TN.nonzero()
            sigmas_TK = self._sigmas_of_tracks()
            wh = self._filters.state_5TD[POSITION, :, 2:4]
            predicted_TK2 = self._filters.state_5TD[POSITION, :, 4:].reshape(len(self._table), -1, 2)
            oks_P, common_P = oks_pairs(
                predicted_TK2[rows_P], keypoints_NK2[columns_P], (wh[:, 0] * wh[:, 1])[rows_P], sigmas_TK[rows_P]
            )
            iou_P = similarity_TN[rows_P, columns_P]
            mixed_P = iou_P + settings.pose_weight * (oks_P - iou_P)
            similarity_TN[rows_P, columns_P] = np.where(common_P, mixed_P, iou_P)
        same_TN = self._table.classes_T[:, None] == classes_N
        return np.asarray(similarity_TN * same_TN)

    def _sigmas_of_tracks(self) -> Floats:
        keypoints = self._raw_TK2.shape[1]
        sigmas_TK = np.full((len(self._table), keypoints), self.config.association.default_sigma)
        for index, sigmas_K in self._sigmas.items():
            count = min(keypoints, len(sigmas_K))
            sigmas_TK[self._table.classes_T == index, :count] = sigmas_K[:count]
        return sigmas_TK

    def _predicted_boxes(self) -> Floats:
        box_T4 = self._filters.state_5TD[POSITION, :, :4]
        half_T2 = box_T4[:, 2:] * 0.5
        return np.concatenate((box_T4[:, :2] - half_T2, box_T4[:, :2] + half_T2), axis=1)

    # ------------------------------------------------------------------ lifecycle

    def _forget(self) -> None:
        table, settings = self._table, self.config.lifecycle
        if not len(table):
            return
        unseen_s = self._now_s - table.seen_s_T
        patience_s = np.where(table.confirmed_T, settings.lost_s, settings.tentative_s)
        kept_T = unseen_s <= patience_s + 1e-9
        if not kept_T.all():
            self._keep(kept_T)

    def _keep(self, kept_T: Booleans) -> None:
        self._table.keep(kept_T)
        self._filters.keep(kept_T)
        self._smoother.keep(kept_T)
        self._noise_TK = self._noise_TK[kept_T]
        self._rejected_TK = self._rejected_TK[kept_T]
        self._raw_TK2 = self._raw_TK2[kept_T]
        self._accepted_TK = self._accepted_TK[kept_T]

    def _found(
        self, source_M: Integers, boxes_M4: Floats, scores_M: Floats, classes_M: Integers, keypoints_MK2: Floats
    ) -> None:
        room = max(self.config.lifecycle.max_tracks - len(self._table), 0)
        chosen = np.sort(np.argsort(-scores_M, kind="stable")[:room])
        source_M, boxes_M4, scores_M, classes_M = (
            source_M[chosen],
            boxes_M4[chosen],
            scores_M[chosen],
            classes_M[chosen],
        )
        keypoints_MK2 = keypoints_MK2[chosen]
        motion, count, keypoints = self.config.motion, len(source_M), keypoints_MK2.shape[1]
        size_M2 = boxes_M4[:, 2:] - boxes_M4[:, :2]
        area_M1 = size_M2[:, :1] * size_M2[:, 1:]
        state = np.zeros((5, count, 4 + 2 * keypoints))
        state[POSITION, :, :2] = (boxes_M4[:, :2] + boxes_M4[:, 2:]) * 0.5
        state[POSITION, :, 2:4] = size_M2
        state[POSITION, :, 4:] = keypoints_MK2.reshape(count, -1)
        state[VARIANCE, :, :4] = motion.box_measurement**2 * area_M1
        state[VARIANCE, :, 4:] = motion.keypoint_measurement**2 * area_M1
        state[VELOCITY_VARIANCE, :, :4] = motion.box_speed**2 * area_M1
        state[VELOCITY_VARIANCE, :, 4:] = motion.keypoint_speed**2 * area_M1
        self._filters.append(state)
        self._smoother.append(keypoints_MK2, self._now_s)
        self._noise_TK = np.concatenate((self._noise_TK, np.full((count, keypoints), motion.keypoint_measurement**2)))
        self._rejected_TK = np.concatenate((self._rejected_TK, np.zeros((count, keypoints), np.int64)))
        self._raw_TK2 = np.concatenate((self._raw_TK2, keypoints_MK2))
        self._accepted_TK = np.concatenate((self._accepted_TK, ~np.isnan(keypoints_MK2[:, :, 0])))
        believed = self._first_update or self.config.lifecycle.confirm_hits <= 1
        now = np.full(count, self._now_s)
        ids = np.arange(self._next_id, self._next_id + count)
        self._next_id += count
        self._table.append(
            TrackTable(
                ids, classes_M.astype(np.int64), scores_M, np.ones(count, np.int64), np.full(count, believed), now, now,
                source_M, boxes_M4,
            )
        )  # fmt: skip

    def _widen(self, keypoints: int) -> None:
        extra = keypoints - self._raw_TK2.shape[1]
        self._filters.state_5TD = np.pad(
            self._filters.state_5TD, ((0, 0), (0, 0), (0, 2 * extra)), constant_values=np.nan
        )
        noise = self.config.motion.keypoint_measurement**2
        self._noise_TK = np.pad(self._noise_TK, ((0, 0), (0, extra)), constant_values=noise)
        self._rejected_TK = np.pad(self._rejected_TK, ((0, 0), (0, extra)))
        self._raw_TK2 = np.pad(self._raw_TK2, ((0, 0), (0, extra), (0, 0)), constant_values=np.nan)
        self._accepted_TK = np.pad(self._accepted_TK, ((0, 0), (0, extra)))
        self._smoother.widen(keypoints)

    # ------------------------------------------------------------------ output

    def _publish(self, ahead_s: float) -> Tracks:
        table = self._table
        unseen_s = self._now_s - table.seen_s_T
        measured_T = table.detection_T >= 0
        shown = (table.confirmed_T & (measured_T | (unseen_s <= self.config.lifecycle.coast_s + 1e-9))).nonzero()[0]
        measured = measured_T[shown]
        state = self._filters.state_5TD[:, shown]
        position = state[POSITION] + ahead_s * state[VELOCITY]
        half = position[:, 2:4] * 0.5
        coasted = np.concatenate((position[:, :2] - half, position[:, :2] + half), axis=1)
        points = (len(shown), self._raw_TK2.shape[1], 2)
        variance = state[VARIANCE] + ahead_s * (2.0 * state[COVARIANCE] + ahead_s * state[VELOCITY_VARIANCE])
        covariance = np.zeros((*points[:2], 3))
        covariance[:, :, 0::2] = variance[:, 4:].reshape(points)
        raw = self._raw_TK2[shown]
        raw[~measured] = np.nan
        return Tracks(
            self._now_s if self._time_s is None else self._time_s + ahead_s,
            table.ids_T[shown],
            table.classes_T[shown],
            np.where(measured, int(TrackState.CONFIRMED), int(TrackState.COASTING)),
            table.scores_T[shown],
            measured,
            table.detection_T[shown],
            self._now_s - table.born_s_T[shown],
            unseen_s[shown],
            np.where(measured[:, None], table.boxes_T4[shown], coasted),
            raw,
            self._smoother.smoothed_TK2[shown],
            position[:, 4:].reshape(points),
            state[VELOCITY, :, 4:].reshape(points),
            covariance,
            self._accepted_TK[shown],
        )


def _padded(extent_N4: Floats) -> Floats:
    """Give degenerate extents (one keypoint, a straight arm) a tenth of their longer side, at least a pixel."""
    size_N2 = extent_N4[:, 2:] - extent_N4[:, :2]
    least_N1 = np.maximum(0.1 * size_N2.max(axis=1, keepdims=True), 1.0)
    grow_N2 = np.maximum(least_N1 - size_N2, 0.0) * 0.5
    return np.concatenate((extent_N4[:, :2] - grow_N2, extent_N4[:, 2:] + grow_N2), axis=1)
