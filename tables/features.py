"""Declaring features: a function that reads a user, and how time alone changes what it says.

    @features.add(Window(30, ORDERS))
    def orders_30d(user: Buyer) -> int:
        ...

declares a feature under the function's name. From the second part `tables/table.py` knows
when a user has to be looked at again although nothing was heard of him. A feature that only
events change declares none. All of it counts in local days: the day of the user's clock is
``user.today``.

Columns are those of a record that counts by local day (`tables/record.py`), by number. Their
totals never fall.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import ceil, floor, inf, isfinite
from operator import attrgetter, itemgetter, truediv
from typing import Any, Final, Protocol, TypeVar

from mypy_extensions import i64

from tables.calendar import month_of
from tables.record import FIRST_DAY, NO_DAY, DayCounts

MONTH_DAYS: Final = 31
"""Of the longest month."""

Constants = tuple[float, ...] | None
Read = TypeVar("Read", bound=Callable[[Any], Any])


class Turn:
    """When time next changes a feature of a user."""

    def next_day(self, user: DayCounts) -> i64:
        """A day after today at whose start the feature changes, not after the first one that
        matters; ``NO_DAY`` if none does.
        """
        raise NotImplementedError


class Change(Protocol):
    """How a feature changes with no event. Equal ones are asked once."""

    def next_turn(self, constants: Constants) -> Turn:
        """What tells the next change that matters.

        A change matters where a rule may tell the values before and after it apart. ``constants``
        are all the numbers that rules compare the feature with; None: they use it in other ways.
        """

    def last_turn(self, user: Any, day: int) -> int:
        """The last day up to ``day`` at whose start the feature changed, if no event comes until
        then; any day up to today if there is none.
        """


@dataclass(frozen=True)
class Window:
    """The sum of a column over the last ``days`` local days, today included, over ``unit``.

    Or less than that by what leaves the window first, as orders without the very first.
    """

    days: int
    column: int
    unit: int = 1

    def next_turn(self, constants: Constants) -> Turn:
        """A day leaves that brings the sum to a constant or below it."""
        if constants is None:
            return _oldest_leaves(self.days, self.column)
        return _sum_falls(self.days, self.column, _levels(constants, self.unit))

    def last_turn(self, user: Any, day: int) -> int:
        """The last day at which anything left."""
        return _last_left(user, self.days, self.column, day)


@dataclass(frozen=True)
class Balance:
    """A ``Window`` over ``column`` less the same over the column ``less``."""

    days: int
    column: int
    less: int
    unit: int = 1

    def next_turn(self, constants: Constants) -> Turn:
        """While the window holds nothing to take off, a sum; otherwise any day that leaves."""
        plain = Window(self.days, self.column, self.unit).next_turn(constants)
        return _BalanceTurns(plain, self.days, self.column, self.less)

    def last_turn(self, user: Any, day: int) -> int:
        """The last day at which anything left, on either side."""
        return max(_last_left(user, self.days, column, day) for column in (self.column, self.less))


@dataclass(frozen=True)
class Ratio:
    """A ``Window`` over ``column`` divided by the same over ``by``; 0 where that is 0."""

    days: int
    column: int
    by: int

    def next_turn(self, constants: Constants) -> Turn:
        """Any day that leaves, until nothing is left to divide."""
        return _RatioTurns(self.days, self.column, self.by)

    def last_turn(self, user: Any, day: int) -> int:
        """The last day at which anything left."""
        return _last_left(user, self.days, self.by, day)


@dataclass(frozen=True)
class Rate:
    """A ``Window`` over ``column`` divided by the same over ``by``; 0 where that is 0.

    Unlike for a ``Ratio``, a day may add to ``column`` and not to ``by``.
    """

    days: int
    column: int
    by: int

    def next_turn(self, constants: Constants) -> Turn:
        """Any day that leaves, on either side, until one of them is empty."""
        return _RateTurns(self.days, self.column, self.by)

    def last_turn(self, user: Any, day: int) -> int:
        """The last day at which anything left, on either side."""
        return max(_last_left(user, self.days, column, day) for column in (self.column, self.by))


@dataclass(frozen=True)
class Month:
    """The sum of a column over the local calendar month of today: ``[first day, next first day)``.

    It falls to 0 where the month ends.
    """

    column: int

    def next_turn(self, constants: Constants) -> Turn:
        """The end of a month whose sum has reached a constant."""
        levels = (0,) if constants is None else _levels(constants, 1)
        return _month_ends(self.column, min(levels, default=_OUT_OF_REACH))

    def last_turn(self, user: Any, day: int) -> int:
        """The end of today's month, where it had anything."""
        first, end = month_of(user.today)
        return end if end <= day and user.since(first, self.column) else FIRST_DAY


