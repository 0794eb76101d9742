"""Instants and local dates, straight from `zoneinfo`."""

from datetime import UTC, date, datetime, timedelta
from functools import cache
from zoneinfo import ZoneInfo

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
BEFORE_ALL = -(10**18)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def instant(ts: int | str) -> int:
    """Epoch milliseconds of either form of a time."""
    if isinstance(ts, int):
        return ts
    return (datetime.fromisoformat(ts) - EPOCH) // timedelta(milliseconds=1)


def local(zone: ZoneInfo, ts: int) -> datetime:
    """An instant in local time."""
    return (EPOCH + timedelta(milliseconds=ts)).astimezone(zone)


@cache
def local_date(zone: ZoneInfo, ts: int) -> date:
    """The local date of an instant."""
    return local(zone, ts).date()


@cache
def first_instant(zone: ZoneInfo, day: date) -> int:
    """The first millisecond of a local date, by bisection."""
    midnight = (datetime(day.year, day.month, day.day, tzinfo=UTC) - EPOCH) // timedelta(
        milliseconds=1
    )
    before, after = midnight - 2 * DAY_MS, midnight + 2 * DAY_MS
    while after - before > 1:
        middle = (before + after) // 2
        if local(zone, middle).date() >= day:
            after = middle
        else:
            before = middle
    return after
