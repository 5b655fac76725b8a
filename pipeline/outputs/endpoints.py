"""Addresses that sockets are bound to: checks them, binds them, and explains why one cannot be bound."""

from __future__ import annotations

import errno
import ipaddress
import os
import re
import socket as sockets
from pathlib import Path
from typing import Any

import zmq

from pipeline.errors import ConfigError, PublishError

ALLOWED = "tcp://ADDRESS:PORT such as tcp://127.0.0.1:5555, or ipc://FILE"
_LARGEST_PORT = 65535
_BRACKETED = re.compile(r"\[[^\[\]]+\]:[^:]+")
_OWNER_ALONE = 0o177  # umask: a socket file gets mode 0600


def check_endpoint(option: str, endpoint: str) -> None:
    """Refuse endpoints that ZeroMQ accepts but misuses: it wraps ports around, and ipc removes an existing file.

    Args:
        option: the option that gave the address; the error names it.
    Raises:
        ConfigError: it is not an address to bind.
    """
    kind, separator, rest = endpoint.partition("://")
    port = rest.rpartition(":")[2]
    if not separator or kind not in ("tcp", "ipc") or not rest or (kind == "tcp" and ":" not in rest):
        raise ConfigError(f"{option} {endpoint}: is not an address to bind; give {ALLOWED}")
    if kind == "tcp" and port != "*" and not (port.isdecimal() and int(port) <= _LARGEST_PORT):
        raise ConfigError(f"{option} {endpoint}: {port!r} is not a port; give a number up to {_LARGEST_PORT}, or *")
    if kind == "tcp" and ":" in rest.rpartition(":")[0] and not _BRACKETED.fullmatch(rest):
        raise ConfigError(f"{option} {endpoint}: write an IPv6 address in brackets, as in tcp://[::1]:5555")
    if kind == "ipc" and Path(rest).exists() and not Path(rest).is_socket():
        raise ConfigError(f"{option} {endpoint}: {rest} exists and is not a socket; choose another path")


def is_local(endpoint: str) -> bool:
    """Whether only programs on this machine can reach a valid endpoint."""
    kind, _, rest = endpoint.partition("://")
    if kind == "ipc":
        return True
    host = rest.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def require_local(option: str, endpoint: str, how_to_insist: str = "") -> None:
    """Refuse an address that other machines can reach, because there are no keys.

    Args:
        how_to_insist: end of the error, with another thing that the user can do; "" for none.
    Raises:
        ConfigError: other machines can reach it.
    """
    if not is_local(endpoint):
        raise ConfigError(
            f"{option} {endpoint}: other machines can reach this address, and there are no keys; make some with "
            f"`python run_pipeline.py keys FOLDER --client NAME` and give --keys FOLDER, or take tcp://127.0.0.1:PORT "
            f"or ipc://FILE{how_to_insist}"
        )


def bind(option: str, socket: zmq.Socket[Any], endpoint: str) -> None:
    """Bind a socket. Only the owner can use the file of an ipc socket.

    Raises:
        PublishError: the endpoint is malformed, in use, or not an address of this machine.
    """
    if _has_listener(endpoint):
        raise PublishError(_explain(option, endpoint, zmq.ZMQError(errno.EADDRINUSE)))
    socket.setsockopt(zmq.IPV6, "[" in endpoint)
    before = os.umask(_OWNER_ALONE) if endpoint.startswith("ipc://") else None
    try:
        socket.bind(endpoint)
    except zmq.ZMQError as error:
        raise PublishError(_explain(option, endpoint, error)) from error
    finally:
        if before is not None:
            os.umask(before)


def _has_listener(endpoint: str) -> bool:
    """Whether a program listens on an ipc endpoint. ZeroMQ would replace the file of that program without an error."""
    kind, _, path = endpoint.partition("://")
    if kind != "ipc":
        return False
    with sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM) as caller:
        caller.setblocking(False)
        try:
            caller.connect(path)
        except BlockingIOError:  # its backlog is full
            return True
        except OSError:  # no file, no listener, or nothing that ZeroMQ can bind either
            return False
        return True


def _explain(option: str, endpoint: str, error: zmq.ZMQError) -> str:
    """Return one sentence that says what to do about an endpoint that cannot be bound."""
    reasons = {
        errno.EADDRINUSE: "another program uses this address; stop it or choose another port",
        errno.EADDRNOTAVAIL: "no network interface of this machine has this address; take 127.0.0.1 or *",
        errno.ENODEV: "no network interface of this machine has this name; take 127.0.0.1 or *",
        errno.EACCES: "not permitted; take a port from 1024 on, or a folder that you may write to",
        errno.ENOENT: "the folder of this socket does not exist; create it or choose another",
    }
    reason = reasons.get(error.errno or 0, f"cannot be bound ({error.strerror}); give {ALLOWED}")
    return f"{option} {endpoint}: {reason}"
