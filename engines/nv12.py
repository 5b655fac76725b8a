"""NV12, the form in which video decoders give pictures: half the bytes of RGB, and no conversion on the host.

Importing this module needs no torch.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Colours:
    """How NV12 becomes RGB: luma weights of red and blue (ITU-R BT.601, BT.709); full range is 0 to 255."""

    red: float = 0.2126
    blue: float = 0.0722
    full_range: bool = False


BT709 = Colours()
BT601 = Colours(red=0.299, blue=0.114)


@dataclass(frozen=True, eq=False)
class Nv12:
    """A picture of H rows and W columns, both even.

    Attributes:
        planes: uint8 [H * 3 / 2, W], contiguous: H rows of luma, then H / 2 rows of interleaved chroma (U, V).
        colours: how it becomes RGB.
    """

    planes: NDArray[np.uint8]
    colours: Colours

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        rows, width = self.planes.shape
        return rows * 2 // 3, width


Image = NDArray[np.uint8] | Nv12
"""RGB [H, W, 3] of uint8, or NV12."""
