"""Windows of hours over one user's instants: ``(clock - span, clock]``, exact to the millisecond.

A user's record holds the instants that such a window still counts, oldest first, packed into
one bytes object: `ENTRY` bytes each, the time and how many fell on it. Those of a busier user
move on to rows of their own (``Blocks``, as event ids do in `tables/dedup.py`), so that a user
with 100,000 instants in a window stays a small record and one more rewrites one row. A row
holds at most `ROW` times; the record knows of each row when it begins and how much it holds.

The clock never falls, so what has left a window is dropped. The oldest instants are always in
the record, and whoever moves the clock looks in before they run out (``due_ms``, ``settle``):
so counting needs nothing but the record.

Late instants: put in their place; those that have left already change nothing.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Final

from tables.calendar import NEVER
from tables.dedup import Blocks
from tables.kept import Held

INLINE: Final = 64
"""Times in a record that has no rows."""

ROW: Final = 512
"""Times in a row, and in a record that had a row back."""

ENTRY: Final = 10
"""Bytes of a time and a number, both big-endian."""

_TIME: Final = 6  # bytes of them
_FELL: Final = ENTRY - _TIME
_NUMBER_BITS: Final = 8 * _FELL
_NUMBER: Final = (1 << _NUMBER_BITS) - 1


@dataclass(frozen=True)
class Hours:
    """A window of ``span_ms``. Its rows are numbered from ``first_row`` on: no two windows of a
    domain share any.

    >>> from tables.dedup import MemoryBlocks
    >>> pushes, held, blocks = Hours(1_000, first_row=0), Held(), MemoryBlocks()
    >>> for ts_ms in (0, 1_000, 500):  # 500 arrives late
    ...     pushes.add(held, ts_ms, 1_000, "u1", blocks)
    >>> pushes.count(held, 1_000)  # 0 lies on the open left edge
    2
    """

    span_ms: int
    first_row: int

    def count(self, held: Held, clock_ms: int) -> int:
        """Instants in ``(clock - span, clock]``."""
        total, edge_ms = held.total, clock_ms - self.span_ms
        if held.oldest_ms > edge_ms:
            return total
        head, at = held.head, 0
        while at < len(head) and _time(head, at) <= edge_ms:
            total -= _number(head, at)
            at += ENTRY
        return total

    def add(self, held: Held, ts_ms: int, clock_ms: int, user_id: str, blocks: Blocks) -> None:
        """Count one more instant, no later than the clock, in a window cleared as of the clock."""
        if ts_ms <= clock_ms - self.span_ms:
            return
        held.total += 1
        if held.rows:
            place = bisect_right(held.rows, ts_ms, key=itemgetter(0)) - 1
            if place >= 0:
                self._add_to_row(held, place, ts_ms, user_id, blocks)
                return
        head = held.head
        if not head or int.from_bytes(head[-ENTRY:-_FELL], "big") < ts_ms:
            head += (ts_ms << _NUMBER_BITS | 1).to_bytes(ENTRY, "big")
        else:
            head = _inserted(head, ts_ms)
        held.head = head
        if ts_ms < held.oldest_ms:
            held.oldest_ms = ts_ms
        if len(head) > (ROW if held.rows else INLINE) * ENTRY:
            middle = len(head) // ENTRY // 2 * ENTRY
            held.head = head[:middle]
            self._new_row(held, 0, _times(head[middle:]), user_id, blocks)

    def clear(self, held: Held, clock_ms: int, user_id: str, blocks: Blocks) -> None:
        """Settle, and drop the rows that nothing needs any more."""
        if held.oldest_ms <= clock_ms - self.span_ms:
            self.settle(held, clock_ms, user_id, blocks)
        if held.spent:
            for number in held.spent:
                blocks.drop(user_id, number)
            held.spent = ()

    def settle(self, held: Held, clock_ms: int, user_id: str, blocks: Blocks) -> bool:
        """Drop what has left the window, and have the oldest instants in the record again.

        Whether a row was read for that. None is written, since what is settled may be a copy.
        """
        edge_ms = clock_ms - self.span_ms
        if held.oldest_ms > edge_ms:
            return False
        head, rows, at = held.head, held.rows, 0
        oldest_ms = NEVER
        while at < len(head):
            entry = int.from_bytes(head[at : at + ENTRY], "big")
            if entry >> _NUMBER_BITS > edge_ms:
                oldest_ms = entry >> _NUMBER_BITS
                break
            held.total -= entry & _NUMBER
            at += ENTRY
        head = head[at:]
        while rows and not head:
            (_, total, number), rows = rows[0], rows[1:]
            held.spent += (number,)
            # All of a row has left where the next one's first has.
            is_over = bool(rows) and rows[0][0] <= edge_ms
            times = {} if is_over else blocks.get(user_id, number) or {}
            kept = sorted(item for item in times.items() if item[0] > edge_ms)
            held.total -= total - sum(fell for _, fell in kept)
            head = b"".join(_pack(ts_ms, fell) for ts_ms, fell in kept)
            oldest_ms = kept[0][0] if kept else NEVER
        is_read = rows is not held.rows
        held.head, held.rows, held.oldest_ms = head, rows, oldest_ms
        return is_read

    def due_ms(self, held: Held, levels: Sequence[int] | None) -> int:
        """The next instant at which the count falls to one of the ascending ``levels`` or below
        it, or (None) at all; or at which the record has to be settled. ``NEVER`` if none is left.
        """
        head = held.head
        if not head or not (held.rows or levels or levels is None):
            return NEVER
        if levels is None:
            return held.oldest_ms + self.span_ms
        passed = bisect_left(levels, held.total)
        at = len(head) - ENTRY
        left = 0  # once all of ``head`` is gone
        if held.rows:
            left = sum(total for _, total, _ in held.rows)
            if not passed or levels[passed - 1] < left:
                return _time(head, at) + self.span_ms
        elif not passed:
            return NEVER
        # The newest that has to leave: the level has room for all that are newer.
        level = levels[passed - 1]
        while (left := left + _number(head, at)) <= level:
            at -= ENTRY
        return _time(head, at) + self.span_ms

    def last_left_ms(self, held: Held, clock_ms: int, time_ms: int) -> int:
        """The last instant after the clock up to ``time_ms`` at which anything leaves; ``-NEVER``
        if there is none. The record was settled at every one that ``due_ms`` names.
        """
        head, at = held.head, len(held.head)
        while at:
            at -= ENTRY
            leaves_ms = _time(head, at) + self.span_ms
            if leaves_ms <= time_ms:
                return leaves_ms if leaves_ms > clock_ms else -NEVER
        return -NEVER

    def forget(self, held: Held, user_id: str, blocks: Blocks) -> None:
        """Drop every row of the user."""
        for number in (*held.spent, *(number for _, _, number in held.rows)):
            blocks.drop(user_id, number)

    def _add_to_row(self, held: Held, place: int, ts_ms: int, user_id: str, blocks: Blocks) -> None:
        rows = held.rows
        start_ms, total, number = rows[place]
        times = blocks.get(user_id, number) or {}
        times[ts_ms] = times.get(ts_ms, 0) + 1
        total += 1
        newer: list[tuple[int, int]] = []
        if len(times) > ROW:
            # In order of arrival rows fill up; only what comes late splits one in halves.
            ordered = sorted(times.items())
            middle = ROW if ordered[-1][0] == ts_ms else ROW // 2
            times, newer = dict(ordered[:middle]), ordered[middle:]
            total -= sum(fell for _, fell in newer)
        blocks.put(user_id, number, times)
        held.rows = (*rows[:place], (start_ms, total, number), *rows[place + 1 :])
        if newer:
            self._new_row(held, place + 1, newer, user_id, blocks)

    def _new_row(
        self,
        held: Held,
        place: int,
        times: Iterable[tuple[int, int]],
        user_id: str,
        blocks: Blocks,
    ) -> None:
        row, rows = dict(times), held.rows
        number = max((number for _, _, number in rows), default=self.first_row - 1) + 1
        blocks.put(user_id, number, row)
        held.rows = (*rows[:place], (min(row), sum(row.values()), number), *rows[place:])


def _time(packed: bytes, at: int) -> int:
    return int.from_bytes(packed[at : at + _TIME], "big")


def _number(packed: bytes, at: int) -> int:
    return int.from_bytes(packed[at + _TIME : at + ENTRY], "big")


def _times(packed: bytes) -> Iterable[tuple[int, int]]:
    for at in range(0, len(packed), ENTRY):
        yield _time(packed, at), _number(packed, at)


def _pack(ts_ms: int, number: int) -> bytes:
    return (ts_ms << _NUMBER_BITS | number).to_bytes(ENTRY, "big")


def _inserted(packed: bytes, ts_ms: int) -> bytes:
    """One more instant, not later than all others."""
    at = len(packed)
    while at and (last_ms := _time(packed, at - ENTRY)) >= ts_ms:
        before = at - ENTRY
        if last_ms == ts_ms:
            return packed[:before] + _pack(ts_ms, _number(packed, before) + 1) + packed[at:]
        at = before
    return packed[:at] + _pack(ts_ms, 1) + packed[at:]
