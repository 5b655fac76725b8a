"""Detections in, tracks with identity, motion and smoothed keypoints out.

Legend: T tracks, N detections, M matches, K keypoints, P = 2 + K filtered points (box centre, box size, keypoints).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from trackers.association import Candidates, Found, associate
from trackers.config import TrackerConfig
from trackers.intake import SMALLEST_PX, Clock, take_in
from trackers.kalman import ConstantVelocityFilters
from trackers.keypoints import Keypoints
from trackers.sigmas import Sigmas
from trackers.table import TrackTable
from trackers.types import Booleans, Detections, Floats, Integers, Tracks, TrackState

_LONGEST_HORIZON_S = 1.0  # predictions go no farther ahead than this
_CENTRE, _SIZE, _FIRST_KEYPOINT = 0, 1, 2
_SAME_TIME_S = 1e-9


class Tracker:
    """Multi-object tracker for one camera.

    Args:
        config: settings; the defaults are the tuned ones.
        sigmas: class index -> OKS sigma of each of its keypoints, shape [K]; other classes learn theirs.
        frame_interval_s: assumed for an update whose clock ran backwards, until intervals were seen.
    """

    def __init__(
        self,
        config: TrackerConfig | None = None,
        sigmas: Mapping[int, NDArray[np.floating]] | None = None,
        frame_interval_s: float = 1 / 30,
    ) -> None:
        self.config = config or TrackerConfig()
        self._sigmas = Sigmas(sigmas or {}, self.config.association.default_sigma)
        self._next_id = 1
        motion = self.config.motion
        self._walk_2 = np.array([motion.centre_walk, motion.size_walk]) ** 2
        self._acceleration_2 = np.array([motion.centre_acceleration, motion.size_acceleration]) ** 2
        self._clock = Clock(frame_interval_s)
        self._start_empty()

    def _start_empty(self) -> None:
        self._table = TrackTable.empty()
        self._filters = ConstantVelocityFilters(_FIRST_KEYPOINT)
        self._keypoints = Keypoints(self.config)
        self._step_s = 0.0
        self._first_update = True

    def reset(self) -> None:
        """End all tracks (a cut, a new file). Identities are never used again."""
        self._clock = Clock(self._clock.interval_s)
        self._start_empty()

    def set_classes(self, keep: Mapping[int, int], sigmas: Mapping[int, NDArray[np.floating]]) -> None:
        """Follow a prompt change: tracks of class `old` go on as `keep[old]`, all others end.

        Keypoints start afresh, since the same index may now mean another joint.
        """
        self._sigmas = Sigmas(sigmas, self.config.association.default_sigma)
        table = self._table
        self._keep(np.isin(table.classes_T, list(keep)))
        table.classes_T = np.array([keep[int(old)] for old in table.classes_T], np.int64)
        box_only = ConstantVelocityFilters(_FIRST_KEYPOINT)
        box_only.append(
            self._filters.position_TP2[:, :_FIRST_KEYPOINT],
            self._filters.velocity_TP2[:, :_FIRST_KEYPOINT],
            self._filters.covariance_3TP[:, :, :_FIRST_KEYPOINT],
        )
        self._filters = box_only
        self._keypoints = Keypoints(self.config)
        self._keypoints.append(np.empty((len(table), 0, 2)), self._areas(), 0.0, 0.0)

    def update(self, detections: Detections, time_s: float) -> Tracks:
        """Take one frame's detections at `time_s` (s, any origin) and return the published tracks.

        Bad values are handled as trackers/README.md states; only disagreeing shapes raise.
        """
        config, table = self.config, self._table
        self._step_s = self._clock.advance(time_s)
        self._predict()
        given = 0 if detections.keypoints_NK2 is None else detections.keypoints_NK2.shape[1]
        if given > self._keypoints.count:
            self._keypoints.widen(given, self._areas(), self._clock.now_s, self._clock.interval_s)
            self._filters.widen(_FIRST_KEYPOINT + given)
        found = take_in(
            detections, self._keypoints.count, config.association.low_score, config.association.max_detections
        )
        table.detection_T = np.full(len(table), -1, np.int64)
        if self._keypoints.count:
            self._keypoints.accepted_TK[:] = False
        founding_N = found.scores_N >= config.association.new_score
        if len(table):
            if len(found.rows_N):
                rows_M, columns_M = associate(self._candidates(), found, config.association)
                founding_N[columns_M] = False
                if len(rows_M):
                    self._continue(rows_M, columns_M, found)
            self._forget()
        if founding_N.any():
            self._found(found, founding_N.nonzero()[0])
        self._first_update = False
        return self._publish(0.0)

    def predict_to(self, time_s: float) -> Tracks:
        """The tracks of the last update, coasting boxes and predicted keypoints moved ahead to `time_s`.

        Changes nothing. The horizon is cut at 1 s; a time before the last update means the last update.
        """
        if self._clock.caller_s is None or not math.isfinite(time_s):
            return self._publish(0.0)
        return self._publish(min(max(time_s - self._clock.caller_s, 0.0), _LONGEST_HORIZON_S))

    # ------------------------------------------------------------------ motion and association

    def _areas(self) -> Floats:
        """Areas of the filtered boxes, area_T1 in px²."""
        sizes_T2 = self._filters.position_TP2[:, _SIZE]
        return sizes_T2[:, :1] * sizes_T2[:, 1:]

    def _predict(self) -> None:
        if not len(self._table):
            return
        filters, area_T1 = self._filters, self._areas()
        walk_TP, acceleration_TP = self._walk_2 * area_T1, self._acceleration_2 * area_T1
        if self._keypoints.count:
            learned_TK = self._keypoints.learner.acceleration_TK
            walk_TP = np.concatenate((walk_TP, np.zeros_like(learned_TK)), axis=1)
            acceleration_TP = np.concatenate((acceleration_TP, learned_TK), axis=1)
        filters.predict(self._step_s, walk_TP, acceleration_TP)
        sizes_T2 = filters.position_TP2[:, _SIZE]
        np.maximum(sizes_T2, SMALLEST_PX, out=sizes_T2)

    def _candidates(self) -> Candidates:
        table, filters = self._table, self._filters
        boxes_T4 = table.boxes_T4
        return Candidates(
            filters.position_TP2[:, _CENTRE],
            filters.position_TP2[:, _SIZE],
            filters.velocity_TP2[:, _CENTRE],
            table.headings_T2,
            (boxes_T4[:, :2] + boxes_T4[:, 2:]) * 0.5,
            table.scores_T,
            table.classes_T,
            table.confirmed_T,
            self._clock.now_s - table.seen_s_T <= self._step_s + _SAME_TIME_S,
            filters.position_TP2[:, _FIRST_KEYPOINT:],
            self._sigmas.of(table.classes_T, self._keypoints.count),
        )

    def _continue(self, rows_M: Integers, columns_M: Integers, found: Found) -> None:
        """Correct matched tracks by their detections."""
        table, motion = self._table, self.config.motion
        scores_M, boxes_M4 = found.scores_N[columns_M], found.boxes_N4[columns_M]
        last_M4 = table.boxes_T4[rows_M]
        elapsed_M1 = np.maximum(self._clock.now_s - table.seen_s_T[rows_M], 1e-6)[:, None]
        moved_M2 = (boxes_M4[:, :2] + boxes_M4[:, 2:] - last_M4[:, :2] - last_M4[:, 2:]) * 0.5
        blend_M1 = 1.0 - np.exp(elapsed_M1 / -max(motion.heading_s, 1e-6))
        blend_M1[table.hits_T[rows_M] == 1] = 1.0
        headings_M2 = table.headings_T2[rows_M]
        table.headings_T2[rows_M] = headings_M2 + blend_M1 * (moved_M2 / elapsed_M1 - headings_M2)
        doubt_M1 = 1.0 + 25.0 * motion.doubt * np.square(1.0 - scores_M)[:, None]
        area_M1 = self._areas()[rows_M]
        noise_M2 = np.repeat(motion.measurement**2 * area_M1 * doubt_M1, 2, axis=1)
        measured_MP2 = np.stack((found.centres_N2[columns_M], found.sizes_N2[columns_M]), axis=1)
        if self._keypoints.count:
            self._continue_keypoints(rows_M, found.keypoints_NK2[columns_M], measured_MP2, noise_M2, area_M1)
        else:
            self._filters.update(rows_M, measured_MP2, noise_M2, None)
        table.detection_T[rows_M] = found.rows_N[columns_M]
        table.scores_T[rows_M] = scores_M
        table.hits_T[rows_M] += 1
        table.seen_s_T[rows_M] = self._clock.now_s
        table.boxes_T4[rows_M] = boxes_M4
        table.confirmed_T |= table.hits_T >= self.config.lifecycle.confirm_hits

    def _continue_keypoints(
        self, rows_M: Integers, keypoints_MK2: Floats, box_M22: Floats, box_noise_M2: Floats, area_M1: Floats
    ) -> None:
        filters, keypoints = self._filters, self._keypoints
        correction = keypoints.sort_out(filters, rows_M, keypoints_MK2, area_M1)
        box_valid = np.ones((len(rows_M), _FIRST_KEYPOINT), np.bool_)
        residual = keypoints_MK2 - filters.position_TP2[rows_M, _FIRST_KEYPOINT:]
        squared_MK = np.einsum("mka,mka->mk", residual, residual)
        self._sigmas.learn(self._table.classes_T[rows_M], squared_MK, area_M1, correction.accepted_MK)
        filters.update(
            rows_M,
            np.concatenate((box_M22, keypoints_MK2), axis=1),
            np.concatenate((box_noise_M2, correction.noise_MK), axis=1),
            np.concatenate((box_valid, correction.accepted_MK), axis=1),
        )
        keypoints.accept(filters, rows_M, keypoints_MK2, correction, self._clock.now_s)

    # ------------------------------------------------------------------ lifecycle

    def _forget(self) -> None:
        table, lifecycle = self._table, self.config.lifecycle
        unseen_s = self._clock.now_s - table.seen_s_T
        kept_T = unseen_s <= np.where(table.confirmed_T, lifecycle.lost_s, lifecycle.tentative_s) + _SAME_TIME_S
        if not kept_T.all():
            self._keep(kept_T)

    def _keep(self, kept_T: Booleans) -> None:
        self._table.keep(kept_T)
        self._filters.keep(kept_T)
        self._keypoints.keep(kept_T)

    def _found(self, found: Found, columns_M: Integers) -> None:
        """Begin tracks from the detections `columns_M`."""
        motion, lifecycle, now_s = self.config.motion, self.config.lifecycle, self._clock.now_s
        room = max(lifecycle.max_tracks - len(self._table), 0)
        columns_M = np.sort(columns_M[np.argsort(-found.scores_N[columns_M], kind="stable")[:room]])
        count = len(columns_M)
        sizes_M2, keypoints_MK2 = found.sizes_N2[columns_M], found.keypoints_NK2[columns_M]
        area_M1 = sizes_M2[:, :1] * sizes_M2[:, 1:]
        self._keypoints.append(keypoints_MK2, area_M1, now_s, self._clock.interval_s)
        learner = self._keypoints.learner
        first = len(self._table)
        covariance = np.zeros((3, count, _FIRST_KEYPOINT + self._keypoints.count))
        covariance[0, :, :_FIRST_KEYPOINT] = motion.measurement**2 * area_M1
        covariance[2, :, :_FIRST_KEYPOINT] = motion.speed**2 * area_M1
        covariance[0, :, _FIRST_KEYPOINT:] = learner.noise_TK[first:]
        covariance[2, :, _FIRST_KEYPOINT:] = learner.speed_variance()[first:]
        box_M22 = np.stack((found.centres_N2[columns_M], sizes_M2), axis=1)
        position_MP2 = np.concatenate((box_M22, keypoints_MK2), axis=1)
        self._filters.append(position_MP2, np.zeros_like(position_MP2), covariance)
        self._table.append(
            TrackTable(
                ids_T=np.arange(self._next_id, self._next_id + count),
                classes_T=found.classes_N[columns_M],
                scores_T=found.scores_N[columns_M],
                hits_T=np.ones(count, np.int64),
                confirmed_T=np.full(count, self._first_update or lifecycle.confirm_hits <= 1),
                born_s_T=np.full(count, now_s),
                seen_s_T=np.full(count, now_s),
                detection_T=found.rows_N[columns_M],
                boxes_T4=found.boxes_N4[columns_M],
                headings_T2=np.zeros((count, 2)),
            )
        )
        self._next_id += count

    # ------------------------------------------------------------------ output

    def _publish(self, ahead_s: float) -> Tracks:
        table, filters = self._table, self._filters
        unseen_s = self._clock.now_s - table.seen_s_T
        shown = (table.confirmed_T & (unseen_s <= self.config.lifecycle.coast_s + _SAME_TIME_S)).nonzero()[0]
        detection = table.detection_T[shown]
        measured = detection >= 0
        boxes = table.boxes_T4[shown]
        states = np.full(len(shown), int(TrackState.CONFIRMED))
        if not measured.all():
            coasting = ~measured
            states[coasting] = int(TrackState.COASTING)
            box_C22 = filters.position_TP2[shown[coasting], :_FIRST_KEYPOINT]
            centre_C2 = box_C22[:, _CENTRE] + ahead_s * filters.velocity_TP2[shown[coasting], _CENTRE]
            half_C2 = box_C22[:, _SIZE] * 0.5
            boxes[coasting] = np.concatenate((centre_C2 - half_C2, centre_C2 + half_C2), axis=1)
        caller_s = self._clock.caller_s
        return Tracks(
            (self._clock.now_s if caller_s is None else caller_s) + ahead_s,
            table.ids_T[shown],
            table.classes_T[shown],
            states,
            table.scores_T[shown],
            measured,
            detection,
            self._clock.now_s - table.born_s_T[shown],
            unseen_s[shown],
            boxes,
            *self._published_keypoints(shown, measured, ahead_s),
        )

    def _published_keypoints(
        self, shown: Integers, measured: Booleans, ahead_s: float
    ) -> tuple[Floats, Floats, Floats, Floats, Floats, Booleans, float]:
        """Raw, smoothed, predicted, velocity, covariance, measured, and the smoothing's lag."""
        keypoints, filters = self._keypoints, self._filters
        if not keypoints.count:
            points = np.empty((len(shown), 0, 2))
            none = np.empty((len(shown), 0), np.bool_)
            return points, points, points, points, np.empty((len(shown), 0, 3)), none, 0.0
        filtered = filters.position_TP2[shown, _FIRST_KEYPOINT:]
        velocity = filters.velocity_TP2[shown, _FIRST_KEYPOINT:]
        pp, pv, vv = filters.covariance_3TP[:, shown, _FIRST_KEYPOINT:]
        covariance = np.zeros((*filtered.shape[:2], 3))
        covariance[:, :, 0::2] = (pp + ahead_s * (2.0 * pv + ahead_s * vv))[..., None]
        raw = keypoints.raw_TK2[shown]
        raw[~measured] = np.nan
        lagged = filters.lagged_TP2[shown, _FIRST_KEYPOINT:]
        smoothed = keypoints.smoothing.smoothed(
            self._table.classes_T[shown], shown, raw, filtered, lagged, self._step_s
        )
        lag_s = keypoints.smoothing.lag_s(self.config.smoothing, self._step_s)
        return (
            raw, smoothed, filtered + ahead_s * velocity, velocity, covariance, keypoints.accepted_TK[shown], lag_s,
        )  # fmt: skip
