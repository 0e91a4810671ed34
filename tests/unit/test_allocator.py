"""A thread that freed a large block keeps nothing of it."""

import ctypes
import subprocess
import sys
from typing import Final

import pytest

from service.allocator import return_large_blocks

THREADS: Final = 4
KEPT: Final = """
import ctypes, sys, threading
from service.allocator import return_large_blocks

class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena b c d e f g used free keep".split()]

def work():
    for _ in range(3):
        bytearray(2**20)
    met.wait()

libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Info
if sys.argv[1] == "told":
    assert return_large_blocks()
met = threading.Barrier(int(sys.argv[2]))
threads = [threading.Thread(target=work) for _ in range(met.parties)]
for each in threads: each.start()
for each in threads: each.join()
print(libc.mallinfo2().arena)
"""


def arenas(how: str) -> int:
    """Bytes that the arenas of a process hold in which THREADS threads have freed blocks of 1 MiB."""
    done = subprocess.run([sys.executable, "-c", KEPT, how, str(THREADS)], check=True, capture_output=True, timeout=60)
    return int(done.stdout)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="mallinfo2 is of glibc 2.33")
def test_large_blocks_stay_in_no_threads_arena() -> None:
    assert arenas("untold") - arenas("told") >= THREADS * 2**20 * 3 / 4


def test_it_can_be_told_at_any_time_and_again() -> None:
    assert return_large_blocks() == return_large_blocks() == hasattr(ctypes.CDLL(None), "mallopt")
