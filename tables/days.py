"""Running totals by local day: what a user's record keeps of the past, shared by all domains.

A day on which something counted is one entry in parallel lists: ``days`` ascending, and beside
it *columns*, the running totals up to and including that day. A window is then the difference
of two entries: nothing is summed again, nothing drifts, and a window needs no upkeep when the
clock moves. Entry 0 stands for everything before the first day kept.

Late events: added to their own day, and so to the totals of the days after it. Days that no
window and no late event can reach again are folded into entry 0, some dozens at a time.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable
from operator import attrgetter
from typing import Any, ClassVar, Final, TypeVar

from msgspec import field

from tables.calendar import month_of
from tables.features import FIRST_DAY
from tables.table import Rules, Table, User

_FOLDED: Final = 64  # entries that may be folded away before it is worth doing


class DayCounts(User):
    """A user of a domain that counts by local day; a subclass adds the columns."""

    days: list[int] = field(default_factory=lambda: [FIRST_DAY])


D = TypeVar("D", bound=DayCounts)


def before(user: DayCounts, days: int) -> int:
    """The entry before the last ``days`` local days, the clock's own included.

    >>> user = DayCounts("u1", 0, (), today=10, days=[FIRST_DAY, 3, 4, 10])
    >>> before(user, 7)  # 4 to 10
    1
    """
    return bisect_right(user.days, user.today - days) - 1


def add(column: list[int], entry: int, amount: int) -> None:
    """Add to the running totals from ``entry`` on."""
    if entry == len(column) - 1:
        column[entry] += amount
        return
    for later in range(entry, len(column)):
        column[later] += amount


class DayTable(Table[D]):
    """The logic of a domain that counts by local day, in the ``columns`` of its record."""

    columns: ClassVar[tuple[str, ...]]

    def __init__(self, rules: Rules) -> None:
        super().__init__(rules)
        self._columns: Callable[[D], tuple[list[int], ...]] = attrgetter(*self.columns)
        self._kept_days = self.features.longest_window()

    def fold(self, user: D, entries: int) -> None:
        """The first ``entries`` days are about to be folded: note what has to outlive them."""

    def entry(self, user: D, day: int) -> int:
        """The entry of ``day``, made where there is none."""
        days = user.days
        newest = days[-1]
        if day == newest:
            return len(days) - 1
        if day > newest:
            if len(days) > _FOLDED and days[_FOLDED] <= user.today - self._kept_days:
                self._fold(user)
            days.append(day)
            for column in self._columns(user):
                column.append(column[-1])
            return len(days) - 1
        entry = bisect_left(days, day)
        if days[entry] != day:
            days.insert(entry, day)
            for column in self._columns(user):
                column.insert(entry, column[entry - 1])
        return entry

    def _fold(self, user: D) -> None:
        oldest_late = self._day(max(0, user.newest_ms - self._max_lateness_ms))
        horizon = min(user.today - self._kept_days, oldest_late - 1)
        entries = bisect_right(user.days, horizon) - 1
        self.fold(user, entries)
        del user.days[1 : entries + 1]
        for column in self._columns(user):
            del column[:entries]


def sum_of(name: str, days: int, column: str, unit: int = 1) -> Callable[[Any], float]:
    """The reader of a feature: ``column`` over the last ``days`` local days, over ``unit``."""
    totals_of = attrgetter(column)

    def count(user: DayCounts) -> int:
        totals: list[int] = totals_of(user)
        return totals[-1] - totals[bisect_right(user.days, user.today - days) - 1]

    def amount(user: DayCounts) -> float:
        return count(user) / unit

    return _named(count if unit == 1 else amount, name)


def month_sum_of(name: str, column: str) -> Callable[[Any], float]:
    """The reader of a feature: ``column`` over the local calendar month of the clock."""
    totals_of = attrgetter(column)

    def read(user: DayCounts) -> float:
        totals: list[int] = totals_of(user)
        return totals[-1] - totals[bisect_left(user.days, month_of(user.today)[0]) - 1]

    return _named(read, name)


def ratio_of(name: str, days: int, column: str, by: str, unit: int = 1) -> Callable[[Any], float]:
    """The reader of a feature: ``column`` over ``by``, both over the last ``days`` local days.

    ``unit`` divides ``column``; 0 where ``by`` is.
    """
    columns_of = attrgetter(column, by)

    def read(user: DayCounts) -> float:
        above, below = columns_of(user)
        entry = bisect_right(user.days, user.today - days) - 1
        number = below[-1] - below[entry]
        return (above[-1] - above[entry]) / (unit * number) if number else 0

    return _named(read, name)


def _named(read: Callable[[Any], float], name: str) -> Callable[[Any], float]:
    read.__name__ = name
    return read
