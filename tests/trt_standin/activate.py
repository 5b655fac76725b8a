"""Makes `import tensorrt` and `import torch_tensorrt` work in a process started by `tests.trt_standin`."""

import contextlib
import importlib.machinery
import os
import sys
import types
from typing import Any

import torch

CAPABILITY = (9, 0)  # of the pretended GPU
_HIDDEN = ("libtorchtrt.so", "libtorchtrt_runtime.so")  # they need PyTorch's CUDA build


def activate() -> None:
    """Pretend a GPU to torch-tensorrt, and put the bindings and the stand-in where `tensorrt` is looked for."""
    really_a_file = os.path.isfile
    os.path.isfile = lambda path: not str(path).endswith(_HIDDEN) and really_a_file(path)
    pretended: dict[str, Any] = {
        "get_device_capability": lambda *_, **__: CAPABILITY,
        "current_device": lambda: 0,
        "get_device_name": lambda *_, **__: "offline",
        "mem_get_info": lambda *_, **__: (80 << 30, 80 << 30),
        "empty_cache": lambda: None,
        "synchronize": lambda *_, **__: None,
        "device": lambda *_: contextlib.nullcontext(),
    }
    for name, function in pretended.items():
        setattr(torch.cuda, name, function)
    if not hasattr(torch._C, "_CudaDeviceProperties"):
        torch._C._CudaDeviceProperties = type("_CudaDeviceProperties", (), {})  # type: ignore[misc,attr-defined]
    _install_standin(_alias_bindings())


def _alias_bindings() -> types.ModuleType:
    """Make `tensorrt`, which is a thin package over `tensorrt_bindings` and comes only together with the builder."""
    import tensorrt_bindings

    package = types.ModuleType("tensorrt")
    package.__dict__.update({key: value for key, value in vars(tensorrt_bindings).items() if not key.startswith("__")})
    package.__version__ = tensorrt_bindings.__version__  # type: ignore[attr-defined]
    package.__file__ = tensorrt_bindings.__file__
    package.__path__ = list(tensorrt_bindings.__path__)
    package.__spec__ = importlib.machinery.ModuleSpec("tensorrt", None, is_package=True)
    package.__spec__.submodule_search_locations = package.__path__
    sys.modules["tensorrt"] = package

    import tensorrt_bindings.plugin

    package.plugin = tensorrt_bindings.plugin  # type: ignore[attr-defined]
    for name, module in list(sys.modules.items()):
        if name.startswith("tensorrt_bindings."):
            sys.modules["tensorrt." + name.split(".", 1)[1]] = module
    return package


def _install_standin(package: types.ModuleType) -> None:
    """Put the stand-in in the place of the builder, of what it takes, and of the runtime that loads its plans."""
    from tests.trt_standin import layer, network, pointwise

    standin = {
        "Builder": network.Builder,
        "Runtime": network.Runtime,
        "ITensor": layer.Tensor,
        "Weights": pointwise.Weights,
    }
    package.__dict__.update(standin)
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in ("tensorrt", "tensorrt_bindings"):
            module.__dict__.update({key: value for key, value in standin.items() if hasattr(module, key)})
