"""Rows of one partition in memory: those in use, and those that wait to be written.

A row is kept encoded: decoded, a user is dozens of objects, which by the time he comes again have
left every cache of the processor; his row is one. So memory is counted in bytes rather than
guessed, and what is thrown out costs nothing. What is changed is encoded at once, while all of it
is at hand; only what is changed again before it is written stays as it is until then
(`Rows.hold`), since it may well be changed once more.

Memory is bounded by two generations: what is touched is in the young one; when memory is full it
becomes the old one, and what was still in that is forgotten. What waits to be written stays, and
what is looked up is always the newest: the young, the old, the waiting, and last the store.

All rows of a worker share a `Pool`: a domain that has no events leaves its memory to the others.
"""

from collections.abc import Callable
from typing import Any

from mypy_extensions import mypyc_attr

from stream.store import Row

ROW_COST = 250  # bytes beside those of key and value: their objects and places in the tables
HELD_COST, HELD_TIMES = 500, 6  # bytes of what is held decoded: these, and so many times its row's
MOST_WAITING = 3_000  # rows in one transaction: some tens of milliseconds

Encode = Callable[[bytes, Any], bytes | None]
"""Makes the row of what is held under a key; None deletes it."""


class Pool:
    """Memory of ``limit`` bytes for many `Rows`: who holds most gives way first.

    ``waiting`` bytes wait to be written, beside that: up to a quarter as much may.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.waiting = 0
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
    def is_crowded(self) -> bool:
        """So much waits to be written, in all rows together, that some has to be first."""
        return self.waiting * 4 > self.limit

    def add(self, size: int) -> None:
        """So many bytes more are in memory."""
        self._used += size
        if self._used > self.limit:
            self._used = sum(each.size for each in self._members)  # some may be gone
            while self._used > self.limit:
                self._used -= max(self._members, key=lambda each: each.size).age()


@mypyc_attr(acyclic=True)
class Entry:
    """One row in memory, None for one that is deleted; or, while that is not None, what is ``held``
    of it: newer, and to be encoded when it is written.
    """

    def __init__(self, key: bytes, row: bytes | None) -> None:
        self.key = key
        self.row = row
        self.held: Any = None
        self.waits = False


class Rows:
    """Rows by key.

    ``stored(key)`` reads a row from the store, where all keys have ``prefix`` in front. What is in
    ``young`` may be read there, which is the hot path.
    """

    def __init__(self, prefix: bytes, stored: Callable[[bytes], bytes | None], pool: Pool) -> None:
        self.prefix = prefix
        self.young: dict[bytes, Entry] = {}
        self._stored = stored
        self._pool = pool
        self._young_bytes = 0
        self._old: dict[bytes, Entry] = {}
        self._old_bytes = 0
        self._waiting: dict[bytes, Entry] = {}
        self._waiting_bytes = 0
        self._writing: dict[bytes, Entry] = {}
        pool.join(self)

    # -- looking up

    def find(self, key: bytes) -> Entry | None:
        """The entry of a row that there is or was, in use from now on."""
        entry = self.peek(key)
        if entry is not None and key not in self.young:
            self._keep(entry)
        return entry

    def peek(self, key: bytes) -> Entry | None:
        """As ``find``, without a place in memory: for look-ups from outside."""
        entry = self._known(key)
        if entry is None:
            row = self._stored(self.prefix + key)
            return None if row is None else Entry(key, row)
        return entry

    def _known(self, key: bytes) -> Entry | None:
        for part in (self.young, self._old, self._waiting, self._writing):
            entry = part.get(key)
            if entry is not None:
                return entry
        return None

    # -- changing

    def hold(self, key: bytes, thing: Any) -> bool:
        """If a row waits to be written: it is what ``thing`` says, now and whenever that changes,
        until it is taken. False: it does not wait.
        """
        entry = self.young.get(key)
        if entry is None or not entry.waits:
            return False
        if entry.held is None:
            size = HELD_COST + HELD_TIMES * len(entry.row or b"")
            self._waiting_bytes += size
            self._pool.waiting += size
        entry.held = thing
        return True

    def put(self, key: bytes, row: bytes | None) -> None:
        """The row was changed, and waits to be written."""
        entry = self.young.get(key) or self._made(key)
        entry.row, entry.held = row, None
        if not entry.waits:
            entry.waits = True
            self._waiting[key] = entry
            size = ROW_COST + len(row or b"")
            self._waiting_bytes += size
            self._pool.waiting += size

    def replace(self, key: bytes, row: bytes) -> None:
        """The row, which does not wait to be written, has other bytes in the store from now on."""
        entry = self._known(key)
        if entry is not None:
            entry.row = row

    def _made(self, key: bytes) -> Entry:
        entry = self._known(key)
        if entry is None:
            entry = Entry(key, None)
        self._keep(entry)
        return entry

    # -- writing

    @property
    def waiting(self) -> int:
        """How many rows wait to be written."""
        return len(self._waiting)

    def is_waiting(self, key: bytes) -> bool:
        """Whether a change of this row has not reached the store yet."""
        return key in self._waiting or key in self._writing

    def unwritten(self, after: bytes, last: bytes | None) -> list[Entry]:
        """The rows that have not reached the store yet, of the keys behind ``after`` up to
        ``last``, where that is given.
        """
        found = {**self._writing, **self._waiting}
        return [
            entry for key, entry in found.items() if after < key and (last is None or key <= last)
        ]

    @property
    def is_crowded(self) -> bool:
        """So many rows wait to be written that no more may join them before a flush.

        Never where none does: nobody's flush would make room here.
        """
        waiting = len(self._waiting)
        return waiting >= MOST_WAITING or (waiting > 0 and self._pool.is_crowded)

    def settle(self, encode: Encode) -> None:
        """Encode what is held."""
        grown = 0
        for key, entry in self._waiting.items():
            held = entry.held
            if held is not None:
                row = encode(key, held)
                grown += len(row or b"") - len(entry.row or b"")
                entry.row, entry.held = row, None
        self._young_bytes += grown  # nearly all of them are young
        self._pool.add(grown)

    def take(self, encode: Encode) -> list[Row]:
        """All that changed since the last time; it stays in memory until `written`."""
        self.settle(encode)
        self._pool.waiting -= self._waiting_bytes
        self._writing, self._waiting, self._waiting_bytes = self._waiting, {}, 0
        prefix = self.prefix
        rows: list[Row] = []
        for key, entry in self._writing.items():
            entry.waits = False
            rows.append((prefix + key, entry.row))
        return rows

    def written(self) -> None:
        """What was taken is in the store."""
        self._writing = {}

    # -- memory

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
        self._pool.waiting -= self._waiting_bytes
        self._waiting, self._waiting_bytes = {}, 0
        self._pool.leave(self)

    def _keep(self, entry: Entry) -> None:
        size = ROW_COST + len(entry.key) + len(entry.row or b"")
        self._pool.add(size)
        self.young[entry.key] = entry
        self._young_bytes += size

    def __len__(self) -> int:
        """How many rows are in memory whether or not they wait to be written."""
        return len(self.young) + len(self._old)
