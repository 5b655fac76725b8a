"""Passes the packets of a source to a recorder.

A source calls `packet` with every packet and `frame` with every frame that came out of the decoder. While there is no
recording (`Source.tap` is None), both return at once. All calls come from the iterating thread, which also owns the
bitstream filter.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING

import av
from av.bitstream import BitStreamFilterContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from pipeline.frames import Frame, now_ns
from pipeline.recording import VIDEO_FORMATS, Piece, StreamRecord
from pipeline.sources.video import is_turned

if TYPE_CHECKING:
    from pipeline.sources.base import Source

logger = logging.getLogger(__name__)

_FILTERS = {
    # Annex B with the parameter sets before every key frame, so that decoding can start there.
    "h264": "h264_mp4toannexb,dump_extra",
    "hevc": "hevc_mp4toannexb,dump_extra",
}
_HUFFMAN_TABLES = b"\xff\xc4"
_B_FRAMES = "viewers do not read B-frames"
_MOST_HELD = 256  # packets without a picture; more than decoders hold back


class StreamTap:
    """Pairs the packets of one opened stream with their frames, and passes both to the recorder.

    Args:
        source: the source; its `tap` is read at every packet.
        stream: the open stream; used on this thread only.
    """

    def __init__(self, source: Source, stream: VideoStream) -> None:
        self._source = source
        self._stream = stream
        self._record: StreamRecord | None = None
        self._filter: BitStreamFilterContext | None = None
        self._held: deque[tuple[object, bytes, bool, int]] = deque()
        self._last_pts: int | None = None

    def packet(self, packet: av.Packet[VideoStream], key: object) -> None:
        """Take a packet. A later call of `frame` refers to it by the same `key`."""
        if self._source.tap is None:
            self._held.clear()
            self._record = None
            return
        goes_back = self._goes_back(packet)
        if self._record is None:
            self._record = self._begin(goes_back)
        elif goes_back and not self._record.reencoded:
            self.end()
            self._record = self._reencoded(_B_FRAMES)
        if not self._record.reencoded:
            if len(self._held) >= _MOST_HELD:
                self._pass_on(None)
            self._held.extend((key, data, packet.is_keyframe, now_ns()[0]) for data in self._converted(packet))

    def frame(self, frame: Frame | None, key: object, picture: VideoFrame) -> None:
        """Take the picture that was decoded from the packet with this key, and the frame made from it, if any."""
        if self._record is None:
            return
        if not self._record.reencoded and is_turned(picture):
            self._held.clear()
            self._record = self._reencoded("viewers do not apply its rotation")
        if self._record.reencoded:
            if frame is not None:
                self._hand_over(Piece(self._record, None, True, frame, frame.capture_unix_ns))
            return
        if not any(held[0] == key for held in self._held):
            return  # its packet came before the recording began
        while self._held[0][0] != key:
            self._pass_on(None)
        self._pass_on(frame)

    def end(self) -> None:
        """End the stream: pass on the packets that gave no frame."""
        while self._held:
            self._pass_on(None)
        self._filter = None

    def _pass_on(self, frame: Frame | None) -> None:
        _, data, is_key, unix_ns = self._held.popleft()
        if self._record is not None:
            stamp_ns = unix_ns if frame is None else frame.capture_unix_ns
            self._hand_over(Piece(self._record, data, is_key, frame, stamp_ns))

    def _hand_over(self, piece: Piece) -> None:
        tap = self._source.tap
        if tap is not None:
            tap(piece)

    def _begin(self, goes_back: bool) -> StreamRecord:
        """Decide how the pictures of this stream are recorded."""
        context = self._stream.codec_context
        codec = context.codec.canonical_name
        if codec not in (*VIDEO_FORMATS, "mjpeg"):
            return self._reencoded(f"viewers do not read {codec}")
        if codec in VIDEO_FORMATS and (context.has_b_frames or goes_back):
            return self._reencoded(_B_FRAMES)
        self._filter = BitStreamFilterContext(_FILTERS[codec], self._stream) if codec in _FILTERS else None
        return StreamRecord(
            live=self._source.live,
            format=VIDEO_FORMATS.get(codec, "jpeg"),
            frame_rate=self._source.fps,
            colors=(
                int(context.color_range),
                int(context.colorspace),
                int(context.color_primaries),
                int(context.color_trc),
            ),
        )

    def _reencoded(self, reason: str) -> StreamRecord:
        return StreamRecord(live=self._source.live, format="h264", reencoded=reason, frame_rate=self._source.fps)

    def _goes_back(self, packet: av.Packet[VideoStream]) -> bool:
        """Whether the packets are not in the order of presentation."""
        last, self._last_pts = self._last_pts, packet.pts
        return last is not None and packet.pts is not None and packet.pts < last and not packet.is_keyframe

    def _converted(self, packet: av.Packet[VideoStream]) -> list[bytes]:
        """Return the bytes to record. The filter empties its packet, so it gets a copy of the decoder's."""
        data = bytes(packet)
        if self._record is not None and self._record.format == "jpeg":
            return [data if _HUFFMAN_TABLES in data[:1024] else self._with_tables(data)]
        if self._filter is None:
            return [data]
        copy = av.Packet(data)
        copy.pts, copy.dts, copy.is_keyframe = packet.pts, packet.dts, packet.is_keyframe
        copy.time_base = packet.time_base
        try:
            return [bytes(converted) for converted in self._filter.filter(copy)]
        except av.FFmpegError as error:
            logger.debug("a packet cannot be converted for the recording (%s); it is recorded as it is", error)
            return [data]

    def _with_tables(self, data: bytes) -> bytes:
        """Add the standard Huffman tables, which Motion JPEG may leave out but JPEG needs."""
        if self._filter is None:
            self._filter = BitStreamFilterContext("mjpeg2jpeg", self._stream)
        try:
            return b"".join(bytes(converted) for converted in self._filter.filter(av.Packet(data)))
        except av.FFmpegError:
            return data
