"""Resources of each compiled kernel on a GPU: registers and spilled bytes per thread. No GPU is needed.

    python -m benchmarks.kernel_resources

One row per variant and architecture. If `nvdisasm` is installed, a row also has the number of machine instructions and
of loads. Every loop is unrolled, so these are the numbers that one thread executes. Rows go to
benchmarks/results/kernel_resources.json.
"""

import re
import shutil
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

from benchmarks._record import record
from engines.kernels import cuda, nvrtc

CAPABILITIES = ((7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0))
NETWORKS = {"swin-t": (8, 32, 4), "nano": (4, 32, 3)}
"""Heads, channels of a head, levels."""
_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4}\*/\s+(?:@!?U?P\d+\s+)?([A-Z0-9]+)", re.MULTILINE)


def instructions(cubin: bytes) -> Counter[str]:
    """Count the machine instructions of a cubin by name; empty if nvdisasm is not installed."""
    disassembler = shutil.which("nvdisasm")
    if disassembler is None:
        return Counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        text = subprocess.run([disassembler, "-c", str(path)], capture_output=True, text=True, check=True).stdout
    return Counter(_INSTRUCTION.findall(text))


def rows() -> list[dict[str, object]]:
    """Compile every variant for every architecture."""
    found: list[dict[str, object]] = []
    for network, (heads, depth, levels) in NETWORKS.items():
        for part, reference_size in (("encoder", 2), ("decoder", 4)):
            for dtype in cuda.VALUE_CODES:
                variant = cuda.Variant(dtype, heads, depth, levels, 4, reference_size)
                for capability in CAPABILITIES:
                    compiled = nvrtc.compile_source(cuda.SOURCE, variant.macros(), capability)
                    row: dict[str, object] = {
                        "case": f"{network} {part}, {str(dtype).removeprefix('torch.')}",
                        "architecture": f"sm_{capability[0]}{capability[1]}",
                        "registers": compiled.registers,
                        "spilled_bytes": compiled.spill_bytes,
                    }
                    counted = instructions(compiled.code)
                    if counted:
                        row |= {"instructions": counted.total(), "loads": counted["LDG"], "shuffles": counted["SHFL"]}
                    print(row, flush=True)
                    found.append(row)
    return found


if __name__ == "__main__":
    print(record("kernel_resources", rows()))
