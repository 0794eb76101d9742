"""The users of one domain in one partition: decoded ones in memory, all of them in the store.

A user that an event changed stays decoded until it has been written, and is encoded once per
flush however often it changed. Memory is bounded in bytes by two generations: look-ups fill
the young one; when it is full it becomes the old one, and what was still in the old one and
is not waiting to be written is forgotten. A user found in the old one moves to the young one,
so what is used stays.

Sizes are estimates: a decoded user takes about `DECODED_FACTOR` times its encoded bytes.
This file knows records as bytes with a deadline in front; what is in them is `tables/`.
"""

from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from stream.store import (
    BLOCK,
    DEADLINE_BYTES,
    NEVER,
    RECORD,
    IndexChange,
    Row,
    Store,
    erasure_mark,
    index_key,
    record_key,
)

# Bytes, measured with tracemalloc on users with 1 to 100 orders: 2.2 KB to 8.7 KB decoded.
DECODED_BASE, DECODED_FACTOR = 800, 7
EVENT_GROWTH = 100  # what an event adds to a decoded user
TYPICAL_USER = 3_000  # a decoded user whose encoded size is not known
NEW_USER = 2_200  # one with a single event
MOST_CHANGED = 10_000  # users encoded at once: some tens of milliseconds


encode_block = msgspec.msgpack.Encoder().encode
decode_block = msgspec.msgpack.Decoder(dict[int, int]).decode


class Table(Protocol):
    """What the machinery needs of a domain's logic (see `tables/table.py`)."""

    name: str
    blocks: Any
    positions: dict[str, int]

    def new(self, user_id: str) -> Any: ...
    def decode(self, raw: bytes) -> Any: ...
    def encode(self, user: Any) -> bytes: ...
    def apply(self, user: Any, event: Any, time_ms: int, out: Any) -> str: ...
    def fire(self, user: Any, time_ms: int, out: Any) -> bool: ...
    def deadline_ms(self, user: Any) -> int: ...


class Users:
    """Decoded users by key, and those among them that wait to be written.

    ``allowance()`` is the number of bytes that this object may hold decoded; ``erase_key`` is
    what marks of erasures are made with.
    """

    def __init__(
        self,
        code: bytes,
        table: Table,
        store: Store,
        allowance: Callable[[], int],
        erase_key: bytes = b"",
    ) -> None:
        self.code = code
        self.table = table
        self.young: dict[bytes, Any] = {}
        self.changed: dict[bytes, Any] = {}
        self._store = store
        self._allowance = allowance
        self._old: dict[bytes, Any] = {}
        self._writing: dict[bytes, Any] = {}
        self._young_bytes = 0
        self._spent: list[bytes] = []
        #: Users with a deadline: counted when opened and kept from then on.
        self.deadlines_pending = store.count_deadlines(code)
        self._blocks: dict[bytes, dict[int, int] | None] = {}  # changed, waiting to be written
        self._blocks_writing: dict[bytes, dict[int, int] | None] = {}
        self._erasures: dict[bytes, int] = {}  # marks waiting to be written
        #: Whether anybody was ever erased here: if not, nobody new need be looked up.
        self._any_erased = store.any_erased(code)
        self._erase_key = erase_key
        table.blocks = Blocks(self)

    # -- looking up

    def load(self, key: bytes) -> Any | None:
        """The user of this key from the old generation or the store; None if there is none.

        Look into ``young`` first: that is the hot path, and the caller's.
        """
        user = self._old.get(key)
        if user is None:
            raw = self._store.get(record_key(self.code, key))
            if raw is None:
                return None
            user = self.table.decode(raw[DEADLINE_BYTES:])
            self._young_bytes += DECODED_BASE + DECODED_FACTOR * len(raw)
        else:
            self._young_bytes += TYPICAL_USER
        self.young[key] = user
        return user

    def add(self, key: bytes, user_id: str) -> Any:
        """A user that was never seen before."""
        user = self.young[key] = self.table.new(user_id)
        self._young_bytes += NEW_USER
        if self._any_erased:
            user.erased_ms = self._erased_ms(user_id)
        return user

    def erase(self, user_id: str, ts_ms: int) -> None:
        """Mark that what the user did up to then is not to be known any more."""
        self._any_erased = True
        self._erasures[erasure_mark(self.code, user_id, self._erase_key)] = ts_ms

    def _erased_ms(self, user_id: str) -> int:
        mark = erasure_mark(self.code, user_id, self._erase_key)
        if mark in self._erasures:
            return self._erasures[mark]
        raw = self._store.get(mark)
        return -NEVER if raw is None else int.from_bytes(raw, "big")

    def peek(self, key: bytes) -> Any | None:
        """The user as it is now, without a place in memory: for look-ups from outside."""
        user = self.young.get(key) or self._old.get(key)
        if user is None:
            raw = self._store.get(record_key(self.code, key))
            return None if raw is None else self.table.decode(raw[DEADLINE_BYTES:])
        return user

    @property
    def state_bytes(self) -> int:
        """Bytes on disk. Domains share one database: each is said to have an equal part."""
        return self._store.sst_bytes

    def is_waiting(self, key: bytes) -> bool:
        """Whether a change of this user has not reached the store yet."""
        return key in self.changed or key in self._writing

    # -- writing

    @property
    def is_crowded(self) -> bool:
        """So many users wait to be written that no more may join them before a flush."""
        waiting = len(self.changed)
        return waiting >= MOST_CHANGED or waiting * 4 * TYPICAL_USER > self._allowance()

    def take(self) -> tuple[list[Row], list[IndexChange]]:
        """All that changed since the last time, as changelog rows and index changes.

        What is taken stays in memory until `written`.
        """
        code, table = self.code, self.table
        encode, next_deadline = table.encode, table.deadline_ms
        prefix = RECORD + code
        rows: list[Row] = []
        # Deletions first: what is spent may be what comes next.
        index: list[IndexChange] = [(entry, False) for entry in self._spent]
        for key, user in self.changed.items():
            old = user.deadline_ms
            new = next_deadline(user)
            if old != new and old < NEVER:
                index.append((index_key(code, old, key), False))
            if new < NEVER:
                # Put even where it should be there: an index may have run ahead of the record.
                index.append((index_key(code, new, key), True))
            self.deadlines_pending += (new < NEVER) - (old < NEVER)
            if user.newest_ms == -NEVER:  # erased: as if never heard of
                rows.append((prefix + key, None))
            else:
                rows.append((prefix + key, new.to_bytes(DEADLINE_BYTES, "big") + encode(user)))
        for block_key, ids in self._blocks.items():
            rows.append((block_key, None if ids is None else encode_block(ids)))
        for mark, ts_ms in self._erasures.items():
            rows.append((mark, ts_ms.to_bytes(DEADLINE_BYTES, "big")))
        self._spent, self._erasures = [], {}
        self._writing, self.changed = self.changed, {}
        self._blocks_writing, self._blocks = self._blocks, {}
        return rows, index

    def spend(self, entry: bytes) -> None:
        """Delete an entry of the index with the next rows: its user waits to be written."""
        self._spent.append(entry)

    def written(self, events: int) -> None:
        """What was taken is in the store; ``events`` were applied meanwhile."""
        self._writing, self._blocks_writing = {}, {}
        self._young_bytes += events * EVENT_GROWTH
        self.trim()

    def trim(self) -> None:
        """Keep memory within the allowance; what waits to be written stays."""
        if self._young_bytes * 2 > self._allowance():
            self._old, self.young = self.young, self._writing | self.changed
            self._young_bytes = len(self.young) * TYPICAL_USER

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
