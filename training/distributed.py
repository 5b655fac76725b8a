"""Training in several processes (torchrun). Each draws its own canvases; gradients are averaged; process 0 writes.

It uses collectives directly instead of `DistributedDataParallel`, because the objective does not call `forward`.
"""

import os
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch import distributed as dist


class Processes:
    """The rank of this process and its device: a GPU of its own if there is one.

    A single process needs no torchrun and does not communicate.
    """

    def __init__(self) -> None:
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        self.device = torch.device("cpu")
        if torch.cuda.is_available():
            self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            torch.cuda.set_device(self.device)
        if self.size > 1:
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo")

    def mean(self, value: float) -> float:
        """Return the average of a number over the processes."""
        if self.size == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return float(total) / self.size

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Average the gradients in one flat tensor. A parameter that this process did not use counts as zero."""
        if self.size == 1:
            return
        kept = [parameter for parameter in parameters if parameter.requires_grad]
        gradients: list[Tensor] = [p.grad if p.grad is not None else torch.zeros_like(p) for p in kept]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.size
        for parameter, part in zip(kept, torch.split(flat, [g.numel() for g in gradients]), strict=True):
            parameter.grad = part.view_as(parameter)

    def close(self) -> None:
        """Leave the group."""
        if self.size > 1:
            dist.destroy_process_group()
