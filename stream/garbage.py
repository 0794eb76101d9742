"""Python's cyclic garbage collector, set for a process that keeps millions of objects alive.

Users in memory are trees of lists and dictionaries: no cycles, freed by reference counting.
By default the collector walks all of them again and again as they come and go, which took
half of the CPU time of a busy worker. Cycles come from elsewhere (exceptions, futures), and
are few: they can wait.
"""

import gc


def relax() -> None:
    """Call once everything is imported: collect rarely, and never look at what is there now."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 20)
