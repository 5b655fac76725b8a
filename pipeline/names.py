"""File names as text that is valid in every message, log and JSON file."""

from __future__ import annotations


def readable(text: str) -> str:
    r"""Return `text` with each byte that is not UTF-8 written as `\xNN`, such as `caf\xe9` for Latin-1's "café".

    Python holds such bytes of a file name as lone surrogates (PEP 383), which UTF-8, JSON and msgpack refuse. Other
    text is returned unchanged.
    """
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
