"""Rows of one partition in memory: those in use, and those that wait to be written.

Rows stay encoded. A decoded user is dozens of objects, which by the time he comes again have left
every cache of the processor; his row is one. It is decoded when it is touched and encoded again
right after, while all of it is at hand; a flush has nothing to encode, memory is counted in bytes
rather than guessed, and what is thrown out costs nothing.

Memory is bounded by two generations: what is touched is in the young one; when memory is full it
becomes the old one, and what was still in that is forgotten. What waits to be written stays, and
what is looked up is always the newest: the young, the old, the waiting, and last the store.

All rows of a worker share a `Pool`: a domain that has no events leaves its memory to the others.
"""

from collections.abc import Callable

from stream.store import Row

ROW_COST = 250  # bytes beside those of key and value: two objects and their places in the tables
MOST_WAITING = 10_000  # rows in one transaction: some tens of milliseconds


class Pool:
    """Memory of ``limit`` bytes for many `Rows`: who holds most gives way first."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._used = 0
        self._members: list[Rows] = []

    def join(self, rows: "Rows") -> None:
        """The rows count from now on, until they leave."""
        self._members.append(rows)

    def leave(self, rows: "Rows") -> None:
        """The rows hold nothing any more."""
        if rows in self._members:
            self._members.remove(rows)

    @property
    def share(self) -> int:
        """Bytes for each where all have the same."""
        return self.limit // max(1, len(self._members))

    def add(self, size: int) -> None:
        """So many bytes more are held."""
        self._used += size
        if self._used > self.limit:
            self._used = sum(each.size for each in self._members)  # some may be gone
            while self._used > self.limit:
                self._used -= max(self._members, key=lambda each: each.size).age()


class Rows:
    """Rows by key; None stands for one that is deleted.

    ``stored(key)`` reads a row from the store. What is in ``young`` may be read there, which is
    the hot path.
    """

    def __init__(self, stored: Callable[[bytes], bytes | None], pool: Pool) -> None:
        self._stored = stored
        self._pool = pool
        self.young: dict[bytes, bytes | None] = {}
        self._young_bytes = 0
        self._old: dict[bytes, bytes | None] = {}
        self._old_bytes = 0
        self.waiting: dict[bytes, bytes | None] = {}
        self._waiting_bytes = 0
        self._writing: dict[bytes, bytes | None] = {}
        pool.join(self)

    def get(self, key: bytes) -> bytes | None:
        """The row as it is now, None where there is none; it is in use from now on."""
        row = self.peek(key)
        if row is not None and key not in self.young:
            self._keep(key, row)
        return row

    def peek(self, key: bytes) -> bytes | None:
        """The row as it is now, without a place in memory: for look-ups from outside."""
        for part in (self.young, self._old, self.waiting, self._writing):
            if key in part:
                return part[key]
        return self._stored(key)

    def put(self, key: bytes, row: bytes | None) -> None:
        """The row was changed, and waits to be written."""
        if key not in self.young:
            self._keep(key, row)
        else:
            self.young[key] = row
        if key not in self.waiting:
            self._waiting_bytes += ROW_COST + len(row or b"")
        self.waiting[key] = row

    def replace(self, key: bytes, row: bytes) -> None:
        """The row has other bytes in the store from now on; it does not wait to be written."""
        if key in self.young:
            self.young[key] = row
        self._old.pop(key, None)

    def is_waiting(self, key: bytes) -> bool:
        """Whether a change of this row has not reached the store yet."""
        return key in self.waiting or key in self._writing

    @property
    def unwritten(self) -> dict[bytes, bytes | None]:
        """All rows that have not reached the store yet."""
        return {**self._writing, **self.waiting}

    @property
    def is_crowded(self) -> bool:
        """So many rows wait to be written that no more may join them before a flush."""
        return len(self.waiting) >= MOST_WAITING or self._waiting_bytes * 4 > self._pool.share

    def take(self) -> list[Row]:
        """All that changed since the last time; it stays in memory until `written`."""
        self._writing, self.waiting, self._waiting_bytes = self.waiting, {}, 0
        return list(self._writing.items())

    def written(self) -> None:
        """What was taken is in the store."""
        self._writing = {}

    @property
    def size(self) -> int:
        """Bytes of what is in memory, whether or not it waits to be written."""
        return self._young_bytes + self._old_bytes

    def age(self) -> int:
        """Forget the old generation, the young one takes its place; how many bytes that gave."""
        freed = self._old_bytes
        self._old, self._old_bytes = self.young, self._young_bytes
        self.young, self._young_bytes = {}, 0
        return freed

    def clear(self) -> None:
        """Give all memory back: the partition is closed."""
        self.age()
        self.age()
        self._pool.leave(self)

    def _keep(self, key: bytes, row: bytes | None) -> None:
        size = ROW_COST + len(key) + len(row or b"")
        self._pool.add(size)
        self.young[key] = row
        self._young_bytes += size

    def __len__(self) -> int:
        """How many rows are in memory whether or not they wait to be written."""
        return len(self.young) + len(self._old)
