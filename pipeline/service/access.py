"""Where the monitor listens, and who may use it.

On an address of this machine only (127.0.0.1, ::1, localhost), every user of the machine may use it. Any other address
needs a token, in a file that only its owner can read. So does a name under which a proxy makes the monitor public
(`monitor.hosts`).
"""

from __future__ import annotations

import ipaddress
import re
import socket
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from pipeline.errors import ConfigError, MonitorError

Steering = Literal["all", "prompts", "nothing"]

_SHORTEST_TOKEN = 16
_HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?")
_MAKE_TOKEN = "(umask 077; openssl rand -hex 16 > monitor.token)"


@dataclass(frozen=True)
class MonitorConfig:
    """The monitor: page, pictures, health and metrics over HTTP.

    Attributes:
        address: HOST:PORT to listen on, such as 127.0.0.1:8080; "" for none. Port 0 lets the system choose.
        token_file: file with the token for viewers; needed if other machines can reach the monitor.
        hosts: further names under which viewers reach the monitor, such as the name of a TLS proxy in front of it.
        steer: what viewers may change: "all" (prompts and sources), "prompts" or "nothing".
        picture_rate: largest number of pictures per second that are encoded for each source.
        picture_side: longest side of a picture in px; larger pictures are scaled down.
        picture_quality: quality of the JPEG, 1 to 100.
        viewers: largest number of WebSockets and streams at the same time.
        stall_s: the pipeline is unhealthy if a thread works on one frame for longer than this.
    """

    address: str = ""
    token_file: str = ""
    hosts: tuple[str, ...] = ()
    steer: Steering = "all"
    picture_rate: float = 15.0
    picture_side: int = 960
    picture_quality: int = 75
    viewers: int = 32
    stall_s: float = 60.0

    def __post_init__(self) -> None:
        if self.steer not in get_args(Steering):
            raise ConfigError(f"monitor.steer is {self.steer!r}: give {', '.join(get_args(Steering))}")
        if not 0 < self.picture_rate <= 120:
            raise ConfigError(f"monitor.picture_rate is {self.picture_rate}: give pictures a second, up to 120")
        if not 16 <= self.picture_side <= 8192:
            raise ConfigError(f"monitor.picture_side is {self.picture_side}: give 16 to 8192 px")
        if not 1 <= self.picture_quality <= 100:
            raise ConfigError(f"monitor.picture_quality is {self.picture_quality}: give 1 to 100")
        if self.viewers < 1:
            raise ConfigError(f"monitor.viewers is {self.viewers}: give 1 or more")
        if not self.stall_s > 0:
            raise ConfigError(f"monitor.stall_s is {self.stall_s}: give a time above 0 s")
        for host in self.hosts:
            if _HOST.fullmatch(host) is None or ":" in host.strip("[]"):
                raise ConfigError(f"monitor.hosts has {host!r}: give names alone, such as cameras.example.org")
        if self.address:
            name, _ = split_address(self.address)
            if not self.token_file and (self.hosts or not is_loopback(name)):
                why = "monitor.hosts opens it to others" if self.hosts else "others on the network could reach it"
                raise ConfigError(
                    f"--monitor {self.address}: {why}, so it needs --monitor-token-file FILE (make one with "
                    f"`{_MAKE_TOKEN}`), or take 127.0.0.1"
                )


def split_address(address: str) -> tuple[str, int]:
    """Return the host, without brackets, and the port of `HOST:PORT`.

    Raises:
        ConfigError: it is not such an address.
    """
    match = _HOST.fullmatch(address)
    if match is None or match["port"] is None or int(match["port"]) > 65535:
        raise ConfigError(f"--monitor {address}: give HOST:PORT, such as 127.0.0.1:8080 or [::1]:8080")
    return match["name"].strip("[]"), int(match["port"])


def is_loopback(name: str) -> bool:
    """Whether only this machine can reach the address `name`."""
    if name.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def listen(address: str) -> socket.socket:
    """Return a socket that listens on `HOST:PORT`.

    Raises:
        MonitorError: the address is in use, is not an address of this machine, or is not permitted.
    """
    name, port = split_address(address)
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
    except OSError as error:
        raise MonitorError(f"--monitor {address}: the name is not known ({error.strerror}); give an address") from error
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(place)
        listening.listen(128)
    except OSError as error:
        listening.close()
        raise MonitorError(
            f"--monitor {address}: cannot listen there ({error.strerror}); stop the other program, or choose another "
            "address of this machine and a port from 1024 on"
        ) from error
    return listening


def read_token(path: Path) -> str:
    """Return the token in a file.

    Raises:
        MonitorError: the file cannot be read, others can read it, or its token is short or has odd characters.
    """
    try:
        if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise MonitorError(f"--monitor-token-file {path}: others can read it; run `chmod 600 {path}`")
        token = path.read_text(encoding="ascii").strip()
    except OSError as error:
        raise MonitorError(
            f"--monitor-token-file {path}: cannot be read ({error.strerror}); make one with `{_MAKE_TOKEN}`"
        ) from error
    except UnicodeDecodeError:
        token = ""
    if len(token) < _SHORTEST_TOKEN or not token.isprintable() or " " in token:
        raise MonitorError(
            f"--monitor-token-file {path}: needs one word of {_SHORTEST_TOKEN} or more ASCII letters and digits; make "
            f"one with `{_MAKE_TOKEN}`"
        )
    return token


@dataclass(frozen=True)
class Names:
    """The names under which the monitor answers. Another name in a request's Host is an attack (DNS rebinding).

    Attributes:
        known: names in lower case.
        any_address: whether every numeric address is accepted, too. This is needed if the monitor listens on all
            addresses. Numeric addresses need no name server, so they cannot be rebound.
    """

    known: frozenset[str]
    any_address: bool

    @classmethod
    def of(cls, config: MonitorConfig) -> Names:
        """Return the names for a configuration."""
        bound, _ = split_address(config.address)
        local = {"localhost", "127.0.0.1", "::1"}
        own = socket.gethostname().lower()
        beyond = not is_loopback(bound)
        names = {bound.lower(), *local, *map(str.lower, config.hosts)}
        return cls(frozenset(names | ({own, f"{own}.local"} if beyond else set())), beyond)

    def has(self, host: str) -> bool:
        """Whether a request's Host, with or without its port, is one of them."""
        match = _HOST.fullmatch(host)
        if match is None:
            return False
        name = match["name"].strip("[]").lower().removesuffix(".")
        if name in self.known:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return self.any_address
