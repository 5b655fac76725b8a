"""Deformable attention as a TensorRT plugin whose kernel is embedded in the plan, and its torch-tensorrt converter.

It is a quickly deployable plugin. At build time TensorRT asks for the PTX and the launch parameters of the kernel and
writes both into the plan. The plan then runs without Python and without any other library. The kernel is that of
`cuda.py`.

`tensorrt` and `torch_tensorrt` are imported on use. TensorRT reads the plugin's interface from the type annotations, so
this file must not use `from __future__ import annotations`.
"""

import functools

import torch

from engines.kernels import cuda, nvrtc
from engines.kernels.operator import parse_sizes

PLUGIN = "xpose::ms_deform_attn"
"""The name of the PyTorch operator. The converter finds the plugin by it."""


@functools.cache
def register_plugin() -> None:
    """Register the plugin in TensorRT's registry. A second call does nothing.

    Value and output have the same type: FP32, FP16 or BF16. Reference, offsets and logits are always FP32, so that
    locations and softmax never pass through half precision.

    Raises:
        ImportError: TensorRT is not installed.
    """
    import tensorrt as trt
    import tensorrt.plugin as trtp

    def describe(
        value: trtp.TensorDesc,
        reference: trtp.TensorDesc,
        offsets: trtp.TensorDesc,
        logits: trtp.TensorDesc,
        sizes: str,
    ) -> trtp.TensorDesc:
        batch, _, heads, depth = value.shape_expr
        return trtp.from_shape_expr((batch, offsets.shape_expr[1], heads * depth), value.dtype)

    def tune(
        value: trtp.TensorDesc,
        reference: trtp.TensorDesc,
        offsets: trtp.TensorDesc,
        logits: trtp.TensorDesc,
        outputs: tuple[trtp.TensorDesc],
    ) -> list[trtp.AutoTuneCombination]:
        return [trtp.AutoTuneCombination("FP32|FP16|BF16, FP32, FP32, FP32, FP32|FP16|BF16", "LINEAR")]

    def implement(
        value: trtp.TensorDesc,
        reference: trtp.TensorDesc,
        offsets: trtp.TensorDesc,
        logits: trtp.TensorDesc,
        sizes: str,
        outputs: tuple[trtp.TensorDesc],
        tactic: int,
    ) -> tuple[str, bytes, trtp.KernelLaunchParams, trtp.SymIntExprs]:
        dtypes = {trt.float32: torch.float32, trt.float16: torch.float16, trt.bfloat16: torch.bfloat16}
        shapes = (tuple(value.shape), tuple(reference.shape), tuple(offsets.shape))
        launch = cuda.launch_of(dtypes[value.dtype], *shapes, parse_sizes(sizes))
        capability = torch.cuda.get_device_capability()
        ptx = nvrtc.compile_source(cuda.SOURCE, launch.variant.macros(), capability, "ptx").code
        blocks_x, blocks_y, _ = launch.grid
        grid = trtp.KernelLaunchParams(grid_x=blocks_x, grid_y=blocks_y, block_x=cuda.BLOCK_THREADS)
        numbers = trtp.SymIntExprs.from_tuple([trtp.SymInt32(number) for number in launch.numbers])
        return cuda.KERNEL, ptx, grid, numbers

    trtp.register(PLUGIN)(describe)
    trtp.autotune(PLUGIN)(tune)
    trtp.aot_impl(PLUGIN)(implement)


@functools.cache
def register_converter() -> None:
    """Make torch-tensorrt replace the operator by the plugin. A second call does nothing.

    Raises:
        ImportError: TensorRT or torch-tensorrt is not installed.
    """
    from torch_tensorrt.dynamo.conversion.plugins import generate_plugin_converter

    register_plugin()
    generate_plugin_converter(PLUGIN, supports_dynamic_shapes=False)
