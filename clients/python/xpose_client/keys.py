"""Key files of clients. `run_pipeline.py keys FOLDER` writes one for each client: JSON that only its owner can read."""

import os
import struct
from pathlib import Path
from typing import Any, Union

import msgspec
import zmq
from zmq.utils import z85

from xpose_client.errors import KeyFileError

_KEY_CHARACTERS = 40  # in Z85 (https://rfc.zeromq.org/spec/32)
_KEY_BYTES = 32
_OTHERS = 0o077


class ClientKeys(msgspec.Struct, frozen=True):
    """The keys of a client for one pipeline that uses CURVE. Keys are Z85 text of 40 characters.

    Attributes:
        name: the client's name in the pipeline's allow-list.
        public: the client's public key.
        secret: the client's secret key.
        server: the pipeline's public key.
    """

    name: str
    public: str
    secret: str
    server: str

    def __post_init__(self) -> None:
        check_pair(self.public, self.secret)
        check_key(self.server)

    def apply_to(self, socket: "zmq.Socket[Any]") -> None:
        """Make `socket` use CURVE; call it before `connect`."""
        socket.curve_publickey = self.public.encode()
        socket.curve_secretkey = self.secret.encode()
        socket.curve_serverkey = self.server.encode()


def check_key(key: str) -> None:
    """Raise a ValueError if `key` is not a key."""
    try:
        valid = len(key) == _KEY_CHARACTERS and len(z85.decode(key.encode())) == _KEY_BYTES
    except (KeyError, ValueError, struct.error):
        valid = False
    if not valid:
        raise ValueError(f"a key is Z85 text of {_KEY_CHARACTERS} characters")


def check_pair(public: str, secret: str) -> None:
    """Raise a ValueError if the two keys do not belong together."""
    check_key(public)
    check_key(secret)
    if zmq.curve_public(secret.encode()) != public.encode():
        raise ValueError("the public key does not belong to the secret key")


def load_client_keys(path: Union[str, "os.PathLike[str]"]) -> ClientKeys:
    """Read the key file of a client.

    Raises:
        KeyFileError: the file cannot be read, is not a key file, or can be read by others.
    """
    data = read_private(Path(path))
    try:
        return msgspec.json.decode(data, type=ClientKeys)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise KeyFileError(
            f"{path}: is not the key file of a client ({error}); give a NAME.key that "
            "`python run_pipeline.py keys FOLDER --client NAME` wrote"
        ) from error


def read_private(path: Path) -> bytes:
    """Read a file that only its owner may read.

    Raises:
        KeyFileError: the file cannot be read, or others can read it.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if mode & _OTHERS:
                raise KeyFileError(
                    f"{path}: others can read or change this file (mode {mode & 0o777:o}); run `chmod 600 {path}`, and "
                    "make new keys if somebody may have read it"
                )
            return file.read()
    except OSError as error:
        raise KeyFileError(f"{path}: cannot be read ({error.strerror}); give the path of a key file") from error
