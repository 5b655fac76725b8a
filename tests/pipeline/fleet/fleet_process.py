"""A fleet with a stand-in for an engine in a process of its own: fleet_process.py ADDRESS FILE"""

import sys
import time
from pathlib import Path

from pipeline.fleet.config import read_fleet
from tests.pipeline.fleet.clusters import fleet_of
from tests.pipeline.fleet.test_fleet_on_ray import fake_engine

if __name__ == "__main__":
    with fleet_of(sys.argv[1], read_fleet(Path(sys.argv[2])), fake_engine) as fleet:
        while fleet.error is None:
            time.sleep(0.1)
    sys.exit(str(fleet.error))