@dataclass(frozen=True)
class Since:
    """The number of local days since ``getattr(user, day)``, which is None before it happened."""

    day: str

    def next_turn(self, constants: Constants) -> Turn:
        """The number reaches or passes a constant."""
        return _next_midnight(self.day) if constants is None else _passes(self.day, constants)

    def last_turn(self, user: Any, day: int) -> int:
        """Every midnight counts."""
        return FIRST_DAY if getattr(user, self.day) is None else day


_OUT_OF_REACH: Final = 2**60  # a sum that no column has


class _OldestLeaves(Turn):
    """The oldest day of a window that has anything in a column leaves."""

    def __init__(self, days: int, column: int) -> None:
        self.days: i64 = days
        self.column: i64 = column

    def next_day(self, user: DayCounts) -> i64:
        cells, width, column = user.cells, user.width, self.column
        size: i64 = len(cells)
        at = user.entry_before(user.today - self.days + 1)
        before = cells[at + column]
        at += width
        while at < size:
            if cells[at + column] != before:
                return cells[at] + self.days
            at += width
        return NO_DAY


class _SumFalls(Turn):
    """The sum of a window falls to a level or below; the levels ascend."""

    def __init__(self, days: int, column: int, levels: tuple[int, ...]) -> None:
        self.days: i64 = days
        self.column: i64 = column
        self.levels = levels
        self.lowest: i64 = min(levels, default=_OUT_OF_REACH)

    def next_day(self, user: DayCounts) -> i64:
        column = self.column
        total = user.total(column)
        if total <= self.lowest:  # most users, most of the time
            return NO_DAY
        cells, width = user.cells, user.width
        at = user.entry_before(user.today - self.days + 1)
        within = total - cells[at + column]
        level: i64 = -1
        for each in self.levels:
            if each >= within:
                break
            level = each
        if level < 0:
            return NO_DAY
        at += width
        while total - cells[at + column] > level:
            at += width
        return cells[at] + self.days


class _BalanceTurns(Turn):
    def __init__(self, plain: Turn, days: int, column: int, less: int) -> None:
        self.plain = plain
        self.days: i64 = days
        self.less: i64 = less
        self.bought = _oldest_leaves(days, column)
        self.returned = _oldest_leaves(days, less)

    def next_day(self, user: DayCounts) -> i64:
        if not user.total(self.less) or not user.over(self.days, self.less):
            return self.plain.next_day(user)
        return min(self.bought.next_day(user), self.returned.next_day(user))


class _RatioTurns(Turn):
    def __init__(self, days: int, column: int, by: int) -> None:
        self.days: i64 = days
        self.column: i64 = column
        self.leaves = _oldest_leaves(days, by)

    def next_day(self, user: DayCounts) -> i64:
        if not user.total(self.column) or not user.over(self.days, self.column):
            return NO_DAY
        return self.leaves.next_day(user)


class _RateTurns(Turn):
    def __init__(self, days: int, column: int, by: int) -> None:
        self.days: i64 = days
        self.column: i64 = column
        self.by: i64 = by
        self.above = _oldest_leaves(days, column)
        self.below = _oldest_leaves(days, by)

    def next_day(self, user: DayCounts) -> i64:
        if not user.over(self.days, self.column) or not user.over(self.days, self.by):
            return NO_DAY
        return min(self.above.next_day(user), self.below.next_day(user))


class _MonthEnds(Turn):
    def __init__(self, column: int, lowest: int) -> None:
        self.column: i64 = column
        self.lowest: i64 = lowest

    def next_day(self, user: DayCounts) -> i64:
        first, end = month_of(user.today)
        return end if user.since(first, self.column) > self.lowest else NO_DAY


class _NextMidnight(Turn):
    def __init__(self, day: str) -> None:
        self.day_of = attrgetter(day)

    def next_day(self, user: DayCounts) -> i64:
        return NO_DAY if self.day_of(user) is None else user.today + 1


