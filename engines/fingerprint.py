"""Hashes of everything in this package that can change a number of a compiled engine.

An engine is refused when one line of these files has changed. A comment counts as a change: building again costs
minutes, a wrong number costs trust.
"""

import hashlib
from pathlib import Path

import torch

PACKAGE = Path(__file__).resolve().parent
PARTS = {
    "network": ("xpose/*.py",),
    "export": ("export.py", "onnx_export.py", "build.py", "tensorrt_build.py", "fingerprint.py", "backends/*"),
    "precision": ("precision.py",),
    "preprocessing": ("preprocess.py", "nv12.py"),
    "prompts": ("prompts.py", "prompt_tensors.py", "clip.py", "coco.py", "skeletons.py", "visual_prompts.py"),
    "kernels": ("kernels/*",),
    "parity": ("parity.py", "parity/*"),
}
"""Which files belong to which part of the key, as patterns relative to the package."""
SUFFIXES = (".py", ".cpp", ".cu", ".h", ".png")


def files_of(part: str, package: Path = PACKAGE) -> list[Path]:
    """Return the files of one of `PARTS`, sorted."""
    found = {path for pattern in PARTS[part] for path in package.glob(pattern)}
    return sorted(path for path in found if path.suffix in SUFFIXES)


def sources_sha256(package: Path = PACKAGE) -> dict[str, str]:
    """Return a hash for each of `PARTS`, over the names and the bytes of its files."""
    hashes = {}
    for part in PARTS:
        digest = hashlib.sha256()
        for path in files_of(part, package):
            data = path.read_bytes()
            digest.update(f"{path.relative_to(package)} {len(data)}\n".encode() + data)
        hashes[part] = digest.hexdigest()
    return hashes


def driver_version() -> str:
    """Return the version of NVIDIA's driver, such as "580.95.05"; where Linux does not tell, CUDA's version of it."""
    try:
        return Path("/sys/module/nvidia/version").read_text().strip()
    except OSError:
        return f"CUDA {torch._C._cuda_getDriverVersion()}"  # type: ignore[attr-defined]
