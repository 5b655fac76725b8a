"""The tracker: turns detections into tracks with identity, motion and smoothed keypoints.

Legend: T tracks, N detections, M matches, K keypoints, P = 2 + K filtered points (box centre, box size, keypoints).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from trackers.association import Candidates, ValidDetections, associate
from trackers.coasting import certainty, coast, settle
from trackers.config import TrackerConfig
from trackers.intake import SMALLEST_PX, Clock, take_in
from trackers.kalman import ACCELERATION, PP, PV, VV, WALK, ConstantVelocityFilters
from trackers.keypoints import Keypoints
from trackers.sigmas import Sigmas
from trackers.table import TrackTable
from trackers.types import Booleans, Detections, Floats, Integers, Rows, Tracks, TrackState, holds_for_all

_LONGEST_HORIZON_S = 1.0  # predictions go no farther ahead than this
_CENTRE, _SIZE, _FIRST_KEYPOINT = 0, 1, 2
_SAME_TIME_S = 1e-9


class Tracker:
    """Multi-object tracker for one camera.

    Args:
        config: settings; the defaults are the tuned ones.
        sigmas: class index -> OKS sigmas of its keypoints, shape [K]. For other classes they are learned.
        frame_interval_s: usual frame interval until it is measured. It is used when the time goes backwards.
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
        drives = ((motion.centre_walk, motion.size_walk), (motion.centre_acceleration, motion.size_acceleration))
        self._box_drives_212 = np.array(drives)[:, None] ** 2
        self._clock = Clock(frame_interval_s)
        self._start_empty()

    def _start_empty(self) -> None:
        self._table = TrackTable.empty()
        self._filters = ConstantVelocityFilters(_FIRST_KEYPOINT)
        self._keypoints = Keypoints(self.config)
        self._step_s = 0.0
        self._first_update = True

    def reset(self) -> None:
        """End all tracks, for example at a cut or a new file. Identities are never used again."""
        self._clock = Clock(self._clock.interval_s)
        self._start_empty()

    def set_classes(self, keep: Mapping[int, int], sigmas: Mapping[int, NDArray[np.floating]]) -> None:
        """Change the classes: tracks of class `old` continue as class `keep[old]`, all others end.

        Keypoints start afresh, because the same index may now mean another joint.
        """
        self._sigmas = Sigmas(sigmas, self.config.association.default_sigma)
        table = self._table
        self._keep(np.isin(table.classes_T, list(keep)))
        table.classes_T = np.array([keep[int(old)] for old in table.classes_T], np.int64)
        self._filters = self._filters.resized(_FIRST_KEYPOINT)
        self._keypoints = Keypoints(self.config)
        self._keypoints.append(np.empty((len(table), 0, 2)), self._areas(), 0.0, 0.0)

    def update(self, detections: Detections, time_s: float) -> Tracks:
        """Update with the detections of one frame at `time_s` (s, any origin) and return the published tracks.

        Bad values raise nothing; trackers/README.md says what happens.
        """
        config, table = self.config, self._table
        self._step_s = self._clock.advance(time_s)
        given = 0 if detections.keypoints_NK2 is None else detections.keypoints_NK2.shape[1]
        if given > self._keypoints.count:
            self._keypoints.widen(given, self._areas(), self._clock.now_s, self._clock.interval_s)
            self._filters = self._filters.resized(_FIRST_KEYPOINT + given)
            self._drive_keypoints(slice(None))
        if self._step_s > config.lifecycle.lost_s:
            self._end_all()
        self._predict()
        valid = take_in(
            detections, self._keypoints.count, config.association.low_score, config.association.max_detections
        )
        table.detection_T = np.full(len(table), -1, np.int64)
        before_TK = self._keypoints.accepted_TK
        self._keypoints.accepted_TK = np.zeros_like(before_TK)
        starting_N = valid.scores_N >= config.association.new_score
        if len(table):
            matched = 0
            if len(valid.rows_N):
                rows_M, columns_M = associate(self._candidates(), valid, config.association)
                starting_N[columns_M] = False
                matched = len(rows_M)
                if matched:
                    self._continue(rows_M, columns_M, valid)
            self._coast(before_TK)
            if matched < len(table):
                self._forget()
        if np.count_nonzero(starting_N):
            self._start_tracks(valid, starting_N.nonzero()[0])
        self._first_update = False
        if self._keypoints.count:
            self._check_drift()
        return self._publish(0.0)

    def predict_to(self, time_s: float) -> Tracks:
        """Return the tracks of the last update with coasting boxes and predicted keypoints for `time_s`.

        This does not change the tracker. The prediction goes at most 1 s ahead. A time before the last update gives the
        last update.
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
        self._filters.predict(self._step_s)
        sizes_T2 = self._filters.position_TP2[:, _SIZE]
        np.maximum(sizes_T2, SMALLEST_PX, out=sizes_T2)

    def _candidates(self) -> Candidates:
        table, filters = self._table, self._filters
        return Candidates(
            filters.position_TP2[:, _CENTRE],
            filters.position_TP2[:, _SIZE],
            filters.velocity_TP2[:, _CENTRE],
            table.headings_T2,
            table.centres_T2,
            table.scores_T,
            table.classes_T,
            table.confirmed_T,
            self._clock.now_s - table.seen_s_T <= self._step_s + _SAME_TIME_S,
            filters.position_TP2[:, _FIRST_KEYPOINT:],
            self._sigmas.of(table.classes_T, self._keypoints.count),
        )

    def _continue(self, rows_M: Integers, columns_M: Integers, valid: ValidDetections) -> None:
        """Update matched tracks with their detections."""
        table, motion, now_s = self._table, self.config.motion, self._clock.now_s
        rows: Rows = rows_M
        if len(rows_M) == len(table):
            columns_M, rows = columns_M[np.argsort(rows_M)], slice(None)
        scores_M, centres_M2, sizes_M2 = (
            valid.scores_N[columns_M],
            valid.centres_N2[columns_M],
            valid.sizes_N2[columns_M],
        )
        self._turn(rows, centres_M2)
        area_M1 = self._areas()[rows]
        variance_M1 = motion.measurement**2 * area_M1
        doubt_M = 1.0 - scores_M
        variance_M1 = variance_M1 * (1.0 + 25.0 * motion.doubt * doubt_M * doubt_M)[:, None]
        measured_MP2 = np.concatenate((centres_M2[:, None], sizes_M2[:, None]), axis=1)
        if self._keypoints.count:
            self._continue_keypoints(rows, valid.keypoints_NK2[columns_M], measured_MP2, variance_M1, area_M1)
        else:
            self._filters.update(rows, measured_MP2, variance_M1, None)
        self._filters.variance_5TP[WALK:, rows, :_FIRST_KEYPOINT] = self._box_drives_212 * area_M1
        table.detection_T[rows] = valid.rows_N[columns_M]
        table.scores_T[rows] = scores_M
        table.hits_T[rows] += 1
        table.seen_s_T[rows] = now_s
        table.boxes_T4[rows] = valid.boxes_N4[columns_M]
        table.confirmed_T |= table.hits_T >= self.config.lifecycle.confirm_hits

    def _turn(self, rows: Rows, centres_M2: Floats) -> None:
        """Update the observed velocities of the boxes' centres."""
        table = self._table
        elapsed_M = np.maximum(self._clock.now_s - table.seen_s_T[rows], 1e-6)
        blend_M = 1.0 - np.exp(elapsed_M / -max(self.config.motion.heading_s, 1e-6))
        blend_M[table.hits_T[rows] == 1] = 1.0
        headings_M2 = table.headings_T2[rows]
        observed_M2 = (centres_M2 - table.centres_T2[rows]) / elapsed_M[:, None]
        table.headings_T2[rows] = headings_M2 + blend_M[:, None] * (observed_M2 - headings_M2)
        table.centres_T2[rows] = centres_M2

    def _continue_keypoints(
        self, rows: Rows, keypoints_MK2: Floats, box_M22: Floats, box_variance_M1: Floats, area_M1: Floats
    ) -> None:
        filters, keypoints = self._filters, self._keypoints
        residual_MK2 = keypoints_MK2 - filters.position_TP2[rows, _FIRST_KEYPOINT:]
        variance_MK = filters.variance_5TP[PP, rows, _FIRST_KEYPOINT:]
        sizes_M2 = filters.position_TP2[rows, _SIZE]
        elapsed_M1 = (self._clock.now_s - self._table.seen_s_T[rows])[:, None]
        noise = self.config.noise
        reach_M1 = (noise.gate_size + noise.gate_speed * elapsed_M1) * sizes_M2.max(axis=1, keepdims=True)
        correction = keypoints.sort_out(residual_MK2, variance_MK, rows, keypoints_MK2, reach_M1)
        self._sigmas.learn(self._table.classes_T[rows], correction.squared_MK, area_M1, correction.accepted_MK)
        count = len(keypoints_MK2)
        noise_MP = np.empty((count, _FIRST_KEYPOINT + keypoints.count))
        noise_MP[:, :_FIRST_KEYPOINT] = box_variance_M1
        noise_MP[:, _FIRST_KEYPOINT:] = correction.noise_MK
        valid_MP = np.ones(noise_MP.shape, np.bool_)
        valid_MP[:, _FIRST_KEYPOINT:] = correction.accepted_MK
        valid_MP[:, :_FIRST_KEYPOINT] = ~correction.torn_M[:, None]
        filters.update(rows, np.concatenate((box_M22, keypoints_MK2), axis=1), noise_MP, valid_MP)
        keypoints.accept(filters, rows, keypoints_MK2, correction, self._clock.now_s)

    def _coast(self, before_TK: Booleans) -> None:
        """Let keypoints that this update did not measure follow their boxes, from where they were before.

        Args:
            before_TK: keypoints that the update before measured.
        """
        filters, keypoints, config = self._filters, self._keypoints, self.config.coasting
        if holds_for_all(keypoints.accepted_TK):
            return
        coasting_TK = ~keypoints.accepted_TK & ~np.isnan(filters.position_TP2[:, _FIRST_KEYPOINT:, 0])
        rows = np.flatnonzero(coasting_TK.any(axis=1))
        if not len(rows):
            return
        position, velocity = filters.before_position_TP2[rows], filters.before_velocity_TP2[rows]
        speed_variance = filters.variance_5TP[VV, rows, _FIRST_KEYPOINT:]
        certainty_MK = np.where(before_TK[rows], certainty(position, velocity, speed_variance, config), 1.0)
        position, velocity = coast(position, velocity, certainty_MK, self._step_s, config)
        match, keypoint = coasting_TK[rows].nonzero()
        at = (rows[match], _FIRST_KEYPOINT + keypoint)
        filters.position_TP2[at] = position[match, _FIRST_KEYPOINT + keypoint]
        filters.velocity_TP2[at] = velocity[match, _FIRST_KEYPOINT + keypoint]
        filters.variance_5TP[PP][at] = (
            filters.before_variance_TP[at] + self._drift(rows, -self._step_s)[match, keypoint]
        )
        filters.variance_5TP[PV][at] = 0.0

    def _drift(self, rows: Rows, time_s: float) -> Floats:
        """Growth (px²) of the variance of coasting keypoints between now and `time_s` later, or earlier if negative."""
        keypoints = self._keypoints
        unseen_s_MK = self._clock.now_s - keypoints.learner.measured_s_TK[rows]
        learner = keypoints.learner
        variance_MK = keypoints.drift.variance(rows, learner.acceleration_TK[rows], learner.noise_TK[rows])
        growth_MK = np.abs(keypoints.drift.growth(unseen_s_MK + time_s) - keypoints.drift.growth(unseen_s_MK))
        return np.asarray(variance_MK * growth_MK / keypoints.scale.of(rows))

    def _check_drift(self) -> None:
        filters, keypoints = self._filters, self._keypoints
        variance_TK, _, speed_variance_TK = filters.variance_5TP[:3, :, _FIRST_KEYPOINT:]
        keypoints.drift.check(
            filters.position_TP2,
            filters.velocity_TP2,
            speed_variance_TK,
            variance_TK * keypoints.scale.of(slice(None)),
            keypoints.accepted_TK,
            self._clock.now_s,
        )

    def _drive_keypoints(self, rows: Rows) -> None:
        """Set the variances of new keypoints from the prior."""
        variance_5TP, learner = self._filters.variance_5TP, self._keypoints.learner
        variance_5TP[PP, rows, _FIRST_KEYPOINT:] = learner.noise_TK[rows]
        variance_5TP[PV, rows, _FIRST_KEYPOINT:] = 0.0
        variance_5TP[VV, rows, _FIRST_KEYPOINT:] = learner.speed_variance()[rows]
        variance_5TP[WALK, rows, _FIRST_KEYPOINT:] = 0.0
        variance_5TP[ACCELERATION, rows, _FIRST_KEYPOINT:] = learner.acceleration_TK[rows]

    # ------------------------------------------------------------------ lifecycle

    def _forget(self) -> None:
        table, lifecycle = self._table, self.config.lifecycle
        unseen_s = self._clock.now_s - table.seen_s_T
        kept_T = unseen_s <= np.where(table.confirmed_T, lifecycle.lost_s, lifecycle.tentative_s) + _SAME_TIME_S
        if not holds_for_all(kept_T):
            self._keep(kept_T)

    def _end_all(self) -> None:
        """End all tracks after a jump in time. The next detections are confirmed at once, as in the first update."""
        self._keep(np.zeros(len(self._table), np.bool_))
        self._first_update = True

    def _keep(self, kept_T: Booleans) -> None:
        self._table.keep(kept_T)
        self._filters.keep(kept_T)
        self._keypoints.keep(kept_T)

    def _start_tracks(self, valid: ValidDetections, columns_M: Integers) -> None:
        """Start tracks from the detections `columns_M`."""
        motion, lifecycle, now_s = self.config.motion, self.config.lifecycle, self._clock.now_s
        room = max(lifecycle.max_tracks - len(self._table), 0)
        columns_M = np.sort(columns_M[np.argsort(-valid.scores_N[columns_M], kind="stable")[:room]])
        count = len(columns_M)
        sizes_M2, keypoints_MK2 = valid.sizes_N2[columns_M], valid.keypoints_NK2[columns_M]
        area_M1 = sizes_M2[:, :1] * sizes_M2[:, 1:]
        self._keypoints.append(keypoints_MK2, area_M1, now_s, self._clock.interval_s)
        box_M22 = np.stack((valid.centres_N2[columns_M], sizes_M2), axis=1)
        position_MP2 = np.concatenate((box_M22, keypoints_MK2), axis=1)
        variance = np.zeros((5, *position_MP2.shape[:2]))
        variance[PP] = motion.measurement**2 * area_M1
        variance[VV] = motion.speed**2 * area_M1
        variance[WALK:, :, :_FIRST_KEYPOINT] = self._box_drives_212 * area_M1
        self._filters.append(position_MP2, np.zeros_like(position_MP2), variance)
        self._drive_keypoints(slice(len(self._table), None))
        self._table.append(
            TrackTable(
                ids_T=np.arange(self._next_id, self._next_id + count),
                classes_T=valid.classes_N[columns_M],
                scores_T=valid.scores_N[columns_M],
                hits_T=np.ones(count, np.int64),
                confirmed_T=np.full(count, self._first_update or lifecycle.confirm_hits <= 1),
                born_s_T=np.full(count, now_s),
                seen_s_T=np.full(count, now_s),
                detection_T=valid.rows_N[columns_M],
                boxes_T4=valid.boxes_N4[columns_M],
                centres_T2=valid.centres_N2[columns_M],
                headings_T2=np.zeros((count, 2)),
            )
        )
        self._next_id += count

    # ------------------------------------------------------------------ output

    def _publish(self, ahead_s: float) -> Tracks:
        table = self._table
        unseen_s_T = self._clock.now_s - table.seen_s_T
        shown_T = table.confirmed_T & (unseen_s_T <= self.config.lifecycle.coast_s + _SAME_TIME_S)
        shown = shown_T.nonzero()[0]
        detection = table.detection_T[shown]
        measured = detection >= 0
        now, velocity = self._state_ahead(shown, measured, 0.0)
        ahead = now
        if ahead_s:
            ahead, velocity = self._state_ahead(shown, measured, ahead_s)
        boxes = table.boxes_T4[shown]
        states = np.full(len(shown), int(TrackState.CONFIRMED))
        if not holds_for_all(measured):
            coasting = ~measured
            states[coasting] = int(TrackState.COASTING)
            box_C22 = ahead[coasting, :_FIRST_KEYPOINT]
            centre_C2, half_C2 = box_C22[:, _CENTRE], box_C22[:, _SIZE] * 0.5
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
            unseen_s_T[shown],
            boxes,
            *self._published_keypoints(shown, measured, now[:, _FIRST_KEYPOINT:], ahead[:, _FIRST_KEYPOINT:]),
            velocity[:, _FIRST_KEYPOINT:],
            self._published_covariance(shown, ahead_s),
            self._keypoints.accepted_TK[shown],
            self._keypoints.smoothing.lag_s(self.config.smoothing, self._step_s) if self._keypoints.count else 0.0,
        )

    def _state_ahead(self, shown: Integers, measured: Booleans, ahead_s: float) -> tuple[Floats, Floats]:
        """Positions and velocities of all points of the tracks `shown`, `ahead_s` after the last update."""
        filters, config = self._filters, self.config.coasting
        position, velocity = filters.position_TP2[shown], filters.velocity_TP2[shown]
        if ahead_s:
            speed_variance = filters.variance_5TP[VV, shown, _FIRST_KEYPOINT:]
            fresh_MK = self._keypoints.accepted_TK[shown]
            certainty_MK = np.where(fresh_MK, certainty(position, velocity, speed_variance, config), 1.0)
            position, moved = coast(position, velocity, certainty_MK, ahead_s, config)
            velocity = np.where(measured[:, None, None], velocity, moved)
        if not holds_for_all(measured):
            idle = ~measured
            unseen_s = self._clock.now_s - self._table.seen_s_T[shown[idle]] + ahead_s
            position[idle], velocity[idle] = settle(position[idle], velocity[idle], unseen_s, config)
        return position, velocity

    def _published_keypoints(
        self, shown: Integers, measured: Booleans, now: Floats, ahead: Floats
    ) -> tuple[Floats, Floats, Floats]:
        """Raw, smoothed and predicted keypoints, from those `now` and those at the time asked for."""
        keypoints, filters = self._keypoints, self._filters
        if not keypoints.count:
            return now, now, now
        raw = keypoints.raw_TK2[shown]
        raw[~measured] = np.nan
        lagged = filters.lagged_TP2[shown, _FIRST_KEYPOINT:]
        if not holds_for_all(measured):
            lagged += now - filters.position_TP2[shown, _FIRST_KEYPOINT:]
        classes = self._table.classes_T[shown]
        return raw, keypoints.smoothing.smoothed(classes, shown, raw, now, lagged, self._step_s), ahead

    def _published_covariance(self, shown: Integers, ahead_s: float) -> Floats:
        """Covariances (xx, xy, yy) of the predicted keypoints."""
        if not self._keypoints.count:
            return np.empty((len(shown), 0, 3))
        variance = self._filters.variance_5TP[PP, shown, _FIRST_KEYPOINT:]
        if ahead_s:
            variance = variance + self._drift(shown, ahead_s)
        covariance = np.zeros((*variance.shape, 3))
        covariance[:, :, 0::2] = (variance * self._keypoints.scale.of(shown))[..., None]
        covariance[np.isnan(self._filters.position_TP2[shown, _FIRST_KEYPOINT:, 0])] = np.nan
        return covariance
