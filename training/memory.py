"""Keep freed memory in the process, on the CPU.

A step frees and asks for gigabytes. The C library gives large blocks back to the system at once, which clears every
page again when it is next asked for it.
"""

import ctypes

TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4
"""Numbers of glibc's `mallopt` settings. Source: malloc.h."""
TOP_PAD_BYTES = 256 << 20


def keep_freed_memory() -> bool:
    """Tell glibc to take no block from the system by itself and to give none back; False where there is no glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((MMAP_MAX, 0), (TRIM_THRESHOLD, -1), (TOP_PAD, TOP_PAD_BYTES))
    return all(mallopt(setting, value) == 1 for setting, value in settings)
