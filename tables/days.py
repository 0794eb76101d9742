"""Domains that count by local day: what they have in common beyond their records.

Late events: added to their own day, and so to the totals of the days after it. Days that no
window and no late event can reach again are folded into the first entry, some dozens at a time.
"""

from collections.abc import Callable
from operator import truediv
from typing import Any, Final, TypeVar

from mypy_extensions import i64

from tables.calendar import month_of
from tables.record import DayCounts
from tables.table import Rules, Table

D = TypeVar("D", bound=DayCounts)

_EXACT: Final = 2**53


class DayTable(Table[D]):
    """The logic of a domain that counts by local day, in the columns of its record."""

    def __init__(self, rules: Rules) -> None:
        super().__init__(rules)
        self._kept_days: i64 = self.features.longest_window()

    def fold(self, user: D, before: i64) -> None:
        """What lies up to the entry at ``before`` is about to be folded: note what outlives it."""

    def entry(self, user: D, day: i64) -> i64:
        """Where the entry of ``day`` begins, made where there is none."""
        horizon = user.today - self._kept_days + 1
        if user.is_long(horizon) and user.cells[i64(len(user.cells)) - user.width] < day:
            oldest_late = self._day(max(0, user.newest_ms - self._max_lateness_ms))
            before = user.entry_before(min(horizon, oldest_late))
            self.fold(user, before)
            user.fold(before)
        return user.entry(day)


def divided(above: int, below: int) -> float:
    """``above / below`` correctly rounded, however large they are.

    Compiled code divides floating-point numbers, which are exact up to 2**53.
    """
    if -_EXACT < above < _EXACT and below < _EXACT:
        return above / below
    exact: float = truediv(above, below)
    return exact


def sum_of(days: int, column: int, unit: int = 1) -> Callable[[Any], float]:
    """The reader of a feature: ``column`` over the last ``days`` local days, over ``unit``."""

    def count(user: DayCounts) -> int:
        return user.over(days, column)

    def amount(user: DayCounts) -> float:
        return divided(user.over(days, column), unit)

    return count if unit == 1 else amount


def month_sum_of(column: int) -> Callable[[Any], float]:
    """The reader of a feature: ``column`` over the local calendar month of the clock."""

    def read(user: DayCounts) -> int:
        return user.since(month_of(user.today)[0], column)

    return read


def ratio_of(days: int, column: int, by: int, unit: int = 1) -> Callable[[Any], float]:
    """The reader of a feature: ``column`` over ``by``, both over the last ``days`` local days.

    ``unit`` divides ``column``; 0 where ``by`` is.
    """

    def read(user: DayCounts) -> int | float:
        number = user.over(days, by)
        if not number:
            return 0
        return divided(user.over(days, column), unit * number)

    return read
