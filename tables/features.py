"""Declaring features: a function that reads a user, and how time alone changes what it says.

    @features.add(Window(30, "orders"))
    def orders_30d(user: Buyer) -> int:
        ...

declares a feature under the function's name. From the second part `tables/table.py` knows
when a user has to be looked at again although nothing was heard of him. A feature that only
events change declares none. All of it counts in local days: the day of the user's clock is
``user.today``.

A user's days are kept in ``user.days``, ascending, behind the sentinel ``FIRST_DAY``; beside
it stand *columns*, lists of whole running totals up to and including each day, which never fall.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from math import ceil, floor, inf, isfinite
from operator import attrgetter, itemgetter
from typing import Any, Final, Protocol, TypeVar

from tables.calendar import month_of

FIRST_DAY: Final = -(10**9)
"""Before every day there is."""

NO_DAY: Final = 10**9
"""After every day there is."""

MONTH_DAYS: Final = 31
"""Of the longest month."""

Constants = tuple[float, ...] | None
DayOf = Callable[[Any], int]
Read = TypeVar("Read", bound=Callable[[Any], Any])


class Change(Protocol):
    """How a feature changes with no event. Equal ones are asked once."""

    def next_turn(self, constants: Constants) -> DayOf:
        """A function of a user: a day after today at whose start the feature changes, not after
        the first one that matters; ``NO_DAY`` if none does.

        A change matters where a rule may tell the values before and after it apart. ``constants``
        are all the numbers that rules compare the feature with; None: they use it in other ways.
        """

    def last_turn(self, user: Any, day: int) -> int:
        """The last day up to ``day`` at whose start the feature changed, if no event comes until
        then; any day up to today if there is none.
        """


@dataclass(frozen=True, slots=True)
class Window:
    """The sum of a column over the last ``days`` local days, today included, over ``unit``.

    Or less than that by what leaves the window first, as orders without the very first.
    """

    days: int
    column: str
    unit: int = 1

    def next_turn(self, constants: Constants) -> DayOf:
        """A day leaves that brings the sum to a constant or below it."""
        if constants is None:
            return _oldest_leaves(self.days, self.column)
        return _sum_falls(self.days, self.column, _levels(constants, self.unit))

    def last_turn(self, user: Any, day: int) -> int:
        """The last day at which anything left."""
        return _last_left(user, self.days, self.column, day)


@dataclass(frozen=True, slots=True)
class Balance:
    """A ``Window`` over ``column`` less the same over the column ``less``."""

    days: int
    column: str
    less: str
    unit: int = 1

    def next_turn(self, constants: Constants) -> DayOf:
        """While the window holds nothing to take off, a sum; otherwise any day that leaves."""
        plain = Window(self.days, self.column, self.unit).next_turn(constants)
        either = [_oldest_leaves(self.days, column) for column in (self.column, self.less)]
        days, totals_of = self.days, attrgetter(self.less)

        def turns(user: Any) -> int:
            totals: list[int] = totals_of(user)
            total = totals[-1]
            if not total or total == totals[bisect_right(user.days, user.today - days) - 1]:
                return plain(user)
            return min(leaves(user) for leaves in either)

        return turns

    def last_turn(self, user: Any, day: int) -> int:
        """The last day at which anything left, on either side."""
        return max(_last_left(user, self.days, column, day) for column in (self.column, self.less))


@dataclass(frozen=True, slots=True)
class Ratio:
    """A ``Window`` over ``column`` divided by the same over ``by``; 0 where that is 0."""

    days: int
    column: str
    by: str

    def next_turn(self, constants: Constants) -> DayOf:
        """Any day that leaves, until nothing is left to divide."""
        days, totals_of = self.days, attrgetter(self.column)
        leaves = _oldest_leaves(days, self.by)

        def turns(user: Any) -> int:
            totals: list[int] = totals_of(user)
            total = totals[-1]
            if not total or total == totals[bisect_right(user.days, user.today - days) - 1]:
                return NO_DAY
            return leaves(user)

        return turns

    def last_turn(self, user: Any, day: int) -> int:
        """The last day at which anything left."""
        return _last_left(user, self.days, self.by, day)


@dataclass(frozen=True, slots=True)
class Rate:
    """A ``Window`` over ``column`` divided by the same over ``by``; 0 where that is 0.

    Unlike for a ``Ratio``, a day may add to ``column`` and not to ``by``.
    """

    days: int
    column: str
    by: str

    def next_turn(self, constants: Constants) -> DayOf:
        """Any day that leaves, on either side, until one of them is empty."""
        days, totals_of = self.days, attrgetter(self.column, self.by)
        either = [_oldest_leaves(days, column) for column in (self.column, self.by)]

        def turns(user: Any) -> int:
            entry = bisect_right(user.days, user.today - days) - 1
            if any(totals[-1] == totals[entry] for totals in totals_of(user)):
                return NO_DAY
            return min(leaves(user) for leaves in either)

        return turns

    def last_turn(self, user: Any, day: int) -> int:
        """The last day at which anything left, on either side."""
        return max(_last_left(user, self.days, column, day) for column in (self.column, self.by))


@dataclass(frozen=True, slots=True)
class Month:
    """The sum of a column over the local calendar month of today: ``[first day, next first day)``.

    It falls to 0 where the month ends.
    """

    column: str

    def next_turn(self, constants: Constants) -> DayOf:
        """The end of a month whose sum has reached a constant."""
        levels = (0,) if constants is None else _levels(constants, 1)
        return _month_ends(self.column, min(levels, default=inf))

    def last_turn(self, user: Any, day: int) -> int:
        """The end of today's month, where it had anything."""
        first, end = month_of(user.today)
        return end if end <= day and _since(user, self.column, first) else FIRST_DAY


