"""Open the backend that was asked for, or the first of tensorrt, openvino and eager that this machine has."""

import dataclasses
import logging
from collections.abc import Callable
from typing import NamedTuple

from engines.backends import Backend
from engines.backends.fitted import FittedBackend
from engines.backends.openvino import runs_side_by_side
from engines.build import COMPILED, BuildRequest, open_engine, precision_of
from engines.engine_cache import CachedEngine, EngineCache
from engines.errors import BackendError, EngineCacheError
from engines.xpose import XPose

_log = logging.getLogger(__name__)


class OpenedBackend(NamedTuple):
    """A backend, what it is called, and the precision that it computes in."""

    name: str
    backend: Backend
    precision: str


BACKENDS = ("auto", *COMPILED, "eager")


def open_backend(
    name: str,
    model: XPose,
    request: BuildRequest | None,
    cache: EngineCache,
    eager: Callable[[], OpenedBackend],
    build: Callable[[BuildRequest], CachedEngine] | None = None,
) -> OpenedBackend:
    """Open the backend `name`; "auto" says in the log which one it takes and why.

    An engine that this machine could run and that is not built, or is refused, is a warning with the command to build
    it: without it the network runs slower.

    Args:
        name: one of `BACKENDS`.
        model: the network in float32, as loaded.
        request: the largest engine of this configuration, whatever its backend; None where the input size follows
            each image, which a compiled engine cannot. TensorRT also takes smaller ones (`engines.backends.fitted`).
        cache: where built engines are.
        eager: opens the backend that needs nothing built.
        build: builds an engine that is missing and takes seconds only; None: nothing is built.
    Raises:
        BackendError: the one that was asked for cannot run here.
        EngineCacheError: its engine is not built, or is refused.
    """
    if name not in BACKENDS:
        raise BackendError(f"backend is {name!r}; allowed are {', '.join(BACKENDS)}")
    if name == "eager":
        return eager()
    if name in COMPILED:
        return _open_compiled(name, model, request, cache, build)
    reasons = []
    for compiled in COMPILED:
        try:
            opened = _open_compiled(compiled, model, request, cache, build)
        except BackendError as error:
            reasons.append(f"{compiled}: {str(error).partition(';')[0]}")
        except EngineCacheError as error:
            _log.warning("backend %s is not used: %s", compiled, error)
            reasons.append(f"{compiled}: no engine")
        else:
            why = f" ({'; '.join(reasons)})" if reasons else ""
            _log.info("backend %s in %s%s", compiled, opened.precision, why)
            return opened
    _log.info("backend eager (%s)", "; ".join(reasons))
    return eager()


def _open_compiled(
    name: str,
    model: XPose,
    request: BuildRequest | None,
    cache: EngineCache,
    build: Callable[[BuildRequest], CachedEngine] | None,
) -> OpenedBackend:
    if request is None:
        raise BackendError("a compiled engine has a fixed input size; add --set engine.resize=letterbox")
    wanted = request.for_backend(name)
    key = wanted.key(model)
    if name == "tensorrt":
        fitted = FittedBackend(
            key, cache, lambda shape, cached: open_engine(dataclasses.replace(wanted, shape=shape), cached, model)
        )
        return OpenedBackend(name, fitted, wanted.precision)
    try:
        cached = cache.load(key)
    except EngineCacheError:
        if build is None or not _builds_in_seconds(wanted):
            raise
        _log.info("building the engine of %s for this processor, which is done once", wanted.name)
        cached = build(wanted)
    return OpenedBackend(name, open_engine(wanted, cached, model), precision_of(wanted, cached))


def _builds_in_seconds(request: BuildRequest) -> bool:
    """Whether an engine is built on first use; others need the command `build-engine`."""
    return request.backend == "openvino" and runs_side_by_side(request.shape.input_hw)
