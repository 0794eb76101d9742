"""Local days of one time zone: which day an instant lies on, and when a day begins.

A day is an integer, days since 1970-01-01 of the local calendar. It begins at the first
instant that carries its date, so every instant lies on exactly one day and days never go
back: where clocks are set back over midnight, the date that had begun stays. A date that a
zone left out (Apia, 2011-12-30) begins and ends with the one after it.

Times are epoch milliseconds (UTC), any year from 1 to 9998. Nothing here knows what is
counted per day.
"""

from calendar import monthrange
from datetime import UTC, date, datetime, time, timedelta
from functools import cache, lru_cache
from typing import Final
from zoneinfo import ZoneInfo

from mypy_extensions import i64

NEVER: Final = 2**61
"""An instant that does not come."""

HOUR_MS: Final = 3_600_000
DAY_MS: Final = 24 * HOUR_MS

EPOCH_ORDINAL: Final = date(1970, 1, 1).toordinal()
"""What to add to a day to have what ``datetime.date`` calls its ordinal."""

_QUARTER_MS: Final = 900_000
_CACHED: Final = 65_536  # entries: quarter hours of 22 months in about 6 MiB
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LAST_DAY: Final = date(9998, 12, 31).toordinal() - EPOCH_ORDINAL
_MILLISECOND: Final = timedelta(milliseconds=1)
_TWO: Final = [f"{number:02}" for number in range(60)]
_THREE: Final = [f"{number:03}" for number in range(1_000)]


@lru_cache(maxsize=4_096)
def month_of(day: int) -> tuple[int, int]:
    """The first day of the calendar month that ``day`` lies in, and of the one after it; of a day
    before all dates, itself and the next.

    >>> month_of(20208)  # 2025-04-30
    (20179, 20209)
    """
    if day <= -EPOCH_ORDINAL:
        return day, day + 1
    on = date.fromordinal(day + EPOCH_ORDINAL)
    first = day - on.day + 1
    return first, first + monthrange(on.year, on.month)[1]


@cache  # what one table has looked up, all others of the zone need too
def calendar_of(zone: str) -> "Calendar":
    """The shared calendar of a zone."""
    return Calendar(zone)


class Calendar:
    """The calendar of a zone by its IANA name; unknown names raise ``ZoneInfoNotFoundError``.

    Up to ``cached`` quarter hours, and as many days, are remembered.

    >>> shanghai = Calendar("Asia/Shanghai")
    >>> shanghai.iso(1745942400000)
    '2025-04-30T00:00:00.000+08:00'
    >>> shanghai.day(1745942399999), shanghai.day(1745942400000)
    (20207, 20208)
    >>> shanghai.day_start_ms(20208)
    1745942400000
    """

    def __init__(self, zone: str, cached: int = _CACHED) -> None:
        self._zone = ZoneInfo(zone)
        self._cached = cached
        self._days: dict[int, int] = {}
        self._starts: dict[int, int] = {}
        self._offsets: dict[int, tuple[int, str]] = {}
        self._dates: dict[int, str] = {}

    def day(self, ts_ms: int) -> int:
        """The local day that ``ts_ms`` lies on."""
        day = self._days.get(ts_ms // _QUARTER_MS)
        return self._look_up_day(ts_ms) if day is None else day

    def day_start_ms(self, day: int) -> int:
        """The first instant of ``day``; ``NEVER`` beyond the year 9998."""
        start_ms = self._starts.get(day)
        return self._look_up_start(day) if start_ms is None else start_ms

    def iso(self, ts_ms: int) -> str:
        """Local time with milliseconds and offset, as in every output."""
        quarter = ts_ms // _QUARTER_MS
        offset = self._offsets.get(quarter)
        if offset is None:
            offset = self._look_up_offset(quarter)
        offset_ms, suffix = offset
        if not suffix:
            return self._local(ts_ms).isoformat(timespec="milliseconds")
        local_ms = ts_ms + offset_ms
        day = local_ms // DAY_MS
        date_text = self._dates.get(day)
        if date_text is None:
            date_text = self._look_up_date(day)
        ms: i64 = local_ms - day * DAY_MS
        seconds = ms // 1_000
        minutes = seconds // 60
        hour = minutes // 60
        clock = f"{_TWO[hour]}:{_TWO[minutes - hour * 60]}:{_TWO[seconds - minutes * 60]}"
        return f"{date_text}T{clock}.{_THREE[ms - seconds * 1_000]}{suffix}"

    def _look_up_offset(self, quarter: int) -> tuple[int, str]:
        """Local time less UTC during a quarter of an hour, in ms and as it is written; without a
        writing where it changed within, or is not that simple (before about 1970).
        """
        first = self._local(quarter * _QUARTER_MS)
        last = self._local((quarter + 1) * _QUARTER_MS - 1)
        offset = first.utcoffset()
        found = 0, ""
        if offset is not None and offset == last.utcoffset() and not offset.seconds % 60:
            found = offset // _MILLISECOND, first.isoformat(timespec="minutes")[16:]
        if len(self._offsets) >= self._cached:
            self._offsets.clear()
        self._offsets[quarter] = found
        return found

    def _look_up_date(self, day: int) -> str:
        if len(self._dates) >= self._cached:
            self._dates.clear()
        text = self._dates[day] = date.fromordinal(day + EPOCH_ORDINAL).isoformat()
        return text

    def _local(self, ts_ms: int) -> datetime:
        return (_EPOCH + ts_ms * _MILLISECOND).astimezone(self._zone)

    def _date(self, ts_ms: int) -> int:
        return self._local(ts_ms).toordinal() - EPOCH_ORDINAL

    def _look_up_day(self, ts_ms: int) -> int:
        quarter = ts_ms // _QUARTER_MS
        day = self._settled_day(quarter * _QUARTER_MS)
        if day != self._settled_day((quarter + 1) * _QUARTER_MS - 1):
            return self._settled_day(ts_ms)  # zones of odd minutes: midnight within the quarter
        if len(self._days) >= self._cached:
            self._days.clear()
        self._days[quarter] = day
        return day

    def _settled_day(self, ts_ms: int) -> int:
        day = self._date(ts_ms)
        # St John's set its clocks back at 00:01: a minute of the new date, then an hour of the old.
        return day + 1 if ts_ms >= self.day_start_ms(day + 1) else day

    def _look_up_start(self, day: int) -> int:
        if day > _LAST_DAY:
            return NEVER
        midnight = datetime.combine(date.fromordinal(day + EPOCH_ORDINAL), time(), self._zone)
        # Of an ambiguous midnight the first; of one left out, the instant the clocks were set.
        start_ms = (midnight - _EPOCH) // _MILLISECOND
        if self._date(start_ms - 1) >= day:  # set forward from before midnight to after it
            before_ms = start_ms - DAY_MS
            while start_ms - before_ms > 1:
                middle_ms = (before_ms + start_ms) // 2
                if self._date(middle_ms) >= day:
                    start_ms = middle_ms
                else:
                    before_ms = middle_ms
        if len(self._starts) >= self._cached:
            self._starts.clear()
        self._starts[day] = start_ms
        return start_ms
