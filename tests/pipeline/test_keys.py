"""Key folders: what is made, who may read it, and whom the allow-list lets in."""

import json
import os
import stat
from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.keys import ALLOWED_FILE, SERVER_FILE, AllowList, ServerKeys, make_keys, revoke
from xpose_client.errors import KeyFileError
from xpose_client.keys import load_client_keys


def test_folder_and_files_are_for_the_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    written = make_keys(folder, ["robot", "wall"])
    assert {path.name for path in written} == {SERVER_FILE, ALLOWED_FILE, "robot.key", "wall.key"}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


def test_each_client_has_a_pair_of_its_own_and_the_key_of_the_pipeline(tmp_path: Path) -> None:
    make_keys(tmp_path, ["robot", "wall"])
    server = ServerKeys(tmp_path)
    robot, wall = (load_client_keys(tmp_path / f"{name}.key") for name in ("robot", "wall"))
    assert robot.server == wall.server == server.pair.public
    assert len({robot.public, robot.secret, wall.public, wall.secret, server.pair.public, server.pair.secret}) == 6
    assert server.allowed.name_of(robot.public) == "robot"
    assert server.allowed.name_of(server.pair.public) is None


def test_client_that_is_added_later_keeps_the_keys_that_are_there(tmp_path: Path) -> None:
    make_keys(tmp_path, ["robot"])
    before, robot = ServerKeys(tmp_path), load_client_keys(tmp_path / "robot.key")
    assert [path.name for path in make_keys(tmp_path, ["wall"])] == ["wall.key"]
    assert ServerKeys(tmp_path).pair == before.pair
    assert before.allowed.name_of(robot.public) == "robot"
    assert before.allowed.name_of(load_client_keys(tmp_path / "wall.key").public) == "wall"


def test_client_that_is_revoked_is_not_allowed_and_may_be_made_anew(tmp_path: Path) -> None:
    make_keys(tmp_path, ["robot", "wall"])
    server = ServerKeys(tmp_path)
    robot, wall = (load_client_keys(tmp_path / f"{name}.key") for name in ("robot", "wall"))
    revoke(tmp_path, ["robot"])
    assert server.allowed.name_of(robot.public) is None
    assert server.allowed.name_of(wall.public) == "wall"
    assert not (tmp_path / "robot.key").exists()
    make_keys(tmp_path, ["robot"])
    assert server.allowed.name_of(robot.public) is None
    assert server.allowed.name_of(load_client_keys(tmp_path / "robot.key").public) == "robot"


def test_list_is_read_again_when_somebody_edits_it(tmp_path: Path) -> None:
    make_keys(tmp_path, ["robot"])
    allowed, robot = AllowList(tmp_path / ALLOWED_FILE), load_client_keys(tmp_path / "robot.key")
    path = tmp_path / ALLOWED_FILE
    path.write_text(f"# none\n\nnonsense\na b c\nshort key\nrenamed   {robot.public}  \n")
    assert allowed.name_of(robot.public) == "renamed"
    path.write_text("")
    assert allowed.name_of(robot.public) is None


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o622, 0o666])
def test_files_that_others_can_read_or_change_are_refused(tmp_path: Path, mode: int) -> None:
    make_keys(tmp_path, ["robot"])
    for name in (SERVER_FILE, ALLOWED_FILE, "robot.key"):
        (tmp_path / name).chmod(mode)
        with pytest.raises(KeyFileError, match=f"{name}: others can read or change this file .*chmod 600"):
            load_client_keys(tmp_path / name) if name == "robot.key" else ServerKeys(tmp_path)
        (tmp_path / name).chmod(0o600)
    ServerKeys(tmp_path)


def test_list_that_becomes_readable_or_vanishes_lets_nobody_in(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_keys(tmp_path, ["robot"])
    server, robot = ServerKeys(tmp_path), load_client_keys(tmp_path / "robot.key")
    path = tmp_path / ALLOWED_FILE
    path.chmod(0o644)
    assert server.allowed.name_of(robot.public) is None
    assert server.allowed.name_of(robot.public) is None
    assert caplog.text.count("others can read or change this file") == 1
    path.chmod(0o600)
    assert server.allowed.name_of(robot.public) == "robot"
    path.unlink()
    assert server.allowed.name_of(robot.public) is None


@pytest.mark.parametrize("name", ["", "server", "../x", "a b", "-x", "é", "x" * 65, "a/b"])
def test_name_that_is_no_word_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"--client .*: give a name"):
        make_keys(tmp_path / "keys", [name])
    assert not (tmp_path / "keys").exists()


def test_name_that_is_taken_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    make_keys(tmp_path, ["robot"])
    before = (tmp_path / ALLOWED_FILE).read_bytes()
    for clients in (["robot"], ["wall", "robot"], ["wall", "wall"]):
        with pytest.raises(ConfigError, match="has keys already"):
            make_keys(tmp_path, clients)
    assert (tmp_path / ALLOWED_FILE).read_bytes() == before
    with pytest.raises(ConfigError, match="--revoke wall: is not on the list; its clients are robot"):
        revoke(tmp_path, ["wall"])


def test_what_is_no_key_folder_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match=r"is not a key folder, it has no server.key; make one with `python run_pip"):
        ServerKeys(tmp_path)


@pytest.mark.parametrize("content", ["", "{}", "nonsense", '{"public": "short", "secret": "short"}'])
def test_what_is_no_key_file_is_refused(tmp_path: Path, content: str) -> None:
    make_keys(tmp_path, ["robot"])
    for name in (SERVER_FILE, "robot.key"):
        (tmp_path / name).write_text(content)
    with pytest.raises(KeyFileError, match="is not the key file of a pipeline"):
        ServerKeys(tmp_path)
    with pytest.raises(KeyFileError, match="is not the key file of a client"):
        load_client_keys(tmp_path / "robot.key")
    with pytest.raises(KeyFileError, match="cannot be read"):
        load_client_keys(tmp_path / "absent.key")


@pytest.mark.parametrize("field", ["public", "secret", "server"])
@pytest.mark.parametrize("damage", ['"' * 40, "é" * 20, "~" * 40, ""])
def test_damaged_key_is_refused_before_a_socket_gets_it(tmp_path: Path, field: str, damage: str) -> None:
    make_keys(tmp_path, ["robot"])
    for name in (SERVER_FILE, "robot.key"):
        keys = json.loads((tmp_path / name).read_text())
        if field in keys:
            (tmp_path / name).write_text(json.dumps({**keys, field: damage}))
    with pytest.raises(KeyFileError, match="a key is Z85 text of 40 characters"):
        load_client_keys(tmp_path / "robot.key")
    if field != "server":
        with pytest.raises(KeyFileError, match="a key is Z85 text of 40 characters"):
            ServerKeys(tmp_path)


def test_keys_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    make_keys(tmp_path, ["robot", "wall"])
    robot, wall = (json.loads((tmp_path / f"{name}.key").read_text()) for name in ("robot", "wall"))
    (tmp_path / "robot.key").write_text(json.dumps({**robot, "secret": wall["secret"]}))
    with pytest.raises(KeyFileError, match="the public key does not belong to the secret key"):
        load_client_keys(tmp_path / "robot.key")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(KeyFileError, match="keys cannot be written there"):
        make_keys(tmp_path / "keys", [])
    tmp_path.chmod(0o700)
