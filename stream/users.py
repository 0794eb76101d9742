"""The users of one domain in one partition: decoded at the touch.

    user = users.get(key) or users.new(user_id)
    ...                       # apply an event
    users.put(key, user)

A row is a deadline and the record. The deadline is a hint: that of the user's entry in the index,
never later than the instant at which something follows with no event. A user whose next deadline
moves away, as at every event, keeps the earlier entry; when that comes due and finds nothing to
do, the entry moves (`moved`). So an event seldom writes to the index.

What is in a record, and what follows from it, is `tables/`.
"""

from typing import Any

import msgspec

from stream.rows import Pool, Rows
from stream.store import (
    BLOCK,
    DEADLINE_BYTES,
    RECORD,
    IndexChange,
    Row,
    Store,
    erasure_mark,
    index_key,
)
from tables.calendar import NEVER
from tables.record import User
from tables.table import Table

encode_block = msgspec.msgpack.Encoder().encode
decode_block = msgspec.msgpack.Decoder(dict[int, int]).decode


class Users:
    """The users of a domain by key.

    ``pool`` is where their rows have memory; ``erase_key`` is what marks of erasures are made with.
    """

    def __init__(
        self,
        code: bytes,
        table: Table[Any],
        store: Store,
        pool: Pool,
        erase_key: bytes = b"",
    ) -> None:
        self.code = code
        self.table = table
        self.rows = Rows(RECORD + code, store.get, pool)
        self._store = store
        self._index: list[IndexChange] = []  # to be written with the rows that wait
        #: Users with a deadline: counted when opened and kept from then on.
        self.deadlines_pending = store.count_deadlines(code)
        self._blocks: dict[bytes, dict[int, int] | None] = {}  # changed, waiting to be written
        self._blocks_writing: dict[bytes, dict[int, int] | None] = {}
        self._erasures: dict[bytes, int] = {}  # marks waiting to be written
        self._erasures_writing: dict[bytes, int] = {}
        #: Whether anybody was ever erased here: if not, nobody new need be looked up.
        self._any_erased = store.any_erased(code)
        self._erase_key = erase_key
        table.blocks = Blocks(self)

    def follow(self, table: Table[Any]) -> None:
        """Read and write users by other definitions from now on."""
        self.rows.settle(self._encoded)
        self.table = table
        table.blocks = Blocks(self)

    # -- looking up

    def get(self, key: bytes) -> User | None:
        """The user of this key; None if there is none. Whoever changes him puts him back."""
        entry = self.rows.young.get(key) or self.rows.find(key)
        if entry is None:
            return None
        user: User | None = entry.held
        return user if user is not None else self._decoded(entry.row)

    def peek(self, key: bytes) -> User | None:
        """A copy of the user as he is now, without a place in memory: for look-ups from outside."""
        entry = self.rows.peek(key)
        if entry is None:
            return None
        user: User | None = entry.held
        return self._decoded(entry.row if user is None else _row(user, self.table.encode(user)))

    def _decoded(self, row: bytes | None) -> User | None:
        if row is None:
            return None
        user: User = self.table.decode(row, DEADLINE_BYTES)
        user.deadline_ms = int.from_bytes(row[:DEADLINE_BYTES], "big")
        return user

    def new(self, user_id: str) -> User:
        """A user that was never seen before."""
        user: User = self.table.new(user_id)
        user.erased_ms = self.erased_ms(user_id)
        return user

    def erase(self, user_id: str, ts_ms: int) -> None:
        """Mark that what the user did up to then is not to be known any more."""
        self._any_erased = True
        self._erasures[erasure_mark(self.code, user_id, self._erase_key)] = ts_ms

    def erased_ms(self, user_id: str) -> int:
        """Up to when what the user did is not to be known any more."""
        if not self._any_erased:
            return -NEVER
        mark = erasure_mark(self.code, user_id, self._erase_key)
        for waiting in (self._erasures, self._erasures_writing):
            if mark in waiting:
                return waiting[mark]
        raw = self._store.get(mark)
        return -NEVER if raw is None else int.from_bytes(raw, "big")

    @property
    def waiting(self) -> int:
        """How many users wait to be written."""
        return self.rows.waiting

    def is_waiting(self, key: bytes) -> bool:
        """Whether a change of this user has not reached the store yet."""
        return self.rows.is_waiting(key)

    # -- writing

    def spend(self, entry: bytes) -> None:
        """An entry of the index came due that is no deadline any more: it goes with the rows."""
        self._index.append((entry, False))

    def put(self, key: bytes, user: User, *, fired: bool = False) -> None:
        """The user was changed, and waits to be written.

        ``fired``: the entry of his deadline in the index has been passed, and he needs another.
        """
        if user.newest_ms == -NEVER:  # erased: as if never heard of
            self._move(key, user.deadline_ms, NEVER)
            self.rows.put(key, None)
            return
        if fired:
            held_ms = user.deadline_ms
            self._move(key, held_ms, self.table.deadline_ms(user))
        if not self.rows.hold(key, user):
            self.rows.put(key, self._encoded(key, user))

    def _encoded(self, key: bytes, user: User) -> bytes:
        """The row of a user, with a deadline for which the index has an entry."""
        held_ms = user.deadline_ms
        due_ms = self.table.deadline_ms(user)
        if held_ms <= due_ms:
            user.deadline_ms = held_ms
        else:
            self._move(key, held_ms, due_ms)
        return _row(user, self.table.encode(user))

    def _move(self, key: bytes, held_ms: int, due_ms: int) -> None:
        if held_ms < NEVER:
            self._index.append((index_key(self.code, held_ms, key), False))
        if due_ms < NEVER:
            self._index.append((index_key(self.code, due_ms, key), True))
        self.deadlines_pending += (due_ms < NEVER) - (held_ms < NEVER)

    def moved(self, key: bytes, user: User) -> tuple[list[Row], list[IndexChange]]:
        """What to write where a deadline came due and changed nothing but the next one.

        That is this disk's alone: the changelog keeps the earlier one, which as a hint is as good.
        """
        held_ms, entry = user.deadline_ms, self.rows.peek(key)
        due_ms = self.table.deadline_ms(user)
        row = due_ms.to_bytes(DEADLINE_BYTES, "big")
        if entry is not None and entry.row is not None:
            row += entry.row[DEADLINE_BYTES:]
        self.rows.replace(key, row)
        index = [(index_key(self.code, held_ms, key), False)]
        if due_ms < NEVER:
            index.append((index_key(self.code, due_ms, key), True))
        else:
            self.deadlines_pending -= 1
        return [(self.rows.prefix + key, row)], index

    def take(self) -> tuple[list[Row], list[IndexChange]]:
        """All that changed since the last time, as changelog rows and index changes.

        What is taken stays in memory until `written`.
        """
        rows = self.rows.take(self._encoded)
        for block_key, ids in self._blocks.items():
            rows.append((block_key, None if ids is None else encode_block(ids)))
        for mark, ts_ms in self._erasures.items():
            rows.append((mark, ts_ms.to_bytes(DEADLINE_BYTES, "big")))
        self._erasures_writing, self._erasures = self._erasures, {}
        self._blocks_writing, self._blocks = self._blocks, {}
        index, self._index = self._index, []
        return rows, index

    def written(self) -> None:
        """What was taken is in the store."""
        self.rows.written()
        self._blocks_writing, self._erasures_writing = {}, {}

    # -- blocks of ids

    def block(self, key: bytes) -> dict[int, int] | None:
        """A block as it is now: changed, being written, or stored."""
        for waiting in (self._blocks, self._blocks_writing):
            if key in waiting:
                return waiting[key]
        raw = self._store.get(key)
        return None if raw is None else decode_block(raw)

    def set_block(self, key: bytes, ids: dict[int, int] | None) -> None:
        """A block changed (or, with None, is gone)."""
        self._blocks[key] = ids


def _row(user: User, record: bytes) -> bytes:
    return user.deadline_ms.to_bytes(DEADLINE_BYTES, "big") + record


class Blocks:
    """How `tables/dedup.py` reaches the rows that hold a busy user's older event ids."""

    def __init__(self, users: Users) -> None:
        self._users = users

    def _key(self, user_id: str, number: int) -> bytes:
        return BLOCK + self._users.code + number.to_bytes(4, "big") + user_id.encode()

    def get(self, user_id: str, number: int) -> dict[int, int] | None:
        """The ids of a block with their event times; None if there is no such block."""
        return self._users.block(self._key(user_id, number))

    def put(self, user_id: str, number: int, ids: dict[int, int]) -> None:
        """Write a block whole."""
        self._users.set_block(self._key(user_id, number), ids)

    def drop(self, user_id: str, number: int) -> None:
        """Remove a block."""
        self._users.set_block(self._key(user_id, number), None)
