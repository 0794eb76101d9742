"""What is remembered of one user in one domain, and how that is kept as bytes.

A record is a few numbers, the values of the user's tags, the ids of recent events, and for a domain
that counts by local day one *entry* per day on which something counted. An entry is the day and
running totals up to and including it, one per *column*. A window is then the difference of two
entries: nothing is summed again, nothing drifts, and a window needs no upkeep when the clock moves.
Entry 0 stands for everything before the first day kept.

Times in epoch ms, days as `tables/calendar.py` counts them. Records are plain data: what an event
makes of one is in `tables/table.py`.
"""

from collections.abc import Callable
from typing import Any, Final

from librt.strings import BytesWriter
from librt.vecs import append, vec
from msgspec import msgpack
from mypy_extensions import i64, mypyc_attr

from tables.calendar import NEVER
from tables.kept import Spilled, TagState
from tables.packing import Reader, pack, put, put_bytes, put_instant, put_packed, put_text

FIRST_DAY: Final = -(10**9)
"""Before every day there is."""

NO_DAY: Final = 10**9
"""After every day there is."""

Values = tuple[Any, ...]

_FOLDED: Final = 64  # entries that may be folded away before it is worth doing
_REMEMBERED: Final = 10_000  # combinations of values of which the bytes are remembered


_unpack_tags: Callable[[bytes], dict[str, TagState]] = msgpack.Decoder(dict[str, TagState]).decode
_unpack_values: Callable[[bytes], list[Any]] = msgpack.Decoder(list[Any]).decode
_unpack_spilled: Callable[[bytes], Spilled] = msgpack.Decoder(Spilled).decode

# Many users have the same few combinations of values; only None, truth and texts are in them, so
# that equal ones are the same.
_packed_values: dict[Values, bytes] = {}
_unpacked_values: dict[bytes, Values] = {}


def _put_values(to: BytesWriter, values: Values) -> None:
    packed = _packed_values.get(values)
    if packed is None:
        if len(_packed_values) >= _REMEMBERED:
            _packed_values.clear()
        packed = _packed_values[values] = pack(values)
    put_bytes(to, packed)


def _values(packed: bytes) -> Values:
    values = _unpacked_values.get(packed)
    if values is None:
        if len(_unpacked_values) >= _REMEMBERED:
            _unpacked_values.clear()
        values = _unpacked_values[packed] = tuple(_unpack_values(packed))
    return values


@mypyc_attr(acyclic=True)
class User:
    """What every domain remembers of a user; a subclass adds what its events need.

    ``rules`` is the id of the definitions that ``values`` follow, those of all tags in the order of
    definition. ``newest_ms`` is the largest event time applied; it and the clock are before all
    time until the first event. ``today`` is the local day of the clock. ``deadline_ms`` is what
    ``Table.deadline_ms`` said last; ``fire`` has nothing to do before ``hint_ms``. ``heard_day`` is
    the local day of the event last told to the profile. What happened up to ``erased_ms`` is not to
    be known any more.
    """

    def __init__(self, user_id: str, rules: int, values: Values) -> None:
        self.user_id = user_id
        self.rules: int = rules
        self.values: Values = values
        self.clock_ms: int = -NEVER
        self.newest_ms: int = -NEVER
        self.today: int = FIRST_DAY
        self.deadline_ms: int = NEVER
        self.hint_ms: int = NEVER
        self.recent = b""
        self.spilled: Spilled | None = None
        self.heard_day: int = FIRST_DAY
        self.erased_ms: int = -NEVER
        self._tags: dict[str, TagState] | None = {}
        self._packed_tags = b""

    @property
    def tags(self) -> dict[str, TagState]:
        """The states of all tags that ever changed, by name. Read when first asked for."""
        tags = self._tags
        if tags is None:
            tags = self._tags = _unpack_tags(self._packed_tags)
        return tags

    def write(self, to: BytesWriter) -> None:
        """Append the record as bytes."""
        clock_ms = self.clock_ms
        put_text(to, self.user_id)
        put(to, self.rules)
        put_instant(to, clock_ms)
        put(to, clock_ms - self.newest_ms)
        put(to, self.today)
        put_instant(to, self.deadline_ms)
        put_instant(to, self.hint_ms)
        put(to, self.heard_day)
        put(to, 0 if self.erased_ms == -NEVER else self.erased_ms + 1)
        _put_values(to, self.values)
        put_bytes(to, self._packed_tags if self._tags is None else pack(self._tags))
        put_bytes(to, self.recent)
        put_packed(to, self.spilled)

    def read(self, row: Reader) -> None:
        """Take over what ``write`` wrote."""
        self.user_id = row.text()
        self.rules = row.number()
        clock_ms = self.clock_ms = row.instant()
        self.newest_ms = clock_ms - row.number()
        self.today = row.number()
        self.deadline_ms = row.instant()
        self.hint_ms = row.instant()
        self.heard_day = row.number()
        erased_ms = row.number()
        self.erased_ms = erased_ms - 1 if erased_ms else -NEVER
        self.values = _values(row.bytes())
        self._packed_tags, self._tags = row.bytes(), None
        self.recent = row.bytes()
        spilled = row.bytes()
        self.spilled = _unpack_spilled(spilled) if spilled else None

    def packed(self) -> bytes:
        """The record as bytes."""
        to = BytesWriter()
        self.write(to)
        return to.getvalue()

    def become(self, fresh: "User") -> None:
        """Take over everything from another record."""
        self.read(Reader(fresh.packed()))

    def __eq__(self, other: object) -> bool:
        """Records are equal where they are kept as the same bytes."""
        return isinstance(other, User) and self.packed() == other.packed()

    __hash__ = None  # type: ignore[assignment]


