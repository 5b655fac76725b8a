"""What torch-tensorrt would make of an exported program: for a process in which `activate` was called."""

from dataclasses import asdict, dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Conversion:
    """The partitioner's verdict: all of the graph in one engine means every field but the first two says so."""

    operators: int
    supported: int
    engines: int
    unsupported: dict[str, int]
    left_in_torch: list[str]

    def as_json(self) -> dict[str, object]:
        return asdict(self)


def dry_run(program: torch.export.ExportedProgram, inputs: tuple[Tensor, ...]) -> Conversion:
    """Partition a program without building anything."""
    import torch_tensorrt
    from torch_tensorrt.dynamo import _compiler

    verdicts = []
    display = _compiler.dryrun_stats_display
    _compiler.dryrun_stats_display = lambda tracker, enabled: verdicts.append(tracker)
    try:
        device = torch_tensorrt.Device("cuda:0")
        torch_tensorrt.dynamo.compile(program, inputs=list(inputs), device=device, min_block_size=1, dryrun=True)
    finally:
        _compiler.dryrun_stats_display = display
    (verdict,) = verdicts
    return Conversion(
        verdict.total_ops_in_graph,
        verdict.supported_ops_in_graph,
        verdict.tensorrt_graph_count,
        {str(name): count for name, count in verdict.unsupported_ops.items()},
        list(verdict.to_run_in_torch),
    )
