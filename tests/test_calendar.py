"""Local days: every instant on exactly one, which begins at the first instant of its date."""

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tables.calendar import NEVER, Calendar

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
ZONES = [
    "UTC",
    "Asia/Shanghai",
    "America/New_York",
    "America/Havana",  # clocks go forward at midnight
    "America/Sao_Paulo",  # so they did here; and back, from midnight to eleven
    "Australia/Lord_Howe",  # by half an hour
    "Asia/Kathmandu",  # +05:45
    "Africa/Monrovia",  # -00:44:30 until 1972: midnight within a quarter hour
    "Pacific/Apia",  # without 2011-12-30
    "America/Toronto",
]


def ms(at: str, zone: str = "UTC") -> int:
    local = datetime.fromisoformat(at).replace(tzinfo=ZoneInfo(zone))
    return (local - EPOCH) // timedelta(milliseconds=1)


def day(of: str) -> int:
    return (date.fromisoformat(of) - date(1970, 1, 1)).days


def local_date(ts_ms: int, zone: str) -> date:
    return (EPOCH + timedelta(milliseconds=ts_ms)).astimezone(ZoneInfo(zone)).date()


@given(st.sampled_from(ZONES), st.integers(0, ms("2040-01-01")))
def test_a_day_is_the_local_date_and_begins_at_its_first_instant(zone, ts_ms):
    """Before its first instant it was yesterday, whatever the clocks did."""
    zoned = Calendar(zone)
    found = zoned.day(ts_ms)
    assert found == (local_date(ts_ms, zone) - date(1970, 1, 1)).days
    start_ms, next_ms = zoned.day_start_ms(found), zoned.day_start_ms(found + 1)
    assert start_ms <= ts_ms < next_ms
    assert local_date(start_ms, zone) == local_date(next_ms - 1, zone)
    assert local_date(start_ms - 1, zone) < local_date(start_ms, zone)


@pytest.mark.parametrize(
    ("zone", "date_", "begins"),
    [
        ("Asia/Shanghai", "2025-04-30", "2025-04-30T00:00:00.000+08:00"),
        ("America/New_York", "2025-03-09", "2025-03-09T00:00:00.000-05:00"),
        ("America/New_York", "2025-03-10", "2025-03-10T00:00:00.000-04:00"),
        ("America/Havana", "2025-03-09", "2025-03-09T01:00:00.000-04:00"),
        ("America/Havana", "2025-11-02", "2025-11-02T00:00:00.000-04:00"),  # strikes twice
        ("America/Sao_Paulo", "2018-11-04", "2018-11-04T01:00:00.000-02:00"),
        ("America/Sao_Paulo", "2018-02-18", "2018-02-18T00:00:00.000-03:00"),
        ("Pacific/Apia", "2011-12-30", "2011-12-31T00:00:00.000+14:00"),
        ("Pacific/Apia", "2011-12-31", "2011-12-31T00:00:00.000+14:00"),
        ("America/Toronto", "1919-03-31", "1919-03-31T00:30:00.000-04:00"),  # from 23:30
    ],
)
def test_days_begin_where_the_clocks_say(zone, date_, begins):
    """Midnights that are left out, strike twice, or are jumped over from before."""
    zoned = Calendar(zone)
    assert zoned.iso(zoned.day_start_ms(day(date_))) == begins


def test_a_date_that_has_begun_stays_where_clocks_go_back_over_midnight():
    """St John's: at 00:01 it was 23:01 again, yesterday."""
    zoned = Calendar("America/St_Johns")
    first_midnight_ms = zoned.day_start_ms(day("2010-11-07"))
    assert zoned.iso(first_midnight_ms) == "2010-11-07T00:00:00.000-02:30"
    for minutes in range(0, 120, 7):
        assert zoned.day(first_midnight_ms + minutes * 60_000) == day("2010-11-07")
    assert zoned.day(first_midnight_ms - 1) == day("2010-11-06")


def test_no_day_begins_after_the_last_year():
    """A deadline that far does not come."""
    assert Calendar("UTC").day_start_ms(day("9998-12-31")) == ms("9998-12-31")
    assert Calendar("UTC").day_start_ms(day("9998-12-31") + 1) == NEVER
    assert Calendar("UTC").day_start_ms(10**9) == NEVER


@given(st.sampled_from(ZONES), st.integers(-(10**12), 10**13))
def test_instants_are_written_in_local_time_with_milliseconds(zone, ts_ms):
    """As the standard library does, in years from 1938 to 2286, with whatever offset."""
    local = (EPOCH + timedelta(milliseconds=ts_ms)).astimezone(ZoneInfo(zone))
    assert Calendar(zone).iso(ts_ms) == local.isoformat(timespec="milliseconds")


def test_caches_are_bounded():
    """A stream may visit any number of quarter hours and days."""
    zoned = Calendar("Asia/Shanghai", cached=4)
    for number in range(10):
        ts_ms = ms("2025-01-01 12:00") + number * 86_400_000
        assert zoned.day(ts_ms) == day("2025-01-01") + number
        assert zoned.day_start_ms(zoned.day(ts_ms)) <= ts_ms
        assert zoned.iso(ts_ms)[:10] == str(date(2025, 1, 1) + timedelta(days=number))
        assert len(zoned._offsets) <= 4
        assert len(zoned._dates) <= 4
        assert len(zoned._days) <= 4
        assert len(zoned._starts) <= 4


def test_an_unknown_zone_is_an_error():
    """Definitions are checked before, so this one is the caller's."""
    with pytest.raises(ZoneInfoNotFoundError):
        Calendar("Asia/Atlantis")
