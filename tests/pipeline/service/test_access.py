"""Where the monitor may listen, and the file with its token."""

import re
from pathlib import Path

import pytest

from pipeline.errors import ConfigError, MonitorError
from pipeline.service.access import MonitorConfig, Names, listen, read_token


@pytest.mark.parametrize("address", ["127.0.0.1:8080", "localhost:0", "[::1]:8080", "127.8.9.1:1"])
def test_this_machine_alone_needs_no_token(address: str) -> None:
    assert MonitorConfig(address).token_file == ""


@pytest.mark.parametrize("address", ["0.0.0.0:8080", "[::]:8080", "192.168.1.5:8080", "camera-host:8080"])
def test_address_beyond_this_machine_needs_a_token_file(address: str) -> None:
    with pytest.raises(ConfigError, match="others on the network could reach it, so it needs --monitor-token-file"):
        MonitorConfig(address)
    MonitorConfig(address, token_file="token")


def test_name_of_a_proxy_needs_a_token_file() -> None:
    with pytest.raises(ConfigError, match=r"monitor\.hosts opens it to others, so it needs --monitor-token-file"):
        MonitorConfig("127.0.0.1:8080", hosts=("cameras.example.org",))


@pytest.mark.parametrize(
    "address",
    ["8080", "127.0.0.1", "127.0.0.1:", "127.0.0.1:99999", "http://127.0.0.1:80", "::1:8080", "a b:80", ":80"],
)
def test_what_is_no_host_and_port_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="give HOST:PORT, such as"):
        MonitorConfig(address)


@pytest.mark.parametrize(
    "setting",
    [{"steer": "some"}, {"picture_rate": 0}, {"picture_side": 1}, {"picture_quality": 0}, {"viewers": 0},
     {"stall_s": 0}, {"hosts": ("a:80",)}, {"hosts": ("http://a",)}],
)  # fmt: skip
def test_setting_outside_its_range_is_named(setting: dict[str, object]) -> None:
    (key,) = setting
    with pytest.raises(ConfigError, match=f"^monitor.{key} "):
        MonitorConfig(**setting)  # type: ignore[arg-type]


def test_address_that_is_taken_is_one_sentence() -> None:
    with listen("127.0.0.1:0") as first:
        address = f"127.0.0.1:{first.getsockname()[1]}"
        with pytest.raises(MonitorError, match=f"--monitor {re.escape(address)}: cannot listen there"):
            listen(address)
    with pytest.raises(MonitorError, match="the name is not known"):
        listen("no-such-host.invalid:80")
    with pytest.raises(MonitorError, match="cannot listen there"):
        listen("192.0.2.1:8080")


def token_file(folder: Path, text: str, mode: int = 0o600) -> Path:
    path = folder / "token"
    path.write_text(text)
    path.chmod(mode)
    return path


def test_token_is_read_without_its_newline(tmp_path: Path) -> None:
    assert read_token(token_file(tmp_path, "0123456789abcdef\n")) == "0123456789abcdef"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_token_file_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(MonitorError, match="others can read it; run `chmod 600"):
        read_token(token_file(tmp_path, "0123456789abcdef", mode))


@pytest.mark.parametrize("text", ["", "short", "two words are no token at all", "0123456789abcdéf" * 2])
def test_token_that_is_short_or_odd_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(MonitorError, match="needs one word of 16 or more"):
        read_token(token_file(tmp_path, text))


def test_token_file_that_is_absent_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(MonitorError, match="openssl rand"):
        read_token(tmp_path / "none")


@pytest.mark.parametrize(
    ("host", "local", "wide"),
    [
        ("localhost:8080", True, True),
        ("127.0.0.1:1234", True, True),
        ("LOCALHOST", True, True),
        ("[::1]:8080", True, True),
        ("192.168.1.5:8080", False, True),
        ("cameras.example.org", False, True),
        ("evil.example:8080", False, False),
        ("127.0.0.1.evil.example", False, False),
        ("localhost:8080@evil.example", False, False),
        ("", False, False),
    ],
)
def test_only_names_of_the_monitor_are_answered(host: str, local: bool, wide: bool) -> None:
    assert Names.of(MonitorConfig("127.0.0.1:8080")).has(host) is local
    opened = MonitorConfig("0.0.0.0:8080", token_file="t", hosts=("cameras.example.org",))
    assert Names.of(opened).has(host) is wide
