"""Engines of several prompt capacities behind one backend: prompts run on the smallest built engine that holds them.

`make_room` opens that engine, which takes seconds, on the thread that asks for new prompts, while frames go on through
the old one. `set_prompts` changes over between two frames. An engine is closed when no prompts need it any more.
"""

import dataclasses
import logging
import threading
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from engines.backends import Backend, PendingPoses
from engines.backends.slots import IN_FLIGHT
from engines.capacity import Capacity, capacities_for, capacity_for
from engines.engine_cache import CachedEngine, EngineCache, EngineKey
from engines.errors import BackendError, CapacityError, EngineCacheError
from engines.export import EngineShape
from engines.prompt_tensors import PromptTensors, size_of

_log = logging.getLogger(__name__)


class FittedBackend:
    """A compiled backend whose engines differ in capacity, and may take fewer images per call than wanted.

    Args:
        key: of the largest engine: its capacity holds all prompts, its batch is the most images per call.
        cache: where built engines are.
        open_engine: opens a built engine of a shape.
    Raises:
        EngineCacheError: none is built; the message names the command.
    """

    in_flight = IN_FLIGHT

    def __init__(
        self, key: EngineKey, cache: EngineCache, open_engine: Callable[[EngineShape, CachedEngine], Backend]
    ) -> None:
        self.input_hw = key.input_hw
        self._key, self._cache, self._open_engine = key, cache, open_engine
        self._most = Capacity(key.max_classes, key.max_keypoints)
        self._lock = threading.Lock()
        self._opened: dict[EngineShape, Backend] = {}
        self._wanted: EngineShape | None = None
        self._current: Backend | None = None
        if not any(cache.has(self._key_of(shape)) for shape in self._shapes(Capacity(1, 1))):
            try:
                cache.load(key)
            except EngineCacheError as error:
                raise EngineCacheError(
                    f"{error}; smaller numbers of classes and keypoints (1 and 17 for people) make a faster engine"
                ) from error

    @property
    def batch(self) -> int:
        """Most images per call of the engine in use."""
        return 1 if self._current is None else self._current.batch

    def make_room(self, prompts: PromptTensors) -> None:
        """Open the engine that `set_prompts` will change to. Any thread, one at a time.

        Raises:
            CapacityError: no built engine holds the prompts; the message names the command that builds one.
            BackendError: the engine cannot be opened.
        """
        shape, cached = self._smallest(size_of(prompts))
        with self._lock:
            self._wanted = shape
            if shape in self._opened:
                return
        backend = self._open_engine(shape, cached)
        backend.set_prompts(prompts)  # the first prompts capture graphs, which would hold up frames later
        with self._lock:
            self._opened[shape] = backend

    def set_prompts(self, prompts: PromptTensors) -> None:
        """Use these prompts, for which `make_room` was called, from the next call of `submit` on."""
        needed = size_of(prompts)
        with self._lock:
            shape = min((shape for shape in self._opened if _capacity_of(shape).holds(needed)), key=_cost)
            closing = [self._opened.pop(other) for other in list(self._opened) if other not in (shape, self._wanted)]
            self._current = self._opened[shape]
        self._current.set_prompts(prompts)
        for backend in closing:
            backend.close()

    def submit(self, images: Sequence[NDArray[np.uint8]]) -> PendingPoses:
        """Start work on 1 to `batch` RGB images [H, W, 3], or on NV12 if the engines take it."""
        if self._current is None:
            raise BackendError("no prompts are set: call set_prompts first")
        return self._current.submit(images)

    def close(self) -> None:
        """Wait for the frames in flight and close every engine."""
        with self._lock:
            for backend in self._opened.values():
                backend.close()
            self._opened.clear()
            self._current = None

    def _smallest(self, needed: Capacity) -> tuple[EngineShape, CachedEngine]:
        """Return the first engine that holds `needed` and is in order; warn if a smaller one would do."""
        best = self._key_of(EngineShape(self.input_hw, self._key.batch, *capacity_for(needed)))
        for shape in self._shapes(needed):
            if not self._cache.has(self._key_of(shape)):
                continue
            try:
                cached = self._cache.load(self._key_of(shape))
            except EngineCacheError as error:
                _log.warning("an engine is not used: %s", error)
                continue
            if _capacity_of(shape) != capacity_for(needed):
                _log.warning(
                    "prompts of %s run on an engine for %s, which computes all of these; for a faster one: %s",
                    needed, _capacity_of(shape), best.build_command(),
                )  # fmt: skip
            return shape, cached
        sentence = f"no {best.backend} engine that holds {needed} is built; build one with: {best.build_command()}"
        raise CapacityError(sentence, *needed)

    def _shapes(self, needed: Capacity) -> list[EngineShape]:
        """Every shape that may be built and holds `needed`: the cheapest capacity first, then the largest batch."""
        return [
            EngineShape(self.input_hw, batch, *capacity)
            for capacity in capacities_for(needed, self._most)
            for batch in range(self._key.batch, 0, -1)
        ]

    def _key_of(self, shape: EngineShape) -> EngineKey:
        return dataclasses.replace(
            self._key, batch=shape.batch, max_classes=shape.max_classes, max_keypoints=shape.max_keypoints
        )


def _capacity_of(shape: EngineShape) -> Capacity:
    return Capacity(shape.max_classes, shape.max_keypoints)


def _cost(shape: EngineShape) -> tuple[int, int]:
    return shape.max_keypoints, shape.max_classes
