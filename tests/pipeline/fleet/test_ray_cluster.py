"""A cluster that is started here must not be reached from elsewhere: Ray's ports execute code."""

import ipaddress
import subprocess
import sys

import pytest

from tests.pipeline.fleet.clusters import on_ray
from tests.support import REPOSITORY

pytestmark = on_ray

_SCRIPT = """
from pipeline.fleet.ray_cluster import connected
with connected("local") as ray:
    address_of = ray.remote(lambda: ray.util.get_node_ip_address())
    print(ray.get(address_of.remote()))
    import psutil  # Ray brings it
    for process in psutil.Process().children(recursive=True):
        for connection in process.net_connections("inet"):
            if connection.status == psutil.CONN_LISTEN:
                print(connection.laddr.ip)
"""


def test_local_cluster_listens_on_this_machine_only() -> None:
    pytest.importorskip("ray")
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT], cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=True
    )
    addresses = [ipaddress.ip_address(line.removeprefix("::ffff:")) for line in done.stdout.split()]
    assert len(addresses) > 4  # the worker's own, and those of Ray's servers
    assert all(address.is_loopback for address in addresses), addresses
