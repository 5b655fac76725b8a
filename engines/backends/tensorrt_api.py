"""The one place that knows which TensorRT it talks to.

TensorRT 11 types every network strongly and its flag for that is the default; torch-tensorrt for TensorRT 10.15 and
later 10.x has to be asked for it.
"""

import importlib
import logging
from types import ModuleType
from typing import Any

from engines.errors import BackendError

_log = logging.getLogger(__name__)

OLDEST = (10, 15)
NEWEST_MAJOR = 11
INSTALL = (
    "install the CUDA build of torch 2.13.0, then "
    "`pip install torch-tensorrt==2.13.0 'tensorrt>=11.0,<11.1'` and `pip install 'xpose-stream[gpu]'`"
)


def import_tensorrt() -> ModuleType:
    """Return the module `tensorrt`.

    Raises:
        BackendError: it is not installed, or of a version that this code does not know.
    """
    try:
        trt = importlib.import_module("tensorrt")
    except ImportError as error:
        raise BackendError(
            f"TensorRT is not installed ({error}); on a machine with an NVIDIA GPU: {INSTALL}"
        ) from error
    version = version_of(trt)
    if version < OLDEST or version[0] > NEWEST_MAJOR:
        raise BackendError(
            f"TensorRT is {trt.__version__}; this code works with {'.'.join(map(str, OLDEST))} to {NEWEST_MAJOR}.x"
        )
    return trt


def import_torch_tensorrt() -> ModuleType:
    """Return the module `torch_tensorrt`, which building needs and running does not.

    Raises:
        BackendError: it is not installed.
    """
    try:
        return importlib.import_module("torch_tensorrt")
    except ImportError as error:
        raise BackendError(f"torch-tensorrt is not installed ({error}): {INSTALL}") from error


def version_of(trt: ModuleType) -> tuple[int, int]:
    """Return (major, minor)."""
    major, minor = str(trt.__version__).split(".")[:2]
    return int(major), int(minor)


def typing_options(trt: ModuleType) -> dict[str, Any]:
    """Return what torch-tensorrt must be told so that tensors keep the types that the exported graph gives them."""
    return {} if version_of(trt)[0] >= NEWEST_MAJOR else {"use_explicit_typing": True}


def logger(trt: ModuleType) -> Any:
    """Return a `tensorrt.ILogger` that writes to this module's logger."""
    levels = {
        trt.ILogger.Severity.INTERNAL_ERROR: logging.CRITICAL,
        trt.ILogger.Severity.ERROR: logging.ERROR,
        trt.ILogger.Severity.WARNING: logging.WARNING,
        trt.ILogger.Severity.INFO: logging.INFO,
        trt.ILogger.Severity.VERBOSE: logging.DEBUG,
    }

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)  # the binding refuses super().__init__

        def log(self, severity: Any, message: str) -> None:
            """Called by TensorRT, from any thread."""
            _log.log(levels[severity], "%s", message)

    return Logger()
