"""A connection to a Ray cluster.

Whoever reaches Ray's ports can execute code on the machines. A cluster that is started here listens on this machine
only, and Ray protects it with a token. A cluster on other machines is used only with a token (`ray get-auth-token`).
Ray's usage reports are turned off.
"""

from __future__ import annotations

import importlib
import ipaddress
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipeline.errors import ConfigError

LOCAL = "local"
_OBJECT_STORE_BYTES = 128 << 20  # files and pictures never pass through Ray's object store


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Yield the module `ray`, connected to the cluster. An existing connection is used, and is not closed.

    Args:
        address: of the cluster, such as 10.0.0.1:6379; "local" starts one on this machine, which ends with the context.
    Raises:
        ConfigError: Ray is not installed, or no cluster answers.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's future default; today's warns
    os.environ.setdefault("RAY_worker_niceness", "0")  # of a cluster that starts here; Ray's 15 starves cameras
    if address == LOCAL:
        # Otherwise Ray replaces 127.0.0.1 with an address that other machines reach.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    if not _is_this_machine(address):
        os.environ["RAY_AUTH_MODE"] = "token"
    ray = _library()
    owned = not ray.is_initialized()
    if owned:
        _connect(ray, address)
    try:
        yield ray
    finally:
        if owned:
            ray.shutdown()


def _connect(ray: Any, address: str) -> None:
    own: dict[str, Any] = {
        "include_dashboard": False,
        "_node_ip_address": "127.0.0.1",
        "object_store_memory": _OBJECT_STORE_BYTES,
    }
    try:
        ray.init(address=address, log_to_driver=False, **(own if address == LOCAL else {}))
    except ray.exceptions.AuthenticationError as error:
        raise ConfigError(
            f"--ray {address}: this machine has no token of the cluster, or another one; make one with "
            "`ray get-auth-token --generate`, and give it to every machine of the cluster"
        ) from error
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--ray {address}: no cluster answers ({reason}); give its address, or local") from error


def _is_this_machine(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]") or address
    if host in (LOCAL, "localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _library() -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise ConfigError("--ray: Ray is not installed; pip install 'xpose-stream[fleet]'") from error
