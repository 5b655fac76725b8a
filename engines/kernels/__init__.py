"""Deformable attention: plain reference, compiled CPU kernel, CUDA kernel and TensorRT plugin behind one operator."""

from engines.kernels.operator import ms_deform_attn

__all__ = ["ms_deform_attn"]
