"""Addresses as people type them."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote, unquote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import SourceError
from pipeline.sources.addresses import parse_address

PASSWORDS = [
    "secret",
    "p@ss",
    "a/b",
    "a#b",
    "a?b",
    "100%",
    "two words",
    "1234/5",
    "a:b",
    "é",
    "@",
    "#?/@%",
    "p@a/b?c#d",
]
HOSTS = ["10.0.0.5", "10.0.0.5:554", "[fe80::1]:8554", "[::1]", "cam.example.org", "localhost:8554"]


@pytest.mark.parametrize("encoded", [False, True])
@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("password", PASSWORDS)
def test_any_password_reaches_ffmpeg_and_nobody_else(password: str, host: str, encoded: bool) -> None:
    typed = quote(password, safe="") if encoded else password
    address = parse_address(f"rtsp://admin:{typed}@{host}/live/1?unicast=true")
    credentials, _, rest = address.url.removeprefix("rtsp://").partition("@")
    user, _, ours = credentials.partition(":")
    assert (user, unquote(ours)) == ("admin", password)
    assert rest == f"{host}/live/1?unicast=true"
    assert address.label == f"rtsp://{host}/live/1"
    assert "admin" not in address.name


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1, max_size=12))
def test_a_percent_encoded_password_survives(password: str) -> None:
    address = parse_address(f"RTSP://user:{quote(password, safe='')}@camera:554/x")
    assert unquote(address.url.removeprefix("rtsp://user:").rpartition("@camera:554/x")[0]) == password


def test_user_without_password_and_user_with_an_at_sign() -> None:
    assert parse_address("rtsp://me@cam/x").url == "rtsp://me@cam/x"
    assert parse_address("rtsp://me@home.org:pw@10.0.0.5/x").url == "rtsp://me%40home.org:pw@10.0.0.5/x"


@pytest.mark.parametrize("text", ["rtsp://10.0.0.5/live@2", "rtsp://cam/live@main", "rtsp://u:p@10.0.0.5/a@b"])
def test_at_sign_in_the_path_is_no_password(text: str) -> None:
    assert parse_address(text).url == text


@pytest.mark.parametrize(
    ("text", "url", "name"),
    [
        ("RTSP://Cam.Example:554/Live", "rtsp://cam.example:554/Live", "cam.example:554/Live"),
        ("rtsp://[::1]/x", "rtsp://[::1]/x", "::1/x"),
        ("rtsp://[fe80::1%eth0]:8554/x", "rtsp://[fe80::1%eth0]:8554/x", "fe80::1%eth0:8554/x"),
        ("udp://:5000", "udp://:5000", ":5000"),
        ("HTTP://cam/stream", "http://cam/stream", "cam/stream"),
    ],
)
def test_schemes_hosts_and_ports(text: str, url: str, name: str) -> None:
    address = parse_address(text)
    assert (address.url, address.name, address.kind) == (url, name, "live")


@pytest.mark.parametrize("port", ["0", "65536", "99999", "-1", "abc", "8x"])
def test_port_out_of_range_is_refused_and_the_password_is_not_shown(port: str) -> None:
    with pytest.raises(SourceError, match="1 to 65535") as caught:
        parse_address(f"rtsp://admin:secret@10.0.0.5:{port}/x")
    assert "secret" not in str(caught.value)


def test_ipv6_without_brackets_is_refused() -> None:
    with pytest.raises(SourceError, match="brackets"):
        parse_address("rtsp://fe80::1:2:3/x")


def test_secrets_in_path_and_query_are_not_shown() -> None:
    for text in (
        "rtsp://cam/user=admin_password=hunter2_channel=1",
        "http://cam/v?token=hunter2",
        "rtsp://cam/pwd=hunter2&c=1",
    ):
        address = parse_address(text)
        assert "hunter2" not in address.label + address.name
        assert "hunter2" in address.url


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("http://h/clip.mp4", "recording"),
        ("https://h/clip.MP4?sig=a%2Fb&x=1", "recording"),
        ("http://h/get?file=clip.mkv", "recording"),
        ("http://h/live/index.m3u8?a=1", "playlist"),
        ("http://h/stream", "live"),
        ("rtsp://h/clip.mp4", "live"),
        ("testsrc://?size=64x48", "testsrc"),
        ("/dev/video0", "device"),
        ("/dev/v4l/by-id/usb-cam", "device"),
        ("/dev/null", "device"),
        ("/dev/shm/x.mp4", "path"),
        ("/dev/stdin", "path"),
        ("/dev/fd/63", "path"),
        ("-", "path"),
        ("clip:1.mp4", "path"),
    ],
)
def test_kinds(text: str, kind: str) -> None:
    assert parse_address(text).kind == kind


def test_process_substitution_is_a_path() -> None:
    reading, writing = os.pipe()
    try:
        assert parse_address(f"/dev/fd/{reading}").kind == "path"
        assert parse_address(f"/proc/self/fd/{reading}").kind == "path"
    finally:
        os.close(reading)
        os.close(writing)


def test_file_urls_are_decoded(tmp_path: Path) -> None:
    assert parse_address(f"file://{tmp_path}/two%20words.mp4").url == f"{tmp_path}/two words.mp4"


def test_unknown_scheme_names_those_that_are_known() -> None:
    with pytest.raises(SourceError, match="rtsp://"):
        parse_address("gopher://x")
