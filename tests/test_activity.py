"""Days of activity, packed, against a plain set of days."""

from datetime import date, timedelta

from hypothesis import given
from hypothesis import strategies as st

from tables import activity
from tables.calendar import EPOCH_ORDINAL

FIRST = date(2025, 1, 1).toordinal() - EPOCH_ORDINAL


def counted(days: list[int], signed_up: int | None) -> list[tuple[str, str, int]]:
    """What activity on these days, and a registration before all of them, is counted as."""
    known, figures = activity.NOTHING, list[tuple[str, str, int]]()
    if signed_up is not None:
        known = activity.registered(known, signed_up, figures)
    for day in days:
        known = activity.activated(known, day, figures)
    assert len(known) == activity.BYTES
    return figures


@given(st.lists(st.integers(FIRST, FIRST + activity.KEPT_DAYS - 1)))
def test_a_user_counts_once_in_a_day_a_week_and_a_month_in_any_order(days):
    """As long as no event comes later than days are known."""
    dates = {date.fromordinal(day + EPOCH_ORDINAL) for day in days}
    figures = counted(days, None)
    assert figures.count(("active", "day", 1)) == len(dates)
    mondays = {day - timedelta(days=day.weekday()) for day in dates}
    assert figures.count(("active", "week", 1)) == len(mondays)
    assert figures.count(("active", "month", 1)) == len({day.replace(day=1) for day in dates})


@given(st.lists(st.integers(FIRST, FIRST + 40)))
def test_who_signed_up_is_retained_on_three_days(days):
    """Whenever that is heard of, before the registration or after it."""
    expected = sorted(str(later) for later in activity.RETAINED if FIRST + later in days)
    for figures in (counted(days, FIRST), after(days)):
        assert sorted(kind for name, kind, _ in figures if name == "retained") == expected


def after(days: list[int]) -> list[tuple[str, str, int]]:
    """The same with the registration heard of last, and once more."""
    known, figures = activity.NOTHING, list[tuple[str, str, int]]()
    for day in days:
        known = activity.activated(known, day, figures)
    for _ in range(2):
        known = activity.registered(known, FIRST, figures)
    assert figures.count(("registered", "", 1)) == 1
    return figures


def test_activity_that_is_too_old_to_know_is_not_counted():
    """62 days are known."""
    last = FIRST + activity.KEPT_DAYS
    assert len(counted([last, FIRST + 1], None)) > len(counted([last], None))
    assert counted([last, FIRST], None) == counted([last], None)