@dataclass(frozen=True, slots=True)
class Since:
    """The number of local days since ``getattr(user, day)``, which is None before it happened."""

    day: str

    def next_turn(self, constants: Constants) -> DayOf:
        """The number reaches or passes a constant."""
        return _next_midnight(self.day) if constants is None else _passes(self.day, constants)

    def last_turn(self, user: Any, day: int) -> int:
        """Every midnight counts."""
        return FIRST_DAY if getattr(user, self.day) is None else day


# Cached, so that equal questions are the same function and are asked once.


@cache
def _oldest_leaves(days: int, column: str) -> DayOf:
    totals_of = attrgetter(column)

    def leaves(user: Any) -> int:
        held: list[int] = user.days
        totals: list[int] = totals_of(user)
        oldest = bisect_right(held, user.today - days)
        while oldest < len(held) and totals[oldest] == totals[oldest - 1]:
            oldest += 1
        return held[oldest] + days if oldest < len(held) else NO_DAY

    return leaves


@cache
def _sum_falls(days: int, column: str, levels: tuple[int, ...]) -> DayOf:
    totals_of = attrgetter(column)
    lowest = min(levels, default=inf)

    def falls(user: Any) -> int:
        totals: list[int] = totals_of(user)
        total = totals[-1]
        if total <= lowest:  # most users, most of the time
            return NO_DAY
        held: list[int] = user.days
        before = bisect_right(held, user.today - days) - 1
        passed = bisect_left(levels, total - totals[before])  # levels below the sum
        if not passed:
            return NO_DAY
        return held[bisect_left(totals, total - levels[passed - 1], before + 1)] + days

    return falls


@cache
def _month_ends(column: str, lowest: float) -> DayOf:
    def ends(user: Any) -> int:
        first, end = month_of(user.today)
        return end if _since(user, column, first) > lowest else NO_DAY

    return ends


@cache
def _next_midnight(day: str) -> DayOf:
    day_of = attrgetter(day)
    return lambda user: NO_DAY if day_of(user) is None else user.today + 1


@cache
def _passes(day: str, constants: tuple[float, ...]) -> DayOf:
    day_of = attrgetter(day)
    finite = [constant for constant in constants if isfinite(constant)]
    values = {value for constant in finite for value in (ceil(constant), floor(constant) + 1)}
    steps = sorted(value for value in values if 0 < value < NO_DAY)

    def passes(user: Any) -> int:
        happened: int | None = day_of(user)
        if happened is None:
            return NO_DAY
        step = bisect_right(steps, user.today - happened)
        return happened + steps[step] if step < len(steps) else NO_DAY

    return passes


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
        level += 1 if (level + 1) / unit <= constant else -1 if level / unit > constant else 0
        levels.add(level)
        if level / unit == constant:
            levels.add(level - 1)
    return tuple(sorted(level for level in levels if level >= 0))


def _since(user: Any, column: str, first: int) -> int:
    """The sum of a column from the day ``first`` on."""
    totals: list[int] = getattr(user, column)
    return totals[-1] - totals[bisect_left(user.days, first) - 1]


def _last_left(user: Any, days: int, column: str, day: int) -> int:
    held: list[int] = user.days
    totals: list[int] = getattr(user, column)
    last = bisect_right(held, day - days) - 1
    while last > 0 and totals[last] == totals[last - 1]:
        last -= 1
    return held[last] + days if last else FIRST_DAY


class Features:
    """The features of one domain: how each is read, and how time changes it."""

    def __init__(self) -> None:
        self.readers: dict[str, Callable[[Any], Any]] = {}
        self.changes: dict[str, Change] = {}

    def add(self, change: Change | None = None) -> Callable[[Read], Read]:
        """Decorator: declare a feature under the function's name."""

        def declare(read: Read) -> Read:
            self.readers[read.__name__] = read
            if change is not None:
                self.changes[read.__name__] = change
            return read

        return declare

    def next_turns(self, thresholds: Mapping[str, Constants]) -> list[tuple[int, DayOf]]:
        """What tells when time can change a tag that reads ``thresholds``, each once.

        With each the days that a day has to be old before it matters, 0 where any midnight may:
        nothing turns before the oldest day that a user has is so old. In that order.
        """
        turns: dict[DayOf, int] = {}
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
