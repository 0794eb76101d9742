"""Memory of a process that keeps millions of small objects alive: collector and allocator.

Users in memory are trees of lists and dictionaries: no cycles, freed by reference counting.
By default Python's cyclic collector walks all of them again and again as they come and go,
which took half of the CPU time of a busy worker. Cycles come from elsewhere (exceptions,
futures), and are few: they can wait.

RocksDB's threads allocate from as many arenas of the C library as there are threads, which
fragments: two do. And what is freed the library keeps for later, in pieces, which in a worker
that writes much is more than all that is in use: it is told to give whole pages back.
"""

import asyncio
import ctypes
import gc

_M_ARENA_MAX = -8  # malloc.h of the GNU C library

GIVEN_BACK_S = 2.0  # how often unused pages are given back


def relax() -> None:
    """Call once everything is imported: what is there now is never looked at again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 20)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 2)


async def give_back() -> None:
    """For ever: have the C library give unused pages back to the system, now and then."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    while trim is not None:
        await asyncio.sleep(GIVEN_BACK_S)
        # Some milliseconds, in which threads that need no memory go on.
        await asyncio.to_thread(trim, 0)
