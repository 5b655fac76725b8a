"""A camera without sender reports and with faults of its own: `python -m benchmarks.chaos.rtp_camera PORT [options]`

Serves time-coded pictures as H.264 at rtsp://127.0.0.1:PORT/live, over TCP or UDP. Time stamps can be off, and packets
can be lost. Prints "ready". Source of the packets: RFC 6184 (single NAL units and FU-A), RFC 2326.
"""

from __future__ import annotations

import argparse
import random
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from fractions import Fraction

import av
import numpy as np

from benchmarks.chaos.timecode import HEIGHT, WIDTH, draw

_MOST_BYTES = 1200
_CLOCK = 90_000
_SDP = (
    "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=camera\r\nt=0 0\r\nm=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\n"
    "a=fmtp:96 packetization-mode=1\r\na=control:track0\r\n"
)


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("--fps", type=int, default=15)
    parser.add_argument("--loss", type=float, default=0.0, help="share of UDP packets that are lost")
    parser.add_argument("--wrong-at", type=float, default=None, help="second of one picture with a wrong time stamp")
    parser.add_argument("--wrong-by", type=float, default=3600.0, help="error of that time stamp, s")
    parser.add_argument("--jump-at", type=float, default=None, help="second from which all time stamps are off")
    parser.add_argument("--jump-by", type=float, default=-30.0, help="error of those time stamps, s")
    options = parser.parse_args()
    with socket.create_server(("127.0.0.1", options.port)) as server:
        print("ready", flush=True)
        while True:
            connection, _ = server.accept()
            threading.Thread(target=answer, args=(connection, options), daemon=True).start()


def answer(connection: socket.socket, options: argparse.Namespace) -> None:
    """Answer the requests of one client; PLAY starts the stream."""
    pending, send = b"", interleaved(connection)
    try:
        while data := connection.recv(65536):
            pending += data
            while b"\r\n\r\n" in pending:
                head, pending = pending.split(b"\r\n\r\n", 1)
                request = head.decode(errors="replace")
                found = re.search(r"(OPTIONS|DESCRIBE|SETUP|PLAY|TEARDOWN|GET_PARAMETER) \S+ RTSP", request)
                if found is None:
                    continue
                ports = re.search(r"client_port=(\d+)-(\d+)", request)
                if ports is not None:
                    send = datagrams(int(ports[1]), options.loss)
                extra, body = reply(found[1], ports)
                number = re.search(r"CSeq: *(\d+)", request)
                sequence = number[1] if number else "0"
                connection.sendall(f"RTSP/1.0 200 OK\r\nCSeq: {sequence}\r\n{extra}\r\n{body}".encode())
                if found[1] == "PLAY":
                    threading.Thread(target=stream, args=(send, options), daemon=True).start()
    except OSError:
        return  # the client hung up


def reply(method: str, ports: re.Match[str] | None) -> tuple[str, str]:
    """Return (header lines, body) of the answer to a request."""
    if method == "OPTIONS":
        return "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN\r\n", ""
    if method == "DESCRIBE":
        return f"Content-Type: application/sdp\r\nContent-Length: {len(_SDP)}\r\n", _SDP
    if method == "SETUP" and ports is not None:
        client = f"client_port={ports[1]}-{ports[2]}"
        return f"Transport: RTP/AVP;unicast;{client};server_port=6970-6971\r\nSession: 1\r\n", ""
    if method == "SETUP":
        return "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 1\r\n", ""
    return "Session: 1\r\n", ""


def interleaved(connection: socket.socket) -> Callable[[bytes], None]:
    """Send RTP packets within the RTSP connection."""
    return lambda packet: connection.sendall(b"$\0" + struct.pack(">H", len(packet)) + packet)


def datagrams(port: int, loss: float) -> Callable[[bytes], None]:
    """Send RTP packets by UDP and lose a share of them."""
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    chance = random.Random(0)

    def send(packet: bytes) -> None:
        if chance.random() >= loss:
            sender.sendto(packet, ("127.0.0.1", port))

    return send


def stream(send: Callable[[bytes], None], options: argparse.Namespace) -> None:
    """Send pictures in real time until the client is gone."""
    encoder = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height, encoder.pix_fmt = WIDTH, HEIGHT, "yuv420p"
    encoder.time_base = Fraction(1, options.fps)
    encoder.bit_rate = 600_000
    encoder.options = {"preset": "ultrafast", "tune": "zerolatency", "g": str(options.fps)}
    sequence, begun_s = 0, time.monotonic()
    try:
        for index in range(1 << 30):
            seconds = index / options.fps
            grey_HW = np.frombuffer(draw(time.time_ns(), index), np.uint8).reshape(HEIGHT, WIDTH)
            picture = av.VideoFrame.from_ndarray(grey_HW, format="gray").reformat(format="yuv420p")
            picture.pts = index
            stamp = round(stated_s(seconds, 1 / options.fps, options) * _CLOCK) & 0xFFFFFFFF
            for packet in encoder.encode(picture):
                for payload, last in payloads(bytes(packet)):
                    send(struct.pack(">BBHII", 0x80, 96 | last << 7, sequence & 0xFFFF, stamp, 7) + payload)
                    sequence += 1
            time.sleep(max(0.0, begun_s + (index + 1) / options.fps - time.monotonic()))
    except OSError:
        return  # the client hung up


def stated_s(seconds: float, interval_s: float, options: argparse.Namespace) -> float:
    """The time stamp of the picture at `seconds`, with the faults that were asked for."""
    if options.jump_at is not None and seconds >= options.jump_at:
        seconds += options.jump_by
    elif options.wrong_at is not None and options.wrong_at <= seconds < options.wrong_at + interval_s:
        seconds += options.wrong_by
    return seconds


def payloads(annex_b: bytes) -> Iterator[tuple[bytes, bool]]:
    """Yield (payload, whether it is the picture's last)."""
    units = [unit.rstrip(b"\0") for unit in re.split(b"\0\0\0?\1", annex_b) if unit]
    for number, unit in enumerate(units):
        last_unit = number == len(units) - 1
        if len(unit) <= _MOST_BYTES:
            yield unit, last_unit
            continue
        body = unit[1:]
        for start in range(0, len(body), _MOST_BYTES):
            end = start + _MOST_BYTES >= len(body)
            header = bytes([unit[0] & 0xE0 | 28, (0x80 if start == 0 else 0) | (0x40 if end else 0) | unit[0] & 31])
            yield header + body[start : start + _MOST_BYTES], last_unit and end


if __name__ == "__main__":
    main()