@mypyc_attr(acyclic=True)
class DayCounts(User):
    """A user of a domain that counts by local day, in ``columns`` columns numbered from 1.

    ``cells`` holds the entries one after the other: the day, then its totals. Most of them never
    change again: the bytes of the first ``_settled`` cells are kept as they were read.
    """

    def __init__(self, user_id: str, rules: int, values: Values, columns: int) -> None:
        super().__init__(user_id, rules, values)
        self.width: i64 = columns + 1
        cells = vec[i64]([FIRST_DAY])
        for _ in range(columns):
            cells = append(cells, 0)
        self.cells: vec[i64] = cells
        self._settled: i64 = 0
        self._packed_cells = b""

    @property
    def days(self) -> list[int]:
        """The days of all entries, ascending, behind the sentinel ``FIRST_DAY``."""
        return [self.cells[at] for at in range(0, len(self.cells), self.width)]

    # -- reading

    def entry_before(self, day: i64) -> i64:
        """Where the last entry before a local day begins in ``cells``."""
        cells, width = self.cells, self.width
        low: i64 = 0
        high: i64 = i64(len(cells)) // width
        if high == 1 or cells[width] >= day:
            return 0  # most users, most of the time: all they did lies in the window
        while high - low > 1:
            middle = (low + high) >> 1
            if cells[middle * width] < day:
                low = middle
            else:
                high = middle
        return low * width

    def total(self, column: i64) -> int:
        """All there ever was in a column."""
        cells = self.cells
        return cells[i64(len(cells)) - self.width + column]

    def on(self, entry: i64, column: i64) -> int:
        """What the day of an entry, which is not the first, added to a column."""
        return self.cells[entry + column] - self.cells[entry + column - self.width]

    def since(self, day: i64, column: i64) -> int:
        """The sum of a column from a local day on."""
        return self.total(column) - self.cells[self.entry_before(day) + column]

    def over(self, days: i64, column: i64) -> int:
        """The sum of a column over the last ``days`` local days, the clock's own included."""
        return self.since(self.today - days + 1, column)

    # -- writing

    def entry(self, day: i64) -> i64:
        """Where the entry of a local day begins in ``cells``; it is made where there is none."""
        cells, width = self.cells, self.width
        newest: i64 = i64(len(cells)) - width
        if cells[newest] == day:
            return newest
        before = newest if cells[newest] < day else self.entry_before(day)
        at = before + width
        if at <= newest and cells[at] == day:
            return at
        if at < self._settled:
            self._settled = 0
        made = vec[i64](capacity=i64(len(cells)) + width)
        number: i64 = 0
        while number < at:
            made = append(made, cells[number])
            number += 1
        made = append(made, day)
        number = before + 1
        while number < at:
            made = append(made, cells[number])
            number += 1
        while number <= newest + width - 1:
            made = append(made, cells[number])
            number += 1
        self.cells = made
        return at

    def add(self, entry: i64, column: i64, amount: i64) -> None:
        """Add to the running totals from an entry on."""
        cells, at = self.cells, entry + column
        if at < self._settled:
            self._settled = 0
        while at < len(cells):
            cells[at] += amount
            at += self.width

    def is_long(self, day: i64) -> bool:
        """Whether there are many entries before a local day."""
        at: i64 = _FOLDED * self.width
        return len(self.cells) > at and self.cells[at] < day

    def fold(self, before: i64) -> None:
        """Let the entry that begins at ``before`` stand for all up to it."""
        cells = vec[i64]([FIRST_DAY])
        at = before + 1
        while at < len(self.cells):
            cells = append(cells, self.cells[at])
            at += 1
        self.cells = cells
        self._settled = 0

    # -- bytes

    def write(self, to: BytesWriter) -> None:
        """Append the record as bytes: of every entry what it adds to the one before."""
        super().write(to)
        cells, width = self.cells, self.width
        size: i64 = i64(len(cells))
        put(to, size // width)
        at = self._settled
        if at:
            to.write(self._packed_cells)
        else:
            at = 1
            while at < width:
                put(to, cells[at])
                at += 1
            if size > width:
                put(to, cells[width])
                at += 1
        while at < size:
            put(to, cells[at] - cells[at - width])
            at += 1

    def read(self, row: Reader) -> None:
        """Take over what ``write`` wrote."""
        super().read(row)
        width = self.width
        size = row.number() * width
        begin = row.at
        cells = vec[i64](capacity=size)
        cells = append(cells, FIRST_DAY)
        at: i64 = 1
        while at < width:
            cells = append(cells, row.number())
            at += 1
        if size > width:
            cells = append(cells, row.number())
            at += 1
        newest = size - width  # the entry that may well change
        while at < newest:
            cells = append(cells, cells[at - width] + row.number())
            at += 1
        self._settled = 0
        if at == newest:
            self._settled = newest
            self._packed_cells = row.row[begin : row.at]
        while at < size:
            cells = append(cells, cells[at - width] + row.number())
            at += 1
        self.cells = cells
