"""The network, the builder and the engine that stand in for TensorRT's own.

`build_engine_with_config` checks every layer against the rules once more, reads the weights, and returns an engine that
serialises into a plan. `Runtime.deserialize_cuda_engine` loads the plan, and `Engine.run` computes it.
"""

import io
import pickle
from typing import Any

import tensorrt as trt
import torch

from tests.trt_standin import movement, pointwise, sums
from tests.trt_standin.layer import Description, Layer, RuleError, Tensor
from tests.trt_standin.plugin import Plugin


class Network:
    """Stands in for `tensorrt.INetworkDefinition`, strongly typed."""

    def __init__(self) -> None:
        self.layers: list[Layer] = []
        self.inputs: list[Tensor] = []
        self.outputs: list[Tensor] = []

    def get_flag(self, flag: Any) -> bool:
        return flag == trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    def _add(self, layer: Layer) -> Layer:
        self.layers.append(layer)
        return layer

    def add_input(self, name: str, dtype: Any, shape: Any) -> Tensor:
        tensor = self._add(pointwise.Input(dtype, shape)).get_output(0)
        tensor.name = name
        self.inputs.append(tensor)
        return tensor

    def mark_output(self, tensor: Tensor) -> None:
        if not isinstance(tensor, Tensor):
            raise TypeError(f"an output is an ITensor, not {type(tensor)}")
        self.outputs.append(tensor)

    def add_constant(self, shape: Any, weights: Any) -> Layer:
        return self._add(pointwise.Constant(shape, weights))

    def add_cast(self, input: Tensor, to_type: Any) -> Layer:
        return self._add(pointwise.Cast([input], to_type=to_type))

    def add_identity(self, input: Tensor) -> Layer:
        return self._add(pointwise.Identity([input]))

    def add_shape(self, input: Tensor) -> Layer:
        return self._add(pointwise.Shape([input]))

    def add_elementwise(self, input1: Tensor, input2: Tensor, op: Any) -> Layer:
        return self._add(pointwise.ElementWise([input1, input2], op=op))

    def add_unary(self, input: Tensor, op: Any) -> Layer:
        return self._add(pointwise.Unary([input], op=op))

    def add_activation(self, input: Tensor, type: Any) -> Layer:
        return self._add(pointwise.Activation([input], type=type))

    def add_select(self, condition: Tensor, then_input: Tensor, else_input: Tensor) -> Layer:
        return self._add(pointwise.Select([condition, then_input, else_input]))

    def add_shuffle(self, input: Tensor) -> Layer:
        return self._add(movement.Shuffle([input]))

    def add_slice(self, input: Tensor, start: Any, shape: Any, stride: Any) -> Layer:
        return self._add(movement.Slice([input], start=start, shape=shape, stride=stride))

    def add_unsqueeze(self, input: Tensor, axes: Tensor) -> Layer:
        return self._add(movement.Unsqueeze([input, axes]))

    def add_squeeze(self, input: Tensor, axes: Tensor) -> Layer:
        return self._add(movement.Squeeze([input, axes]))

    def add_concatenation(self, inputs: Any) -> Layer:
        return self._add(movement.Concatenation(list(inputs)))

    def add_gather(self, input: Tensor, indices: Tensor, axis: int) -> Layer:
        return self._add(movement.Gather([input, indices], axis=axis))

    def add_gather_v2(self, input: Tensor, indices: Tensor, mode: Any) -> Layer:
        return self._add(movement.Gather([input, indices], mode=mode))

    def add_matrix_multiply(self, input0: Tensor, op0: Any, input1: Tensor, op1: Any) -> Layer:
        return self._add(sums.MatrixMultiply([input0, input1], op0=op0, op1=op1))

    def add_convolution_nd(
        self, input: Tensor, num_output_maps: int, kernel_shape: Any, kernel: Any, bias: Any = None
    ) -> Layer:
        layer = sums.Convolution(
            [input], num_output_maps=num_output_maps, kernel_size_nd=tuple(kernel_shape), kernel=kernel, bias=bias
        )
        return self._add(layer)

    def add_attention(self, query: Tensor, key: Tensor, value: Tensor, norm_op: Any, causal: bool) -> Layer:
        return self._add(sums.Attention([query, key, value], norm_op=norm_op, causal=causal))

    def add_normalization(self, input: Tensor, scale: Tensor, bias: Tensor, axesMask: int) -> Layer:
        return self._add(sums.Normalization([input, scale, bias], axes=axesMask))

    def add_softmax(self, input: Tensor) -> Layer:
        return self._add(sums.SoftMax([input]))

    def add_reduce(self, input: Tensor, op: Any, axes: int, keep_dims: bool) -> Layer:
        return self._add(sums.Reduce([input], op=op, axes=axes, keep_dims=keep_dims))

    def add_topk(self, input: Tensor, op: Any, k: int, axes: int) -> Layer:
        return self._add(sums.TopK([input], outputs=2, op=op, k=k, axes=axes))

    def add_plugin(self, func: Any, aot: bool) -> Layer:
        if not aot:
            raise RuleError("a plugin without its kernel in the plan needs Python at run time")
        return self._add(Plugin(func(trt.QuickPluginCreationRequest.STRICT_AOT)))


class TimingCache:
    def serialize(self) -> bytes:
        return b"timing cache"


