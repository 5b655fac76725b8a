"""Parses addresses: the kind of source, the URL for FFmpeg, and a label without secrets.

A user name or a password may contain any character, as it is or percent-encoded. A `%` followed by two hexadecimal
digits counts as encoded. Only FFmpeg gets them, percent-encoded; they never appear in labels, messages or logs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal
from urllib.parse import parse_qsl, quote, unquote

from pipeline.errors import SourceError

Kind = Literal["live", "device", "recording", "playlist", "path", "testsrc"]

LIVE_SCHEMES = frozenset({"rtsp", "rtsps", "http", "https", "rtmp", "rtmps", "udp", "rtp", "srt", "tcp"})
RECORDING_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".wmv"})
"""A file on a server with one of these suffixes is a recording. It has an end, and none of its frames is lost."""

_LARGEST_PORT = 65535
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://", re.ASCII)
_HOST = r"(?:\[[0-9A-Fa-f:.]+(?:%[A-Za-z0-9._~-]+)?\]|[^\s:@/?#\[\]]+)"
_HOST_PORT = re.compile(rf"({_HOST})?(?::([^:@/?#\[\]]*))?", re.ASCII)
_IPV4 = re.compile(r"\d{1,3}(\.\d{1,3}){3}", re.ASCII)
_SECRET = re.compile(r"((?:pass|password|passwd|pwd|psw|token|secret|key|auth)=)[^&;/]*?(?=&|;|/|_[a-z]+=|$)", re.I)
_STANDARD_INPUT = ("/dev/stdin", "/dev/fd/0")
_CAMERA_DEVICE = re.compile(r"/dev/(video\d+|v4l/.+)")


@dataclass(frozen=True)
class Address:
    """A parsed address.

    Attributes:
        kind: live: a stream; device: a camera of this machine; recording: a file on a server; playlist: a recording or
            a stream, depending on its content; path: a file, a folder or a pipe; testsrc: drawn figures.
        scheme: in lower case; "" for paths and devices.
        url: the URL that FFmpeg opens, with credentials.
        label: its name in messages and logs, without user, password and query.
        name: name of the source in topics, made of host and path.
        host: host name or IP address without brackets; "" where there is none.
        port: None where the address states none.
    """

    kind: Kind
    scheme: str
    url: str
    label: str
    name: str
    host: str = ""
    port: int | None = None


def parse_address(text: str) -> Address:
    """Parse `text`. Nothing is opened; for a path, its existence is checked.

    Raises:
        SourceError: the address is malformed. The message contains no password.
    """
    if text == "-":
        return Address("path", "", "/dev/stdin", "standard input", "stdin")
    match = _SCHEME.match(text)
    if match is None:
        return _of_path(text)
    scheme, rest = match[1].lower(), text[match.end() :]
    if scheme == "file":
        return _of_path(unquote(rest))
    if scheme == "testsrc":
        return Address("testsrc", scheme, f"testsrc://{rest}", text, "testsrc")
    if scheme not in LIVE_SCHEMES:
        allowed = ", ".join(f"{name}://" for name in (*sorted(LIVE_SCHEMES), "file", "testsrc"))
        raise SourceError(
            f"{scheme}:// is not a kind of source; give a file, a folder, /dev/videoN or one of {allowed}"
        )
    return _of_url(scheme, rest)


def _of_path(text: str) -> Address:
    path = Path(text)
    is_device = path.is_char_device() and path.resolve().parent == Path("/dev") and text not in _STANDARD_INPUT
    if _CAMERA_DEVICE.fullmatch(text) or is_device:
        return Address("device", "", text, text, path.name)
    return Address("path", "", text, text, path.stem)


def _of_url(scheme: str, rest: str) -> Address:
    credentials, authority, tail = _split(scheme, rest)
    match = _HOST_PORT.fullmatch(authority)
    label_of_bad = f"{scheme}://{authority if credentials is None else '…'}"
    if match is None:
        raise SourceError(
            f"{label_of_bad}: is not HOST or HOST:PORT; write an IPv6 address in brackets, as in {scheme}://[::1]:554/"
        )
    host, port_text = (match[1] or "").lower(), match[2]
    if port_text and not (port_text.isdecimal() and 1 <= int(port_text) <= _LARGEST_PORT):
        raise SourceError(f"{scheme}://{host}:{port_text}: is not a port; give a number from 1 to {_LARGEST_PORT}")
    port = int(port_text) if port_text else None
    shown = host + (f":{port}" if port else "")
    path, mark, query = tail.partition("?")
    user = "" if credentials is None else _encoded(credentials) + "@"
    shown_path = _SECRET.sub(r"\1***", path.partition("#")[0])
    name = f"{host.strip('[]')}{f':{port}' if port else ''}{shown_path.rstrip('/')}" or scheme
    return Address(
        _kind(scheme, path, query),
        scheme,
        f"{scheme}://{user}{shown}{path}{mark}{query}",
        f"{scheme}://{shown}{shown_path}",
        name,
        host.strip("[]"),
        port,
    )


def _kind(scheme: str, path: str, query: str) -> Kind:
    if scheme not in ("http", "https"):
        return "live"
    names = [path.partition("#")[0], *(value for _, value in parse_qsl(query))]
    suffixes = [PurePosixPath(unquote(name)).suffix.lower() for name in names]
    if suffixes[0] in (".m3u8", ".m3u"):
        return "playlist"
    return "recording" if any(suffix in RECORDING_SUFFIXES for suffix in suffixes) else "live"


def _split(scheme: str, rest: str) -> tuple[str | None, str, str]:
    """Split into (credentials, host and port, the rest), also if the password contains special characters.

    By the standard, the authority ends at the first "/", "?" or "#". If this gives no valid host, and a later "@" is
    followed by a host, the password contains one of these characters.
    """
    end = next((index for index, character in enumerate(rest) if character in "/?#"), len(rest))
    standard = rest[:end].rfind("@")
    later = [
        index for index, character in enumerate(rest) if character == "@" and index > end and _host_at(rest, index)
    ]
    strong = [index for index in later if _is_strong(_host_at(rest, index))]
    if standard >= 0:
        host = rest[standard + 1 : end]
        if not (_is_strong(host) or (_is_host(host) and not strong)):
            standard = strong[-1] if strong else later[-1] if later else standard
    elif ":" in rest[:end] and not (_is_host(rest[:end]) and (_is_strong(rest[:end]) or not strong)):
        standard = strong[-1] if strong else later[-1] if later else -1
    if standard < 0:
        return None, rest[:end], rest[end:]
    host = _host_at(rest, standard) or re.split("[/?#]", rest[standard + 1 :], maxsplit=1)[0]
    return rest[:standard], host, rest[standard + 1 + len(host) :]


def _host_at(rest: str, at: int) -> str:
    """Return host and port after the "@" at `at`; "" if there are none."""
    text = re.split("[/?#@]", rest[at + 1 :], maxsplit=1)[0]
    following = rest[at + 1 + len(text) :][:1]
    return text if following != "@" and _is_host(text) else ""


def _is_host(text: str) -> bool:
    match = _HOST_PORT.fullmatch(text)
    return bool(match and match[1] and (not match[2] or match[2].isdecimal()))


def _is_strong(text: str) -> bool:
    """Whether this is certainly a host: an IP address, localhost, or a name with a domain."""
    match = _HOST_PORT.fullmatch(text)
    if not match or not match[1] or not _is_host(text):
        return False
    host = match[1]
    return host[0] == "[" or host.lower() == "localhost" or bool(_IPV4.fullmatch(host)) or "." in host.strip(".")


def _encoded(credentials: str) -> str:
    """Percent-encode user and password. Parts that are already encoded stay as they are."""
    user, colon, password = credentials.partition(":")
    parts = [quote(re.sub("%(?![0-9A-Fa-f]{2})", "%25", part), safe="%-._~") for part in (user, password)]
    return parts[0] + colon + parts[1]
