"""Memory of images that were answered is kept for the next ones."""

import ctypes
import platform

MB = 2**20
ARENA_MAX, MMAP_THRESHOLD, TRIM_THRESHOLD = -8, -3, -1  # glibc's names are M_...
ARENAS = 2  # pools of memory; by default 8 for each core, each with freed memory of its own


def keep_freed_memory() -> None:
    """Tell the C library not to give memory back to the system after each image and ask for it anew.

    New pages are expensive, most of all in virtual machines: a JPEG of 130 kB took 2 ms longer. For the whole process,
    which stays as large as its busiest moment; does nothing where the C library is not glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    for parameter, value in ((ARENA_MAX, ARENAS), (MMAP_THRESHOLD, 64 * MB), (TRIM_THRESHOLD, 128 * MB)):
        libc.mallopt(parameter, value)
