"""What the C library's allocator is told once, when a process begins."""

import ctypes
from typing import Final

M_MMAP_THRESHOLD: Final = -3  # of glibc's malloc.h
LARGE_BYTES: Final = 128 * 2**10  # glibc's own first value


def return_large_blocks() -> bool:
    """Have blocks of LARGE_BYTES and more go back to the system when they are freed. False: this is no glibc.

    glibc begins like that, but takes the first such block that is freed as a sign that there will be more, raises its
    threshold (mallopt(3), M_MMAP_THRESHOLD) and keeps the next ones in the arena of the thread that freed it. botocore
    hashes a body in reads of 1 MiB: each thread that a busy minute added to a pool would keep one for ever.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return bool(mallopt and mallopt(M_MMAP_THRESHOLD, LARGE_BYTES))
