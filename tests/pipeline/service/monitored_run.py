"""The command line with a fake engine whose facts the monitor can show; run as a script."""

import sys
from unittest import mock

from pipeline.cli import main
from tests.pipeline.fakes import FakeEngine
from tests.pipeline.service.watched import FACTS

if __name__ == "__main__":
    with (
        mock.patch("engines.engine.Engine", return_value=FakeEngine(delay_s=0.05)),
        mock.patch("pipeline.service.operations.describe", return_value=FACTS),
    ):
        main(sys.argv[1:])
