"""What the trainer does to memory."""

import subprocess
import sys

COUNT_FAULTS = """
import resource
import torch
from training.memory import keep_freed_memory
if {keep}:
    assert keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensors = [torch.ones(64 << 18) for _ in range(4)]  # 64 MiB each
    del tensors
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
for _ in range(10):  # the heap grows until it has room for all of them beside what else lies in it
    faults()
print(faults())
"""


def faults(keep: bool) -> int:
    """Page faults of the eleventh time that a process fills 256 MiB."""
    code = COUNT_FAULTS.format(keep=keep)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    return int(run.stdout)


def test_memory_that_was_freed_is_used_again_without_the_systems_help() -> None:
    assert faults(keep=False) > 100  # what is avoided; otherwise the next line would hold for nothing
    assert faults(keep=True) < 10
