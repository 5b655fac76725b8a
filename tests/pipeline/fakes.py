"""An engine and sources without networks and cameras, for tests of the pipeline."""

import threading
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import numpy as np

from engines.detections import Detections
from engines.nv12 import Image, Nv12
from engines.prompts import PromptClass
from engines.skeletons import Skeleton
from pipeline.frames import Frame, now_ns
from pipeline.sources import Source

MUG = PromptClass("mug", Skeleton("mug", ("rim", "base", "handle"), edges=((0, 1), (1, 2))))
LAMP = PromptClass("lamp", Skeleton("lamp", ("bulb", "foot"), edges=((0, 1),)))


@dataclass(frozen=True)
class FakePending:
    """Detections that are there at `ready_s` of `time.monotonic`, or an error."""

    detections: list[Detections]
    ready_s: float
    error: Exception | None

    def result(self) -> list[Detections]:
        time.sleep(max(0.0, self.ready_s - time.monotonic()))
        if self.error is not None:
            raise self.error
        return self.detections


class FakeEngine:
    """Sees one mug per image, at a place that its mean brightness tells.

    Args:
        delay_s: how long an image takes, or a function that tells it from the number of the image.
        fail_at: number of the image (from 0) whose result is a RuntimeError.
        scores: of what is found in the first images; later ones score 0.9.
        batch: images per call.
        in_flight: calls that run at the same time.
        on_gpu: whether it says that it runs on a GPU.
        takes_nv12: whether it takes NV12 too; the mug is then where the mean luma says.
    """

    def __init__(
        self,
        delay_s: float | Callable[[int], float] = 0.0,
        fail_at: int | None = None,
        scores: Sequence[float] = (),
        batch: int = 1,
        in_flight: int = 1,
        on_gpu: bool = False,
        takes_nv12: bool = False,
    ) -> None:
        self.delay_s = delay_s
        self.fail_at = fail_at
        self._scores = scores
        self.batch = batch
        self.in_flight = in_flight
        self.on_gpu = on_gpu
        self.takes_nv12 = takes_nv12
        self.images = 0
        self.batches: list[int] = []
        self.thresholds: tuple[float, float] | None = None
        self.on_submit: Callable[[int], None] = lambda images: None
        self._prompts: tuple[PromptClass, ...] = ()
        self._prompt_id = 0
        self._lock = threading.Lock()

    def set_prompts(self, classes: Sequence[PromptClass]) -> int:
        with self._lock:
            self._prompt_id += 1
            self._prompts = tuple(classes)
            return self._prompt_id

    def set_thresholds(self, score_threshold: float, nms_iou: float) -> None:
        self.thresholds = (score_threshold, nms_iou)

    def submit(self, images: Sequence[Image]) -> FakePending:
        start_s = time.monotonic()
        self.batches.append(len(images))
        with self._lock:
            prompts, prompt_id = self._prompts, self._prompt_id
        results, longest_s, error = [], 0.0, None
        for image in images:
            if self.images == self.fail_at:
                error = RuntimeError("the engine broke")
            longest_s = max(longest_s, self.delay_s if isinstance(self.delay_s, float) else self.delay_s(self.images))
            self.on_submit(self.images)
            scores = self._scores[self.images : self.images + 1]
            self.images += 1
            results.append(
                seen(prompts, prompt_id, float((image.planes if isinstance(image, Nv12) else image).mean()), *scores)
            )
        return FakePending(results, start_s + longest_s, error)

    def close(self) -> None:
        """Nothing is held."""


def seen(prompts: tuple[PromptClass, ...], prompt_id: int, x: float, score: float = 0.9) -> Detections:
    """One object of each class, the mug `x` px from the left and all else 200 px farther, keypoints in a column."""
    slots = max(len(prompt.skeleton.keypoints) for prompt in prompts)
    places = [x if prompt == MUG else x + 200 for prompt in prompts]
    keypoints_NK2 = np.full((len(prompts), slots, 2), np.nan, np.float32)
    for row, (prompt, place) in enumerate(zip(prompts, places, strict=True)):
        count = len(prompt.skeleton.keypoints)
        keypoints_NK2[row, :count] = [(place, 10 + 20 * index) for index in range(count)]
    boxes_N4 = np.array([(place - 10, 0, place + 10, 60) for place in places], np.float32)
    scores_N, class_N = np.full(len(prompts), score, np.float32), np.arange(len(prompts))
    return Detections(boxes_N4, scores_N, class_N, keypoints_NK2, prompt_id, prompts)


class FakeSource(Source):
    """`count` grey frames, 64 x 48, a little brighter each up to the 30th, then darker, and so on.

    Args:
        live: whether the newest frame wins; `interval_s` between frames.
        error: raised after the frames.
        stills: unrelated pictures; those whose index is in `unreadable` have no pixels.
    """

    def __init__(
        self,
        count: int,
        name: str = "fake",
        *,
        live: bool = False,
        interval_s: float = 0.0,
        error: Exception | None = None,
        stills: bool = False,
        unreadable: Sequence[int] = (),
    ) -> None:
        super().__init__(name)
        self.count = count
        self.live = live
        self.frame_count = None if live else count
        self.fps = 30.0
        self.opened_by: threading.Thread | None = None
        self.closed_by: threading.Thread | None = None
        self._interval_s = interval_s
        self._error = error
        self._stills = stills
        self._unreadable = unreadable

    def __iter__(self) -> Generator[Frame]:
        self.opened_by = threading.current_thread()
        try:
            for index in range(self.count):
                if self._stopped.wait(self._interval_s) or self._stopped.is_set():
                    return
                yield self._frame(index)
            if self._error is not None:
                raise self._error
        finally:
            self.closed_by = threading.current_thread()

    def _frame(self, index: int) -> Frame:
        unix_ns, monotonic_ns = now_ns()
        readable = index not in self._unreadable
        return Frame(
            source=self.name,
            index=index,
            picture=np.full((48, 64, 3), 20 + min(index % 60, 60 - index % 60), np.uint8) if readable else None,
            pts_s=None if self._stills else index / 30,
            capture_unix_ns=unix_ns,
            capture_monotonic_ns=monotonic_ns,
            capture_clock="receipt" if self.live else "file",
            file=f"{index:03}.png" if self._stills else None,
            still=self._stills,
            error=None if readable else "damaged",
        )
