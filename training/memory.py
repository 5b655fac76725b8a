"""Keep freed memory in the process, on the CPU.

A step frees and allocates gigabytes. By default the C library returns large blocks to the system at once, and the
system clears each page again before the next use.
"""

import ctypes

TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4
"""Numbers of glibc's `mallopt` settings. Source: malloc.h."""
TOP_PAD_BYTES = 256 << 20


def keep_freed_memory() -> bool:
    """Tell glibc to allocate large blocks from its heap and to keep freed memory. Return False without glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((MMAP_MAX, 0), (TRIM_THRESHOLD, -1), (TOP_PAD, TOP_PAD_BYTES))
    return all(mallopt(setting, value) == 1 for setting, value in settings)