class BuilderConfig:
    """Stands in for `tensorrt.IBuilderConfig`; TF32 is on unless somebody clears it."""

    profiling_verbosity = engine_capability = avg_timing_iterations = tiling_optimization_level = None
    builder_optimization_level = 3

    def __init__(self) -> None:
        self.flags = {trt.BuilderFlag.TF32}
        self._timing_cache: TimingCache | None = None

    def set_flag(self, flag: Any) -> None:
        self.flags.add(flag)

    def clear_flag(self, flag: Any) -> None:
        self.flags.discard(flag)

    def create_timing_cache(self, blob: bytes) -> TimingCache:
        return TimingCache()

    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
        self._timing_cache = cache
        return True

    def get_timing_cache(self) -> TimingCache | None:
        return self._timing_cache


class Builder:
    """Stands in for `tensorrt.Builder`."""

    def __init__(self, logger: Any) -> None:
        self.logger = logger

    def create_network(self, flags: int = 0) -> Network:
        return Network()

    def create_builder_config(self) -> BuilderConfig:
        return BuilderConfig()

    def build_engine_with_config(self, network: Network, config: BuilderConfig) -> "Engine":
        """Check every layer and read its weights.

        Raises:
            RuleError: a layer breaks a rule, or a name is not unique.
        """
        names = [tensor.name for tensor in (*network.inputs, *network.outputs)]
        if len(set(names)) < len(names):
            raise RuleError(f"names of inputs and outputs are not unique: {names}")
        network.layers = _in_order_of_use(network.layers)
        for layer in network.layers:
            layer.describe()
            layer.freeze()
        return Engine(network, trt.BuilderFlag.TF32 in config.flags)


def _in_order_of_use(layers: list[Layer]) -> list[Layer]:
    """Put every layer behind those whose outputs it takes."""
    done: dict[Layer, None] = {}
    for layer in layers:
        stack = [layer]
        while stack:
            needed = [tensor.layer for tensor in stack[-1].inputs if tensor is not None and tensor.layer not in done]
            if needed:
                stack += needed
            else:
                done[stack.pop()] = None
    return list(done)


class Engine:
    """Stands in for `tensorrt.ICudaEngine`."""

    def __init__(self, network: Network, tf32: bool) -> None:
        self.network, self.tf32 = network, tf32
        self._tensors = [*network.inputs, *network.outputs]

    @property
    def num_io_tensors(self) -> int:
        return len(self._tensors)

    def get_tensor_name(self, index: int) -> str:
        return self._tensors[index].name

    def get_tensor_mode(self, name: str) -> Any:
        is_input = name in {tensor.name for tensor in self.network.inputs}
        return trt.TensorIOMode.INPUT if is_input else trt.TensorIOMode.OUTPUT

    def _description(self, name: str) -> Description:
        (tensor,) = (tensor for tensor in self._tensors if tensor.name == name)
        return tensor.shape, tensor.dtype

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._description(name)[0]

    def get_tensor_dtype(self, name: str) -> Any:
        return self._description(name)[1]

    def serialize(self) -> bytes:
        """Pickle layers in their order, each with the places of its inputs, since a chain of layers nests too deep."""
        number = {layer: index for index, layer in enumerate(self.network.layers)}

        def place(tensor: Tensor | None) -> tuple[int, int, str] | None:
            return None if tensor is None else (number[tensor.layer], tensor.index, tensor.name)

        plan = io.BytesIO()
        ends = [[place(tensor) for tensor in side] for side in (self.network.inputs, self.network.outputs)]
        rows = [
            (type(layer), layer.__getstate__(), layer.num_outputs, [place(tensor) for tensor in layer.inputs])
            for layer in self.network.layers
        ]
        pickle.dump((self.tf32, ends, rows), plan)
        return plan.getvalue()

    def run(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Compute the outputs, layer by layer; a value is dropped after its last use."""
        last = {tensor: index for index, layer in enumerate(self.network.layers) for tensor in layer.inputs}
        last |= dict.fromkeys(self.network.outputs, len(self.network.layers))
        values: dict[Tensor | None, torch.Tensor | None] = {None: None}
        for tensor in self.network.inputs:
            values[tensor] = inputs[tensor.name]
            shape, dtype = tuple(inputs[tensor.name].shape), inputs[tensor.name].dtype
            assert shape == tensor.shape, f"{tensor.name} is {shape}, not {tensor.shape}"
            tensor.layer.require(dtype == pointwise.TORCH[tensor.dtype], f"{tensor.name} is {dtype}")
        for index, layer in enumerate(self.network.layers):
            if isinstance(layer, pointwise.Input):
                continue
            results = layer.run([values[tensor] for tensor in layer.inputs], self.tf32)
            values.update(
                (output, result) for output, result in zip(layer.outputs, results, strict=True) if output in last
            )
            for tensor in layer.inputs:
                if tensor is not None and last[tensor] == index:
                    values.pop(tensor, None)
        return {tensor.name: values[tensor] for tensor in self.network.outputs}


class Runtime:
    """Stands in for `tensorrt.Runtime`."""

    def __init__(self, logger: Any) -> None:
        self.logger = logger

    def deserialize_cuda_engine(self, plan: bytes) -> Engine:
        tf32, ends, rows = pickle.loads(plan)
        network = Network()
        for kind, state, outputs, places in rows:
            layer = kind.__new__(kind)
            layer.__dict__.update(
                state,
                inputs=[None if place is None else network.layers[place[0]].outputs[place[1]] for place in places],
                outputs=[Tensor(layer, index) for index in range(outputs)],
            )
            network.layers.append(layer)
        for side, places in zip((network.inputs, network.outputs), ends, strict=True):
            for number, index, name in places:
                tensor = network.layers[number].outputs[index]
                tensor.name = name
                side.append(tensor)
        return Engine(network, tf32)
