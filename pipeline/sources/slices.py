"""Joins the packets of an H.264 picture that FFmpeg split between its slices.

GStreamer's `rtph264pay config-interval=-1` repeats the parameter sets before every slice of a key frame. FFmpeg takes
them for the beginning of the next picture. A key frame of `x264enc tune=zerolatency` then comes as one packet for each
slice, and every picture until the next key frame refers to a part of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import av
from av.video.stream import VideoStream

from pipeline.sources.clock import Arrival

_FIRST_SLICE = re.compile(rb"\x00\x00\x01[\x01\x05\x21\x25\x41\x45\x61\x65](.)", re.DOTALL)
"""Start code and header of a coded slice (types 1 and 5), and its first byte. Source: H.264, 7.3.1 and 7.3.3."""


class SliceJoiner:
    """Takes the packets of one connection, and yields those to decode.

    No packet waits until a key frame has come in parts. From then on a key frame waits until it has as many parts as
    earlier ones, or for a packet of another picture. A part that was yielded is in the next packet again.
    """

    def __init__(self, stream: VideoStream) -> None:
        extradata = stream.codec_context.extradata or b""
        self._applies = stream.codec_context.name == "h264" and not extradata.startswith(b"\1")  # that is not Annex B
        self._last: av.Packet[VideoStream] | None = None
        self._held = False  # whether `_last` waits
        self._count = 1  # parts of `_last`
        self._most = 1

    def take(self, packet: av.Packet[VideoStream]) -> Iterator[av.Packet[VideoStream]]:
        """Yield the packets to decode now."""
        if not self._applies:
            yield packet
            return
        if self._last is not None and _continues(self._last, packet):
            packet = _joined(self._last, packet)
            self._count += 1
            self._most = max(self._most, self._count)
        else:
            if self._last is not None and self._held:
                yield self._last
            self._count = 1
        self._last = packet
        self._held = packet.is_keyframe and self._count < self._most
        if not self._held:
            yield packet


def _continues(before: av.Packet[VideoStream], packet: av.Packet[VideoStream]) -> bool:
    """Whether `packet` is the next part of the key frame that `before` began."""
    if not (before.is_keyframe and packet.is_keyframe) or before.pts not in (None, packet.pts):
        return False
    first_slice = _FIRST_SLICE.search(bytes(packet))
    return first_slice is not None and first_slice[1][0] < 0x80  # its first macroblock is not the picture's first


def _joined(before: av.Packet[VideoStream], packet: av.Packet[VideoStream]) -> av.Packet[VideoStream]:
    joined: av.Packet[Any] = av.Packet(bytes(before) + bytes(packet))
    joined.stream = packet.stream
    joined.pts, joined.dts, joined.time_base, joined.is_keyframe = packet.pts, packet.dts, packet.time_base, True
    arrival = before.opaque
    joined.opaque = replace(arrival, size_bytes=joined.size) if isinstance(arrival, Arrival) else arrival
    return joined
