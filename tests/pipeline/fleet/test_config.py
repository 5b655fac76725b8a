"""The file of a fleet, and the addresses that are made of it."""

from pathlib import Path

import pytest

from pipeline.errors import ConfigError, PublishError
from pipeline.fleet.config import Camera, read_fleet
from pipeline.fleet.directory import Directory, FleetEntry, ask
from pipeline.keys import ServerKeys, make_keys


def test_cameras_are_addresses_or_tables(tmp_path: Path) -> None:
    file = tmp_path / "fleet.toml"
    file.write_text(
        'workers = 3\n[cameras]\ndoor = "rtsp://a/1"\nhall = { address = "rtsp://b/2", rate = 25.5 }\n"hall/2" = "udp://@:1"\n'
    )
    config = read_fleet(file)
    assert config.workers == 3
    assert config.by_name["door"] == Camera("rtsp://a/1", 10.0)
    assert config.by_name["hall"].rate == 25.5


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("workers = 0", "workers must be 1 or more"),
        ("worker = 2", "unknown field `worker`"),
        ("silence_s = 0.1", "silence_s is 0.1"),
        ("workers = ", "is not TOML"),
        ('[cameras]\ndoor = "gopher://x"', "cameras.door: gopher:// is not a kind of source"),
        ('[cameras]\n"a b" = "rtsp://x"', "is not a name"),
        ('[cameras]\na = { address = "rtsp://x", rate = 0 }', "cameras.a.rate is 0"),
        ('[cameras]\na = { adress = "rtsp://x" }', "adress"),
    ],
)
def test_file_that_makes_no_sense_is_an_error_that_names_the_file(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "fleet.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=says) as caught:
        read_fleet(file)
    assert str(caught.value).startswith(f"{file}: ")


def test_absent_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_fleet(tmp_path / "absent.toml")


def test_directory_answers_and_nobody_else_can_take_its_address() -> None:
    import threading

    entry = FleetEntry("tcp://127.0.0.1:1", [], [])
    with Directory("tcp://127.0.0.1:*") as directory:
        got: list[FleetEntry] = []
        asking = threading.Thread(target=lambda: got.append(ask(directory.endpoint, 20)))
        asking.start()
        while not got:
            directory.answer(lambda: entry)
        asking.join(20)
        assert got == [entry]
        with pytest.raises(PublishError, match="another program uses this address"):
            Directory(directory.endpoint)


def test_question_that_nobody_answers_is_an_error() -> None:
    with pytest.raises(ConfigError, match="no fleet answers"):
        ask("tcp://127.0.0.1:9", 0.05)
    with pytest.raises(ConfigError, match="is not a ZeroMQ address"):
        ask("nonsense")


def test_directory_with_keys_answers_its_clients_alone(tmp_path: Path) -> None:
    import threading

    folder = tmp_path / "keys"
    make_keys(folder, ["robot"])
    entry = FleetEntry("tcp://127.0.0.1:1", [], [])
    with pytest.raises(ConfigError, match="there are no keys"):
        Directory("tcp://*:0")
    with Directory("tcp://127.0.0.1:*", ServerKeys(folder)) as directory:
        got: list[FleetEntry | ConfigError] = []

        def question(timeout_s: float, keys: Path | None) -> None:
            try:
                got.append(ask(directory.endpoint, timeout_s, keys))
            except ConfigError as error:
                got.append(error)

        for number, (timeout_s, keys) in enumerate(((0.5, None), (20.0, folder / "robot.key"))):
            asking = threading.Thread(target=question, args=(timeout_s, keys))
            asking.start()
            while len(got) == number:
                directory.answer(lambda: entry)
            asking.join(20)
        assert isinstance(got[0], ConfigError)
        assert got[1] == entry
