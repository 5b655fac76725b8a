"""A time code that a camera draws into its pictures, so that their true age is known.

The code is the wall time in milliseconds, modulo 1000 s (20 bits), with a checksum (12 bits): 32 black or white squares
of 20 px in two rows at the top of a grey picture of 320 x 192. The checksum tells codes that lost packets mixed.
Drawing needs no packages, because the system's Python runs it, too.
"""

from __future__ import annotations

import random
import zlib
from typing import Any

WIDTH, HEIGHT = 320, 192
SQUARE_PX = 20
MODULUS_MS = 1_000_000

_PER_ROW = WIDTH // SQUARE_PX
_TEXTURE = random.Random(0).randbytes(WIDTH * HEIGHT // 16)


def draw(unix_ns: int, index: int) -> bytes:
    """Return a grey picture, HEIGHT rows of WIDTH bytes, with the code of `unix_ns`. Below it, a texture moves."""
    value = unix_ns // 1_000_000 % MODULUS_MS
    word = value << 12 | _checksum(value)
    bits = [255 if word >> (31 - place) & 1 else 0 for place in range(32)]
    rows = b""
    for start in (0, _PER_ROW):
        row = b"".join(bytes([bit]) * SQUARE_PX for bit in bits[start : start + _PER_ROW])
        rows += row * SQUARE_PX
    for block in range((HEIGHT - 2 * SQUARE_PX) // 4):
        place = (block * WIDTH // 4 + index) % (len(_TEXTURE) - WIDTH // 4)
        row = b"".join(bytes([64 + value // 2]) * 4 for value in _TEXTURE[place : place + WIDTH // 4])
        rows += row * 4
    return rows


def read(picture: Any) -> int | None:
    """Return the code in ms of a decoded picture, grey [H,W] or RGB [H,W,3]; None where it cannot be read."""
    if picture.shape[:2] != (HEIGHT, WIDTH):
        return None
    word = 0
    for place in range(32):
        y = place // _PER_ROW * SQUARE_PX + SQUARE_PX // 2
        x = place % _PER_ROW * SQUARE_PX + SQUARE_PX // 2
        word = word << 1 | bool(picture[y, x].max() > 127)
    value = word >> 12
    return value if value < MODULUS_MS and word & 0xFFF == _checksum(value) else None


def true_unix_ns(code_ms: int, near_unix_ns: int) -> int:
    """Return the wall time of `code_ms` that is nearest to `near_unix_ns`."""
    near_ms = near_unix_ns // 1_000_000
    behind_ms = (near_ms - code_ms) % MODULUS_MS
    if behind_ms > MODULUS_MS // 2:
        behind_ms -= MODULUS_MS
    return (near_ms - behind_ms) * 1_000_000


def _checksum(value: int) -> int:
    return zlib.crc32(value.to_bytes(3, "big")) & 0xFFF
