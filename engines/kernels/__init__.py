"""Deformable attention: plain reference, compiled CPU kernel, CUDA kernel and TensorRT plugin behind one operator.

`cpu` also holds a compiled form of Swin's window attention.
"""

from engines.kernels.operator import ms_deform_attn

__all__ = ["ms_deform_attn"]
