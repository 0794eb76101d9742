"""Declaring features: a function that reads a user, and how time alone changes what it says.

    @features.add(Window(30, "orders"))
    def orders_30d(user: Buyer) -> int:
        ...

declares a feature under the function's name. From the second part `tables/table.py` knows
when a user has to be looked at again although nothing was heard of him. A feature that only
events change declares none. All of it counts in local days: the day of the user's clock is
``user.today``.
"""

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import ceil, floor, isfinite
from typing import Any, Final, Protocol, TypeVar

FIRST_DAY: Final = -(10**9)
"""Before every day there is; the sentinel in front of a list of days."""

NO_DAY: Final = 10**9
"""After every day there is."""

Constants = Sequence[float] | None
DayOf = Callable[[Any], int]
Read = TypeVar("Read", bound=Callable[[Any], Any])


class Change(Protocol):
    """How a feature changes with no event."""

    def next_turn(self, constants: Constants) -> DayOf:
        """A function of a user: the first day after today at whose start the feature may change
        what a rule makes of it; ``NO_DAY`` if none.

        ``constants`` are all the numbers that rules compare it with; None: they use it in other
        ways too. Earlier than needed is allowed, later is not.
        """

    def last_turn(self, user: Any, day: int) -> int:
        """The last day up to ``day`` at whose start the feature changed, exactly, if no event
        comes until then; any day up to today if there is none.
        """


@dataclass(frozen=True, slots=True)
class Window:
    """A sum over the last ``days`` local days, today included.

    ``user.days`` are the days that hold something, ascending, behind a sentinel;
    ``getattr(user, column)`` the running totals up to and including each.
    """

    days: int
    column: str

    def next_turn(self, constants: Constants) -> DayOf:
        """The oldest day leaves the window."""
        return _oldest_leaves(self.days)

    def last_turn(self, user: Any, day: int) -> int:
        """The last day at which something other than zero left the window."""
        held: list[int] = user.days
        totals: list[int] = getattr(user, self.column)
        last = bisect_right(held, day - self.days) - 1
        while last > 0 and totals[last] == totals[last - 1]:
            last -= 1
        return held[last] + self.days


@cache  # one function per length, so that all windows of a length are asked once
def _oldest_leaves(days: int) -> DayOf:
    def leaves(user: Any) -> int:
        held: list[int] = user.days
        oldest = bisect_right(held, user.today - days)
        return held[oldest] + days if oldest < len(held) else NO_DAY

    return leaves


@dataclass(frozen=True, slots=True)
class Since:
    """The number of local days since ``getattr(user, day)``, which is None before it happened."""

    day: str

    def next_turn(self, constants: Constants) -> DayOf:
        """The number becomes one that a rule tells from those before it."""
        attribute = self.day
        if constants is None:

            def tomorrow(user: Any) -> int:
                return NO_DAY if getattr(user, attribute) is None else user.today + 1

            return tomorrow
        steps = sorted(
            {
                step
                for constant in constants
                if isfinite(constant)
                for step in (ceil(constant), floor(constant) + 1)
                if 0 < step < NO_DAY
            }
        )

        def crosses(user: Any) -> int:
            day: int | None = getattr(user, attribute)
            if day is None:
                return NO_DAY
            step = bisect_right(steps, user.today - day)
            return day + steps[step] if step < len(steps) else NO_DAY

        return crosses

    def last_turn(self, user: Any, day: int) -> int:
        """Every midnight counts."""
        return FIRST_DAY if getattr(user, self.day) is None else day


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

    def next_turns(self, thresholds: Mapping[str, Constants]) -> list[DayOf]:
        """What tells when time can change a tag that reads ``thresholds``, each once."""
        return list(
            dict.fromkeys(
                self.changes[name].next_turn(constants)
                for name, constants in thresholds.items()
                if name in self.changes
            )
        )

    def longest_window(self) -> int:
        """Days that events have to be kept for."""
        return max(
            (change.days for change in self.changes.values() if isinstance(change, Window)),
            default=0,
        )
