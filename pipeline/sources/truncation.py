"""Detects files that end before the length that their container states.

FFmpeg reports no error for a file that was cut at the boundary of a packet; it just reports the end (for Matroska
always). But the three families of containers that most videos use state their length in bytes near the start. Unlike
frame counts and durations, this length is reliable. Other formats (MPEG-TS, raw streams) state no length.

Sources: ISO/IEC 14496-12 §4.2 (boxes), Microsoft RIFF (chunks), RFC 8794 §4 and RFC 9559 §5.1 (EBML, Matroska).
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import BinaryIO

_EBML_HEADER = 0x1A45DFA3
_MATROSKA_SEGMENT = 0x18538067
_BOX_TYPES = frozenset(
    b"ftyp styp pdin moov moof mfra mdat free skip wide pnot uuid meta udta sidx ssix prft emsg".split()
)  # other boxes at the top level are trailers of recorders; their length is meaningless
_RIFF_SLACK_BYTES = 8  # some writers include the header of the RIFF chunk, some do not


def missing_bytes(path: Path) -> int:
    """Return how many bytes of its stated length a video file lacks; 0 if it is complete or states no length."""
    size = os.path.getsize(path)
    with path.open("rb") as file:
        head = file.read(12)
        file.seek(0)
        if head[4:8] in _BOX_TYPES:
            stated = _iso_end(file, size)
        elif head[:4] == b"RIFF":
            stated = _riff_end(file, size)
        elif head[:4] == _EBML_HEADER.to_bytes(4, "big"):
            stated = _matroska_end(file, size)
        else:
            return 0
    return max(0, stated - size)


def _iso_end(file: BinaryIO, size: int) -> int:
    """Return the end of the last top-level box. A size of 0 means "to the end of the file"."""
    end = 0
    while end + 8 <= size:
        file.seek(end)
        box_size, kind = struct.unpack(">I4s", file.read(8))
        if box_size == 1 and end + 16 <= size:
            (box_size,) = struct.unpack(">Q", file.read(8))
        if box_size < 8 or kind not in _BOX_TYPES:
            return size
        end += box_size
    return end


def _riff_end(file: BinaryIO, size: int) -> int:
    """Return the end of the last top-level RIFF chunk (large AVI files have several). A crashed recorder leaves 0."""
    end = 0
    while end + 8 <= size:
        file.seek(end)
        kind, chunk_size = struct.unpack("<4sI", file.read(8))
        if kind != b"RIFF" or chunk_size == 0:
            return size
        end += 8 + chunk_size
    return end - _RIFF_SLACK_BYTES


def _matroska_end(file: BinaryIO, size: int) -> int:
    """Return the end of the segment. For an unknown size (recorded without seeking), it is the end of the file."""
    end = 0
    while end + 12 <= size:
        file.seek(end)
        head = file.read(12)
        element = int.from_bytes(head[:4], "big")
        length_bytes = 9 - head[4].bit_length()
        if element not in (_EBML_HEADER, _MATROSKA_SEGMENT) or length_bytes > 8:
            return size
        unknown = (1 << 7 * length_bytes) - 1
        length = int.from_bytes(head[4 : 4 + length_bytes], "big") & unknown
        if length == unknown:
            return size
        end += 4 + length_bytes + length
        if element == _MATROSKA_SEGMENT:
            return end
    return end
