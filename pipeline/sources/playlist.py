"""Whether an HTTP live streaming playlist is a recording. Source: RFC 8216, sections 4.3.3 and 4.3.4."""

from __future__ import annotations

import base64
import urllib.request
from urllib.parse import unquote, urljoin, urlsplit

_LARGEST_BYTES = 1 << 20


def playlist_is_complete(url: str, timeout_s: float) -> bool:
    """Whether the playlist at `url` has an end marker. For a master playlist, the first variant is checked.

    Raises:
        OSError: it cannot be read.
    """
    text = _fetch(url, timeout_s)
    if "#EXT-X-STREAM-INF" in text:
        variants = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
        if variants:
            text = _fetch(urljoin(url, variants[0]), timeout_s)
    return "#EXT-X-ENDLIST" in text or "#EXT-X-PLAYLIST-TYPE:VOD" in text


def _fetch(url: str, timeout_s: float) -> str:
    parts = urlsplit(url)
    credentials, _, host = parts.netloc.rpartition("@")
    request = urllib.request.Request(parts._replace(netloc=host, fragment="").geturl())
    if credentials:
        request.add_header("Authorization", "Basic " + base64.b64encode(unquote(credentials).encode()).decode())
    with urllib.request.urlopen(request, timeout=timeout_s) as answer:
        return str(answer.read(_LARGEST_BYTES).decode(errors="replace"))
