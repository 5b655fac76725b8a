"""The command line with an engine that takes as long as the first argument says, in seconds; run as a script.

Prints "inferring" when the inference of the first picture begins. The warm-up before it is black, and no picture is.
"""

import sys
from collections.abc import Sequence
from unittest import mock

import numpy as np

from engines.nv12 import Image
from pipeline.cli import main
from tests.pipeline.fakes import FakeEngine, FakePending


class SlowEngine(FakeEngine):
    """Says when it begins with the pictures of a source."""

    begun = False

    def submit(self, images: Sequence[Image]) -> FakePending:
        if not self.begun and isinstance(images[0], np.ndarray) and images[0].any():
            self.begun = True
            print("inferring", flush=True)
        return super().submit(images)


if __name__ == "__main__":
    with mock.patch("engines.engine.Engine", return_value=SlowEngine(delay_s=float(sys.argv[1]))):
        main(sys.argv[2:])