class _Passes(Turn):
    """So many days passed since something happened as a constant says, or more."""

    def __init__(self, day: str, constants: tuple[float, ...]) -> None:
        self.day_of = attrgetter(day)
        finite = [constant for constant in constants if isfinite(constant)]
        values = {value for constant in finite for value in (ceil(constant), floor(constant) + 1)}
        self.steps = sorted(value for value in values if 0 < value < NO_DAY)

    def next_day(self, user: DayCounts) -> i64:
        happened: int | None = self.day_of(user)
        if happened is None:
            return NO_DAY
        passed = user.today - happened
        for step in self.steps:
            if step > passed:
                return happened + step
        return NO_DAY


# Cached, so that equal questions are the same object and are asked once.


@cache
def _oldest_leaves(days: int, column: int) -> Turn:
    return _OldestLeaves(days, column)


@cache
def _sum_falls(days: int, column: int, levels: tuple[int, ...]) -> Turn:
    return _SumFalls(days, column, levels)


@cache
def _month_ends(column: int, lowest: int) -> Turn:
    return _MonthEnds(column, lowest)


@cache
def _next_midnight(day: str) -> Turn:
    return _NextMidnight(day)


@cache
def _passes(day: str, constants: tuple[float, ...]) -> Turn:
    return _Passes(day, constants)


def levels_of(constants: Constants) -> tuple[int, ...] | None:
    """Of a count that falls: the numbers that it must come down to, ascending, before that can
    matter; None where any fall may.
    """
    return None if constants is None else _levels(constants, 1)


def _levels(constants: tuple[float, ...], unit: int) -> tuple[int, ...]:
    """Whole sums, ascending: one that falls from above a level to it or below passes a constant
    or leaves one.
    """
    levels: set[int] = set()
    for constant in constants:
        if not isfinite(constant):
            continue
        level = floor(constant * unit)  # the largest that is not above the constant
        # Not ``/``: compiled, it would divide floating-point numbers.
        if truediv(level + 1, unit) <= constant:
            level += 1
        elif truediv(level, unit) > constant:
            level -= 1
        levels.add(level)
        if truediv(level, unit) == constant:
            levels.add(level - 1)
    return tuple(sorted(level for level in levels if 0 <= level < _OUT_OF_REACH))


def _last_left(user: DayCounts, days: int, column: int, day: int) -> int:
    cells, width = user.cells, user.width
    at = user.entry_before(day - days + 1)
    while at > 0 and cells[at + column] == cells[at - width + column]:
        at -= width
    return cells[at] + days if at else FIRST_DAY


def evidence_of(
    reads: Sequence[tuple[str, Callable[[Any], Any]]],
) -> Callable[[Any], dict[str, Any]]:
    """What features say of a user, as a change of a tag shows it: None for infinity."""

    def evidence(user: Any) -> dict[str, Any]:
        found = {}
        for name, read in reads:
            value = read(user)
            found[name] = None if value == inf else value
        return found

    return evidence


class Features:
    """The features of one domain: how each is read, and how time changes it."""

    def __init__(self) -> None:
        self.readers: dict[str, Callable[[Any], Any]] = {}
        self.changes: dict[str, Change] = {}

    def add(self, change: Change | None = None, name: str | None = None) -> Callable[[Read], Read]:
        """Decorator: declare a feature, under the function's name where no other is given."""

        def declare(read: Read) -> Read:
            known_as = name or read.__name__
            self.readers[known_as] = read
            if change is not None:
                self.changes[known_as] = change
            return read

        return declare

    def next_turns(self, thresholds: Mapping[str, Constants]) -> list[tuple[int, Turn]]:
        """What tells when time can change a tag that reads ``thresholds``, each once.

        With each the days that a day has to be old before it matters, 0 where any midnight may:
        nothing turns before the oldest day that a user has is so old. In that order.
        """
        turns: dict[Turn, int] = {}
        for name, constants in thresholds.items():
            if name in self.changes:
                change = self.changes[name]
                turns[change.next_turn(constants)] = getattr(change, "days", 0)
        return sorted(((span, turn) for turn, span in turns.items()), key=itemgetter(0))

    def longest_window(self) -> int:
        """Days that events have to be kept for."""
        return max(
            MONTH_DAYS if isinstance(change, Month) else getattr(change, "days", 0)
            for change in self.changes.values()
        )
