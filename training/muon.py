"""Muon as in PyTorch, but it batches matrices of one shape and computes products in a chosen precision.

PyTorch's Muon processes one matrix after another and multiplies in bf16. So a GPU mostly waits for kernel launches, and
a processor without bf16 instructions is many times slower than with float32.

Legend: N matrices of one shape, with H rows and W columns; tall ones are transposed, so that H <= W.
"""

import math
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn


class Muon(torch.optim.Muon):
    """Same steps as `torch.optim.Muon` with `adjust_lr_fn="match_rms_adamw"`; loads its states.

    Args:
        groups: parameter groups; matrices only.
        product_dtype: dtype of the products that orthogonalise an update.
        momentum: momentum of the gradients.
        weight_decay: decoupled weight decay, as in AdamW.

    Source: arXiv:2502.16982, 2.2.
    """

    def __init__(
        self, groups: list[dict[str, Any]], product_dtype: torch.dtype, momentum: float, weight_decay: float
    ) -> None:
        super().__init__(groups, lr=1.0, weight_decay=weight_decay, momentum=momentum, adjust_lr_fn="match_rms_adamw")
        self._product_dtype = product_dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Apply the gradients."""
        for group in self.param_groups:
            alike = defaultdict[tuple[int, int], list[nn.Parameter]](list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    height, width = parameter.shape
                    alike[min(height, width), max(height, width)].append(parameter)
            for parameters in alike.values():
                self._step_together(group, parameters)

    def _step_together(self, group: dict[str, Any], parameters: list[nn.Parameter]) -> None:
        update_NHW = torch.stack([_lay(self._momentum(group, parameter)) for parameter in parameters])
        orthogonal_NHW = _orthogonalise(update_NHW.to(self._product_dtype), group)
        rate = group["lr"] * 0.2 * math.sqrt(update_NHW.shape[2])
        for parameter, orthogonal_HW in zip(parameters, orthogonal_NHW.to(update_NHW.dtype), strict=True):
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.sub_(orthogonal_HW if _is_wide(parameter) else orthogonal_HW.mT, alpha=rate)

    def _momentum(self, group: dict[str, Any], parameter: nn.Parameter) -> Tensor:
        """Update the momentum and return the Nesterov gradient. The state has the name that PyTorch uses."""
        gradient, state = parameter.grad, self.state[parameter]
        assert gradient is not None
        if not state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        buffer: Tensor = state["momentum_buffer"]
        buffer.lerp_(gradient, 1 - group["momentum"])
        return gradient.lerp(buffer, group["momentum"])


def _is_wide(matrix: Tensor) -> bool:
    return matrix.shape[0] <= matrix.shape[1]


def _lay(matrix_HW: Tensor) -> Tensor:
    return matrix_HW if _is_wide(matrix_HW) else matrix_HW.mT


def _orthogonalise(x_NHW: Tensor, group: dict[str, Any]) -> Tensor:
    """Move the singular values towards 1 with the Newton-Schulz iteration and PyTorch's coefficients."""
    a, b, c = group["ns_coefficients"]
    x_NHW = x_NHW / x_NHW.norm(dim=(1, 2), keepdim=True).clamp(min=group["eps"])
    for _ in range(group["ns_steps"]):
        gram_NHH = x_NHW @ x_NHW.mT
        x_NHW = torch.baddbmm(x_NHW, torch.baddbmm(gram_NHH, gram_NHH, gram_NHH, beta=b, alpha=c), x_NHW, beta=a)
    return x_NHW
