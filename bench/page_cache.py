"""Brings files into the page cache's cold state, and looks how much of them it holds."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)


def drop(files: list[Path]) -> None:
    """Asks the kernel to forget the pages. It keeps what is dirty, hence the fsync, and what someone has mapped or locked."""
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def cached_share(files: list[Path]) -> float:
    """How much of the files lies in the page cache, from 0 to 1, as mincore(2) sees it; it reads none of them."""
    cached = pages = 0
    for file in files:
        with file.open("rb") as opened:
            length = os.fstat(opened.fileno()).st_size
            if length == 0:
                continue
            # Private and writable only because ctypes asks that of a buffer whose address it gives.
            with mmap.mmap(opened.fileno(), length, access=mmap.ACCESS_COPY) as mapped:
                count = -(-length // mmap.PAGESIZE)
                states = ctypes.create_string_buffer(count)
                first = ctypes.c_char.from_buffer(mapped)
                outcome = LIBC.mincore(ctypes.addressof(first), length, states)
                del first
                if outcome != 0:
                    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(file))
            # The lowest bit says resident, the others are not defined.
            cached += sum(states.raw.count(bytes([state])) for state in set(states.raw[:count]) if state & 1)
            pages += count
    return cached / pages if pages else 1.0
