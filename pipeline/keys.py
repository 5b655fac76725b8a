"""The key folder of a pipeline: which clients may connect.

    server.key         the pipeline's own key pair, JSON
    allowed_clients    a line for each client: its name and its public key; read again when it changes
    NAME.key           the keys that the client of this name needs, JSON; move the file to the client

Keys are CURVE25519 pairs (https://rfc.zeromq.org/spec/26) as Z85 text. Only the owner may read the folder and its
files: files that others can read are refused.
"""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import zmq

from pipeline.errors import ConfigError
from xpose_client.errors import KeyFileError
from xpose_client.keys import ClientKeys, check_pair, read_private

_log = logging.getLogger(__name__)

SERVER_FILE = "server.key"
ALLOWED_FILE = "allowed_clients"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_KEY_CHARACTERS = 40
_HEAD = "# One client a line: its name and its public key. The pipeline notices changes at once.\n"


@dataclass(frozen=True)
class KeysConfig:
    """Who may connect.

    Attributes:
        folder: key folder that `run_pipeline.py keys FOLDER` made, for publisher and control; "" for no keys.
    """

    folder: str = ""


class ServerPair(msgspec.Struct, frozen=True):
    """The pipeline's own keys, as Z85 text."""

    public: str
    secret: str

    def __post_init__(self) -> None:
        check_pair(self.public, self.secret)


class AllowList:
    """The clients that may connect. All methods are for any thread.

    Args:
        path: file of the list; see the module's docstring.
    Raises:
        KeyFileError: it cannot be read, or others can read it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._seen: tuple[int, ...] = ()
        self._names: dict[str, str] = {}
        self._read()

    def name_of(self, public: str) -> str | None:
        """Return the name of the client with this public key (Z85); None if it is not allowed."""
        with self._lock:
            if self._state() != self._seen:
                self._read_again()
            return self._names.get(public)

    def _read_again(self) -> None:
        """Read the list that has changed. While it cannot be read, nobody is allowed."""
        try:
            self._read()
        except KeyFileError as error:
            self._seen, self._names = self._state(), {}
            _log.error("%s; no client can connect", error)

    def _read(self) -> None:
        state = self._state()
        names: dict[str, str] = {}
        for number, line in enumerate(read_private(self._path).decode(errors="replace").splitlines(), start=1):
            words = line.split()
            if not words or line.startswith("#"):
                continue
            if len(words) != 2 or len(words[1]) != _KEY_CHARACTERS:
                _log.warning("%s, line %d: is not a name and a public key; the line is ignored", self._path, number)
                continue
            names[words[1]] = words[0]
        self._seen, self._names = state, names

    def _state(self) -> tuple[int, ...]:
        """Return a value that differs if the file has changed."""
        try:
            found = self._path.stat()
        except OSError:
            return ()
        return (found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino)


class ServerKeys:
    """The keys that a pipeline uses.

    Args:
        folder: a key folder.

    Attributes:
        pair: the pipeline's own keys.
        allowed: the clients that may connect.
        refused: attempts to connect without an allowed key, since the start.

    Raises:
        KeyFileError: this is not a key folder, or others can read one of its files.
    """

    def __init__(self, folder: str | Path) -> None:
        path = Path(folder).expanduser()
        if not (path / SERVER_FILE).exists():
            raise KeyFileError(
                f"{path}: is not a key folder, it has no {SERVER_FILE}; make one with "
                f"`python run_pipeline.py keys {folder} --client NAME`"
            )
        self.pair = _read_pair(path / SERVER_FILE)
        self.allowed = AllowList(path / ALLOWED_FILE)
        self.refused = 0
        self._lock = threading.Lock()

    def count_refused(self) -> None:
        """Count an attempt to connect without an allowed key. For any thread."""
        with self._lock:
            self.refused += 1


def _read_pair(path: Path) -> ServerPair:
    try:
        return msgspec.json.decode(read_private(path), type=ServerPair)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise KeyFileError(f"{path}: is not the key file of a pipeline ({error}); make a new key folder") from error


def make_keys(folder: Path, clients: Sequence[str]) -> list[Path]:
    """Make a key folder, or add clients to one; return the files that were written.

    Raises:
        ConfigError: the name of a client is not a word, or is taken.
        KeyFileError: a file cannot be written, or a file in the folder is not a valid key file.
    """
    for name in clients:
        if not _NAME.fullmatch(name) or name == Path(SERVER_FILE).stem:
            raise ConfigError(f"--client {name}: give a name of letters, digits, '.', '_' and '-', other than 'server'")
        if clients.count(name) > 1 or (folder / f"{name}.key").exists() or name in _listed(folder):
            raise ConfigError(f"--client {name}: has keys already; choose another name, or --revoke it first")
    written: list[Path] = []
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not (folder / SERVER_FILE).exists():
            public, secret = (key.decode() for key in zmq.curve_keypair())
            written.append(_write(folder / SERVER_FILE, _json(ServerPair(public, secret))))
        if not (folder / ALLOWED_FILE).exists():
            written.append(_write(folder / ALLOWED_FILE, _HEAD.encode()))
        server = _read_pair(folder / SERVER_FILE).public
        for name in clients:
            public, secret = (key.decode() for key in zmq.curve_keypair())
            written.append(_write(folder / f"{name}.key", _json(ClientKeys(name, public, secret, server))))
            lines = read_private(folder / ALLOWED_FILE).decode()
            _write(folder / ALLOWED_FILE, f"{lines}{name} {public}\n".encode())
    except OSError as error:
        raise KeyFileError(f"{folder}: keys cannot be written there ({error.strerror}); choose another") from error
    return written


def clients_of(folder: Path) -> dict[str, Path | None]:
    """Return the allowed clients of a key folder, each with its key file; None where that is not in the folder.

    Raises:
        KeyFileError: the list cannot be read, or others can read it.
    """
    paths = {name: folder / f"{name}.key" for name in _listed(folder)}
    return {name: path if path.exists() else None for name, path in paths.items()}


def revoke(folder: Path, names: Sequence[str]) -> None:
    """Remove clients from the allow-list, and remove their key files if these are still in the folder.

    Raises:
        ConfigError: a name is not on the list.
        KeyFileError: a file cannot be read or written.
    """
    listed = _listed(folder)
    for name in names:
        if name not in listed:
            raise ConfigError(f"--revoke {name}: is not on the list; its clients are {', '.join(listed) or 'none'}")
    path = folder / ALLOWED_FILE
    kept = [line for line in read_private(path).decode().splitlines(keepends=True) if line.split()[:1] != []]
    kept = [line for line in kept if line.startswith("#") or line.split()[0] not in names]
    try:
        _write(path, "".join(kept).encode())
        for name in names:
            (folder / f"{name}.key").unlink(missing_ok=True)
    except OSError as error:
        raise KeyFileError(f"{path}: cannot be written ({error.strerror}); check the folder") from error


def _listed(folder: Path) -> list[str]:
    """Return the names on the allow-list of a folder; none if there is no list yet."""
    path = folder / ALLOWED_FILE
    if not path.exists():
        return []
    lines = read_private(path).decode(errors="replace").splitlines()
    return [line.split()[0] for line in lines if line.strip() and not line.startswith("#")]


def _json(pair: ServerPair | ClientKeys) -> bytes:
    return msgspec.json.format(msgspec.json.encode(pair), indent=1) + b"\n"


def _write(path: Path, content: bytes) -> Path:
    """Write a file that only the owner can read, in one step: a reader sees the old file or the whole new one."""
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)
    with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
    partial.replace(path)
    return path
