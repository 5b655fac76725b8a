"""The file of a fleet: its cameras, the settings of its workers, and the addresses for its users.

publish = "tcp://*:5555"                      # one address for all subscribers
directory = "tcp://127.0.0.1:5556"            # for `fleet status`
workers = 4
gpus = 1
keys = "keys"                                 # made by `run_pipeline.py keys keys --client fleet`
prompt = "person"
set = ["engine.model=swin-t"]

[cameras]
door = "rtsp://10.0.0.7/stream"
hall = { address = "rtsp://10.0.0.8/stream", rate = 15 }
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import msgspec

from pipeline.errors import ConfigError, SourceError
from pipeline.sources.addresses import parse_address

_NAME = re.compile(r"[^\s\0]+")


class Camera(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One camera.

    Attributes:
        address: as for `run --source`.
        rate: frames per second of a worker's capacity that it needs; if the camera sends more, frames may be dropped.
    """

    address: str
    rate: float = 10.0


class FleetConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A fleet.

    Attributes:
        cameras: by the name of their source in messages; instead of a table, an address is enough.
        publish: ZeroMQ address for the subscribers of all cameras.
        directory: ZeroMQ address that `fleet status` asks.
        workers: number of workers; each has its own engine.
        cpus, gpus: cores and GPUs that each worker takes; with 0.5 GPUs, two workers share a GPU.
        silence_s: if nothing is received from a worker for this long, its cameras move to others. Use more than two
            beats (`publish.beat_s`).
        keys: key folder with a client `fleet`, at the same path on every machine; "" for no keys.
        prompt, keypoints: what to look for, as for `run`.
        config: preset, as for `run`.
        set: single settings that override the preset, as for `run --set`.
    """

    cameras: dict[str, str | Camera] = {}
    publish: str = "tcp://127.0.0.1:5555"
    directory: str = "tcp://127.0.0.1:5556"
    workers: int = 1
    cpus: float = 1.0
    gpus: float = 0.0
    silence_s: float = 3.0
    keys: str = ""
    prompt: str = "person"
    keypoints: str | None = None
    config: str | None = None
    set: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.workers < 1 or not self.cpus > 0 or not self.gpus >= 0:
            raise ConfigError("workers must be 1 or more, cpus above 0, and gpus 0 or more")
        if not 1 <= self.silence_s <= 60:
            raise ConfigError(f"silence_s is {self.silence_s:g}: give 1 s to 60 s")
        for name, camera in self.by_name.items():
            _check_camera(name, camera)

    @property
    def by_name(self) -> dict[str, Camera]:
        """The cameras by name. A camera that is given as an address has the default rate."""
        return {name: Camera(given) if isinstance(given, str) else given for name, given in self.cameras.items()}


def read_fleet(path: Path) -> FleetConfig:
    """Read a fleet's file.

    Raises:
        ConfigError: the file cannot be read, or a value is not valid.
    """
    try:
        return msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), FleetConfig)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give the file of a fleet") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not TOML: {error}") from error
    except (msgspec.ValidationError, ConfigError) as error:
        raise ConfigError(f"{path}: {error}") from error


def _check_camera(name: str, camera: Camera) -> None:
    if not _NAME.fullmatch(name):
        raise ConfigError(f"cameras: {name!r} is not a name; give one without spaces")
    if not 0 < camera.rate < 1000:
        raise ConfigError(f"cameras.{name}.rate is {camera.rate:g}: give frames per second above 0")
    try:
        parse_address(camera.address)
    except SourceError as error:
        raise ConfigError(f"cameras.{name}: {error}") from error
