"""The network as plain PyTorch on an NVIDIA GPU, replayed from CUDA graphs: fast where there is no TensorRT.

The input size is fixed. Prompts of another number of classes or keypoints capture the graphs again, which takes about a
second; other prompts of the same number are copied into place.

Shapes: as in `engines.backends`.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from engines.backends import PendingPoses
from engines.backends.eager import repeat_prompts
from engines.backends.slots import IN_FLIGHT, CudaStream, Network, Slot, Slots
from engines.errors import BackendError
from engines.nv12 import Image
from engines.precision import forbid_tf32, place
from engines.prompt_tensors import PromptTensors, without_spare
from engines.xpose import XPose
from engines.xpose.model import Prompts


class CudaGraphBackend:
    """Runs an XPose on letterboxed images, with up to `IN_FLIGHT` calls in flight."""

    in_flight = IN_FLIGHT

    def __init__(
        self,
        model: XPose,
        input_hw: tuple[int, int],
        batch: int,
        precision: str,
        device: torch.device,
        new_slot: Callable[[Network, int, tuple[int, int]], Slot] | None = None,
    ) -> None:
        """Place the network; the first prompts capture the graphs.

        Args:
            new_slot: makes a slot from the network, the batch and the input size; None takes CUDA's.
        """
        self.input_hw, self.batch = input_hw, batch
        self._device = device
        forbid_tf32()
        self._model = place(model, precision).eval().to(device)
        self._new_slot = new_slot or self._cuda_slot
        self._prompts: Prompts | None = None
        self._slots: Slots | None = None

    def _cuda_slot(self, network: Network, batch: int, input_hw: tuple[int, int]) -> Slot:
        return Slot(network, batch, input_hw, CudaStream(self._device))

    @torch.inference_mode()
    def set_prompts(self, prompts: PromptTensors) -> None:
        """Use these prompts from the next `submit` on, after the calls in flight."""
        prompts = without_spare(prompts)
        encoded = self._model.encode_prompts(
            prompts.objects_C512[None].to(self._device),
            prompts.keypoints_CK512[None].to(self._device),
            None,
            prompts.keypoint_valid_CK[None].to(self._device),
        )
        if self._slots is not None:
            self._slots.wait()
        if self._prompts is not None and _sizes(self._prompts) == _sizes(encoded):
            for buffer, tensor in zip(self._prompts, encoded, strict=True):
                if buffer is not None and tensor is not None:
                    buffer.copy_(tensor)
        else:
            self._slots = None  # give the memory back before the new graphs take theirs
            self._prompts = encoded._replace(
                **{name: tensor.clone() for name, tensor in encoded._asdict().items() if tensor is not None}
            )
            self._slots = Slots([self._new_slot(self._network, self.batch, self.input_hw) for _ in range(IN_FLIGHT)])
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # the slots' own streams read what this stream has written

    def _network(self, pixels_B3HW: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        assert self._prompts is not None
        output = self._model.detect(pixels_B3HW, repeat_prompts(self._prompts, pixels_B3HW.shape[0]))
        return output.boxes_BG4, output.logits_BGC, output.class_BG, output.keypoints_BGK2

    @torch.inference_mode()
    def submit(self, images: Sequence[Image]) -> PendingPoses:
        """Queue 1 to `batch` images, RGB or NV12, of any sizes."""
        if self._slots is None:
            raise BackendError("no prompts are set: call set_prompts first")
        return self._slots.submit(images)

    def close(self) -> None:
        """Wait for the calls in flight and let go of the graphs."""
        if self._slots is not None:
            self._slots.wait()
        self._slots = self._prompts = None


def _sizes(prompts: Prompts) -> list[torch.Size | None]:
    return [None if tensor is None else tensor.shape for tensor in prompts]
