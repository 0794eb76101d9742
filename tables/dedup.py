"""Which events of a user were applied already: ids remembered for ``max_lateness``.

An id is kept as a 64-bit hash that is the same in every process, with the event's time; two
ids of one user share a hash once in 2**64. An id counts as long as its time lies less than
``max_lateness`` behind the largest event time applied; ids that do not are forgotten bit by
bit as others come.

Up to ``INLINE`` ids live in the user's own record (`User.recent`), in order of arrival. Those of a
busier user move on, ``SPILL`` at a time, to rows of their own (``Blocks``), so that a user with
100,000 events a week stays a small record and an event rewrites about one row. Rows are buckets by
hash, split and merged one at a time (linear hashing), so that one row answers whether an id is
known whatever time the repetition carries. ``BLOCK_IDS`` is their mean; 512 ids are out of reach.
"""

from typing import Final, Protocol

from librt.strings import read_i64_be
from mypy_extensions import i64
from xxhash import xxh3_64_digest

from tables.kept import Spilled
from tables.record import User

INLINE: Final = 64
SPILL: Final = 32
BLOCK_IDS: Final = 128

HASH: Final = 8
ENTRY: Final = 16
"""Bytes of an id in a record: its hash, then its event's time, both big-endian."""


def digest(event_id: str) -> bytes:
    """The hash of an event id, 8 bytes, the same in every process."""
    return xxh3_64_digest(event_id.encode())


class Blocks(Protocol):
    """Rows of ids beside a user's record: ``{hash: event time}`` by user id and number.

    What ``get`` gives may be changed where it is put back.
    """

    def get(self, user_id: str, number: int) -> dict[int, int] | None: ...
    def put(self, user_id: str, number: int, ids: dict[int, int]) -> None: ...
    def drop(self, user_id: str, number: int) -> None: ...


class MemoryBlocks:
    """Blocks that live as long as this object."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, int], dict[int, int]] = {}

    def get(self, user_id: str, number: int) -> dict[int, int] | None:
        """The block, or None."""
        return self.rows.get((user_id, number))

    def put(self, user_id: str, number: int, ids: dict[int, int]) -> None:
        """Keep the block."""
        self.rows[user_id, number] = ids

    def drop(self, user_id: str, number: int) -> None:
        """Forget the block."""
        self.rows.pop((user_id, number), None)


def is_known(user: User, event_hash: bytes, horizon_ms: int, blocks: Blocks) -> bool:
    """Whether an event of this hash with a time after ``horizon_ms`` was applied."""
    recent = user.recent
    at = recent.find(event_hash)
    while at >= 0:
        # Between two ids the same bytes mean nothing.
        if at % ENTRY == 0 and _time(recent, at) > horizon_ms:
            return True
        at = recent.find(event_hash, at + 1)
    spilled = user.spilled
    if spilled is None or spilled.newest_ms <= horizon_ms:
        return False
    known = int.from_bytes(event_hash, "big")
    block = blocks.get(user.user_id, _bucket(known, spilled.blocks))
    seen_ms = block.get(known) if block else None
    return seen_ms is not None and seen_ms > horizon_ms


def remember(user: User, event_hash: bytes, ts_ms: int, horizon_ms: int, blocks: Blocks) -> None:
    """Note an applied event, and forget what lies at or before ``horizon_ms``."""
    user.recent = recent = b"".join((user.recent, event_hash, ts_ms.to_bytes(HASH, "big")))
    # Arrival is nearly the order of time: what has expired is nearly always in front.
    if _time(recent, 0) <= horizon_ms:
        expired = ENTRY
        while _time(recent, expired) <= horizon_ms:
            expired += ENTRY
        user.recent = recent = recent[expired:]
    if len(recent) > INLINE * ENTRY:
        user.recent = recent = b"".join(
            recent[at : at + ENTRY]
            for at in range(0, len(recent), ENTRY)
            if _time(recent, at) > horizon_ms
        )
        if len(recent) > INLINE * ENTRY:
            _spill(user, horizon_ms, blocks)


def _time(recent: bytes, at: i64) -> i64:
    return read_i64_be(recent, at + HASH)


def _bucket(event_hash: int, blocks: int) -> int:
    """Linear hashing: buckets that the current round has not split yet have twice the share."""
    level = 1 << (blocks - 1).bit_length()
    number = event_hash & (level - 1)
    return number if number < blocks else number - (level >> 1)


def _spill(user: User, horizon_ms: int, blocks: Blocks) -> None:
    """Move the ids that came first out of the record."""
    spilled = user.spilled
    if spilled is not None and spilled.newest_ms <= horizon_ms:
        forget(user, blocks)
        spilled = None
    if spilled is None:
        spilled = user.spilled = Spilled(1, 0, horizon_ms)
    recent = user.recent
    moving, user.recent = recent[: SPILL * ENTRY], recent[SPILL * ENTRY :]
    by_block: dict[int, dict[int, int]] = {}
    for at in range(0, len(moving), ENTRY):
        event_hash, seen_ms = int.from_bytes(moving[at : at + HASH], "big"), _time(moving, at)
        by_block.setdefault(_bucket(event_hash, spilled.blocks), {})[event_hash] = seen_ms
        spilled.newest_ms = max(spilled.newest_ms, seen_ms)
    for number, added in by_block.items():
        _rewrite(user.user_id, spilled, number, added, horizon_ms, blocks)
    if spilled.ids > BLOCK_IDS * spilled.blocks:
        _split(user.user_id, spilled, horizon_ms, blocks)
    elif spilled.blocks > 1 and spilled.ids * 4 < BLOCK_IDS * spilled.blocks:
        _merge(user.user_id, spilled, horizon_ms, blocks)


def _rewrite(
    user_id: str,
    spilled: Spilled,
    number: int,
    added: dict[int, int],
    horizon_ms: int,
    blocks: Blocks,
) -> None:
    old = blocks.get(user_id, number) or {}
    kept = {known: seen_ms for known, seen_ms in old.items() if seen_ms > horizon_ms} | added
    spilled.ids += len(kept) - len(old)
    blocks.put(user_id, number, kept)


def _split(user_id: str, spilled: Spilled, horizon_ms: int, blocks: Blocks) -> None:
    """One more block: part of the next one in turn moves there."""
    number = spilled.blocks
    source = _bucket(number, number)
    old = blocks.get(user_id, source) or {}
    spilled.blocks += 1
    spilled.ids -= len(old)
    for target in (source, number):
        blocks.put(user_id, target, {})
        half = {
            known: seen_ms
            for known, seen_ms in old.items()
            if _bucket(known, number + 1) == target and seen_ms > horizon_ms
        }
        _rewrite(user_id, spilled, target, half, horizon_ms, blocks)


def _merge(user_id: str, spilled: Spilled, horizon_ms: int, blocks: Blocks) -> None:
    """One block fewer: the last goes back to where it was split from."""
    spilled.blocks -= 1
    last = spilled.blocks
    moving = blocks.get(user_id, last) or {}
    spilled.ids -= len(moving)
    blocks.drop(user_id, last)
    kept = {known: seen_ms for known, seen_ms in moving.items() if seen_ms > horizon_ms}
    _rewrite(user_id, spilled, _bucket(last, last), kept, horizon_ms, blocks)


def forget(user: User, blocks: Blocks) -> None:
    """Drop every block of the user."""
    if user.spilled is not None:
        for number in range(user.spilled.blocks):
            blocks.drop(user.user_id, number)
        user.spilled = None
