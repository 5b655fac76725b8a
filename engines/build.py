"""Compile an engine, measure it against PyTorch in pixels, and keep it only if it agrees."""

import copy
import dataclasses
import hashlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engines import parity
from engines.backends import Backend, openvino
from engines.backends.eager import EagerBackend
from engines.engine_cache import CachedEngine, EngineCache, EngineKey
from engines.errors import BackendError, EngineCacheError
from engines.export import EngineShape, export
from engines.fingerprint import driver_version, sources_sha256
from engines.kernels import nvrtc
from engines.onnx_export import export_onnx
from engines.prompt_tensors import PromptTensors
from engines.xpose import XPose

_log = logging.getLogger(__name__)

COMPILED = ("tensorrt", "openvino")
"""Backends that need a built engine, the fastest first."""


@dataclass(frozen=True)
class BuildRequest:
    """What to build.

    Attributes:
        backend: "tensorrt" or "openvino".
        name: of the network: "nano", "swin-t" or "swin-l".
        shape: fixed sizes.
        precision: "fp32", "fp16", "bf16", or "auto": fp32, and for OpenVINO whatever the build finds best.
        device: where it will run.
    """

    backend: str
    name: str
    shape: EngineShape
    precision: str
    device: torch.device

    def for_backend(self, backend: str) -> "BuildRequest":
        """Return the same request for another backend. Only OpenVINO's builds choose a precision."""
        chosen = "fp32" if self.precision == "auto" and backend != "openvino" else self.precision
        return dataclasses.replace(self, backend=backend, precision=chosen)

    def key(self, model: XPose) -> EngineKey:
        """Return the cache key of the engine of `model`, as loaded, on this machine."""
        return EngineKey(
            backend=self.backend,
            model=self.name,
            weights_sha256=network_sha256(model),
            network=dataclasses.asdict(model.config),
            **dataclasses.asdict(self.shape),
            precision=self.precision,
            sources=sources_sha256(),
            toolchain=toolchain(self.backend, self.device, self.precision),
        )


def network_sha256(model: XPose) -> str:
    """Hash names, dtypes, shapes and bytes of the network's tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def toolchain(backend: str, device: torch.device, precision: str) -> dict[str, str]:
    """Return the versions and the machine's traits that an engine depends on.

    Raises:
        BackendError: this machine lacks what the backend needs; the message says what to install.
    """
    if backend not in COMPILED:
        raise BackendError(f"engines are built for {' or '.join(COMPILED)}, not for {backend!r}")
    if backend == "openvino":
        return openvino.toolchain(device, precision)
    from engines.backends.tensorrt import toolchain as tensorrt_toolchain

    return {**tensorrt_toolchain(device), "nvrtc": nvrtc.version(), "driver": driver_version()}


def precision_of(request: BuildRequest, cached: CachedEngine) -> str:
    """Return the precision that a built engine computes in: the requested one, or the one that its build chose."""
    return str(cached.manifest["figures"]["precision"]) if request.precision == "auto" else request.precision


def open_engine(request: BuildRequest, cached: CachedEngine, model: XPose, *, side_by_side: bool = True) -> Backend:
    """Load a built engine.

    Args:
        model: the float32 network, which encodes the prompts.
        side_by_side: False: an engine of OpenVINO runs one image at a time, and opens sooner.
    """
    if request.backend == "openvino":
        precision = precision_of(request, cached)
        return openvino.OpenVinoBackend(cached.path, model, request.shape, precision, side_by_side=side_by_side)
    from engines.backends.tensorrt import TensorRTBackend

    return TensorRTBackend(cached.path, model, request.shape, request.device)


def build_engine(
    model: XPose,
    prompts: PromptTensors,
    request: BuildRequest,
    cache: EngineCache,
    progress: Callable[[str], None] = lambda step: None,
) -> CachedEngine:
    """Export, compile, compare and store; an engine that is there already is returned as it is.

    Args:
        model: the network with its weights, in float32.
        prompts: what the parity gate looks for in the bundled images.
        progress: told each step as it begins.
    Raises:
        BackendError: this machine cannot build it; the message says what to install.
        EngineCacheError: it fails the parity gate, or the cache cannot be written; nothing is left behind.
    """
    key = request.key(model)

    def compile_to(path: Path) -> dict[str, Any]:
        started = time.monotonic()
        if request.backend == "openvino":
            progress("exporting the network")  # OpenVINO compiles what it opens
            network, whole = copy.deepcopy(model).eval().requires_grad_(False), openvino.operators() is not None
            path.write_bytes(export_onnx(network, request.shape.input_hw, whole_operators=whole))
        else:
            progress("tracing the network")
            program = export(copy.deepcopy(model).to(request.device), request.shape, request.precision)
            progress(f"compiling with {request.backend}")
            _compile(request, program, path)
        seconds = time.monotonic() - started
        progress("comparing with PyTorch")
        return {"build_s": round(seconds, 1), **_pass_parity(model, prompts, request, CachedEngine(path, {}))}

    return cache.build(key, f"engine.{'plan' if request.backend == 'tensorrt' else 'onnx'}", compile_to)


def _compile(request: BuildRequest, program: torch.export.ExportedProgram, path: Path) -> None:
    from engines.tensorrt_build import compile_program

    compile_program(program, path, request.device)


def _pass_parity(model: XPose, prompts: PromptTensors, request: BuildRequest, built: CachedEngine) -> dict[str, Any]:
    """Compare the engine with PyTorch; return the figures and the precision that they belong to.

    An OpenVINO engine is compared in fp32 first. bf16 rounds coordinates so much that its limits cannot tell a slightly
    broken network from a right one; the same file in fp32 can.

    Raises:
        EngineCacheError: it differs too much in fp32, or in the requested precision.
    """
    if request.backend != "openvino":
        return {"precision": request.precision, **_compare(model, prompts, request, built, request.precision)}
    found = {"precision": "fp32", **_compare(model, prompts, request, built, "fp32")}
    if request.precision == "fp32" or not openvino.is_fast_in_bfloat16():
        return found
    try:
        return {"precision": "bf16", **_compare(model, prompts, request, built, "bf16", parity.BF16_EVERYWHERE)}
    except EngineCacheError as error:
        if request.precision == "bf16":
            raise
        _log.warning("OpenVINO computes in fp32, since in bf16 %s", error)
        return found


def _compare(
    model: XPose,
    prompts: PromptTensors,
    request: BuildRequest,
    built: CachedEngine,
    precision: str,
    limits: str | None = None,
) -> dict[str, float]:
    reference = EagerBackend(copy.deepcopy(model), request.shape.input_hw, 1, "fp32", request.device)
    wanted = dataclasses.replace(request, precision=precision)
    compiled = open_engine(wanted, built, copy.deepcopy(model), side_by_side=False)
    try:
        figures = parity.measure(reference, compiled, prompts, parity.bundled_images())
        return parity.check(figures, limits or precision)
    finally:
        compiled.close()
